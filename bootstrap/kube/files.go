package kube

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// pkiFiles are what a master brings to kubeadm, by their names below
// nodeconf.PKIDir, and their places below kubeadm's directory. All else there
// kubeadm makes from them.
var pkiFiles = [...]struct{ from, to string }{
	{nodeconf.ClusterCA + ".crt", "ca.crt"},
	{nodeconf.ClusterCA + ".key", "ca.key"},
	{nodeconf.FrontProxyCA + ".crt", "front-proxy-ca.crt"},
	{nodeconf.FrontProxyCA + ".key", "front-proxy-ca.key"},
	{nodeconf.ServiceAccountKey, "sa.key"},
	{nodeconf.ServiceAccountPub, "sa.pub"},
	{nodeconf.EtcdCA + ".crt", "etcd/ca.crt"},
	{nodeconf.APIServerEtcd + ".crt", "apiserver-etcd-client.crt"},
	{nodeconf.APIServerEtcd + ".key", "apiserver-etcd-client.key"},
}

// placePKI copies the issued PKI to where kubeadm looks for it: before every
// attempt, because kubeadm reset empties that directory.
func (n *Node) placePKI() error {
	for _, f := range pkiFiles {
		data, err := os.ReadFile(n.pki(f.from))
		if err != nil {
			return fmt.Errorf("reading what first boot wrote (give the machine its config again: kimage config): %w", err)
		}
		mode := os.FileMode(0o600)
		if !strings.HasSuffix(f.to, ".key") {
			mode = 0o644
		}
		if err := n.write(kubernetesDir+"/pki/"+f.to, data, mode); err != nil {
			return err
		}
	}
	return nil
}

// write puts content at p, making the directories above it.
func (n *Node) write(p string, content []byte, mode os.FileMode) error {
	file := n.path(p)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if old, err := os.ReadFile(file); err == nil && string(old) == string(content) {
		if fi, err := os.Stat(file); err == nil && fi.Mode().Perm() == mode {
			return nil
		}
	}
	if err := atomicfile.Write(file, content, mode); err != nil {
		return err
	}
	n.tellChanged("write " + p)
	return nil
}

// readyProbeSeconds is how often a part of the control plane is asked whether it
// is ready; kubeadm has an API server asked every second. Nothing depends on it:
// the balancers ask for themselves.
const readyProbeSeconds = 10

// patientProbes is how many of its liveness probes, one every ten seconds, a
// part of the control plane may fail before it is started again. kubeadm's 8 end
// an API server that is only slow, and what its start costs is due once more;
// one that hangs is left by the balancers within seconds in any case.
const patientProbes = 60

// placePatches writes what is changed in kubeadm's manifests.
func (n *Node) placePatches() error {
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		probes := fmt.Sprintf(`"livenessProbe":{"failureThreshold":%d}`, patientProbes)
		if name == "kube-apiserver" {
			probes += fmt.Sprintf(`,"readinessProbe":{"periodSeconds":%d}`, readyProbeSeconds)
		}
		patch := fmt.Sprintf(`{"spec":{"containers":[{"name":%q,%s}]}}`, name, probes)
		if err := n.write(patchesDir+"/"+name+"+strategic.json", []byte(patch+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// encryptionBytes is the size of a key of secretbox.
const encryptionBytes = 32

// placeEncryption writes how Secrets are encrypted in etcd. identity comes
// last: what an administrator wrote before stays readable.
func (n *Node) placeEncryption() error {
	data, err := os.ReadFile(n.pki(nodeconf.EncryptionKey))
	if err != nil {
		return fmt.Errorf("reading what first boot wrote (give the machine its config again: kimage config): %w", err)
	}
	key := strings.TrimSpace(string(data))
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) != encryptionBytes {
		return fmt.Errorf("%s is not %d bytes in base64: make it again with kimage config", n.pki(nodeconf.EncryptionKey), encryptionBytes)
	}
	config, err := documents(object{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
		"resources": []any{object{"resources": []string{"secrets"}, "providers": []any{
			object{"secretbox": object{"keys": []any{object{"name": "kimage", "secret": key}}}},
			object{"identity": object{}}}}}})
	if err != nil {
		return err
	}
	return n.write(encryptFile, config, 0o600)
}

// token is this machine's bootstrap token.
func (n *Node) token() (string, error) {
	data, err := os.ReadFile(n.path(nodeconf.TokenFile))
	if err != nil {
		return "", fmt.Errorf("reading what first boot wrote (give the machine its config again: kimage config): %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// placeDiscovery writes the kubeconfig that kubeadm join discovers the cluster
// by: the authority that first boot brought, not one that a server names.
func (n *Node) placeDiscovery(token string) error {
	ca, err := os.ReadFile(n.pki(nodeconf.ClusterCA + ".crt"))
	if err != nil {
		return err
	}
	config, err := documents(object{"apiVersion": "v1", "kind": "Config", "current-context": "kimage", "preferences": object{},
		"clusters": []any{object{"name": "kimage", "cluster": object{"server": "https://" + n.API,
			"certificate-authority-data": base64.StdEncoding.EncodeToString(ca)}}},
		"users":    []any{object{"name": "kimage", "user": object{"token": token}}},
		"contexts": []any{object{"name": "kimage", "context": object{"cluster": "kimage", "user": "kimage"}}}})
	if err != nil {
		return err
	}
	return n.write(discoveryFile, config, 0o600)
}

const hostsFile = "/etc/hosts"

// nameItself lets the machine find its own name without a resolver. kubeadm
// looks it up in every preflight, and where resolvers are configured that do
// not answer it waits ten seconds for them.
func (n *Node) nameItself() error {
	data, err := os.ReadFile(n.path(hostsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 1 && slices.Contains(f[1:], n.Name) {
			return nil
		}
	}
	if len(data) > 0 && data[len(data)-1] != '\n' {
		data = append(data, '\n')
	}
	return n.write(hostsFile, append(data, n.Addresses[0]+" "+n.Name+"\n"...), 0o644)
}

// remove deletes a file; that it is not there is no error.
func (n *Node) remove(p string) error {
	err := os.Remove(n.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		n.tellChanged("remove " + p)
	}
	return err
}
