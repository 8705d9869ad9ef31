package kube

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// staticPods are the parts of the control plane, and what they read that ends:
// kubeadm issues it for a year.
var staticPods = []struct {
	name string
	uses []string
}{
	{"kube-apiserver", []string{kubernetesDir + "/pki/apiserver.crt", kubernetesDir + "/pki/apiserver-kubelet-client.crt", kubernetesDir + "/pki/front-proxy-client.crt"}},
	{"kube-controller-manager", []string{kubernetesDir + "/controller-manager.conf"}},
	{"kube-scheduler", []string{kubernetesDir + "/scheduler.conf"}},
}

const (
	// renewedAnnotation on a static pod makes the kubelet start it again.
	renewedAnnotation = "kimage.dev/certificates-renewed"
	// renewLook is how often a master looks at its certificates.
	renewLook = 10 * time.Minute
	// renewRetry is after how long one looks again that did not succeed, or had to wait.
	renewRetry = time.Minute
	// renewTurn is how long other masters wait with theirs.
	renewTurn = 2 * time.Minute
)

// renew has kubeadm renew its certificates when two thirds of the life of one are
// over, and the control plane started again with them. A pod that is older than
// what it uses was not, whatever happened meanwhile. What does not succeed is
// tried again soon: the certificates of a machine that was off may have ended.
func (n *Node) renew(ctx context.Context) error {
	if n.Now().Sub(n.renewLooked) < renewLook {
		return nil
	}
	n.renewLooked = n.Now().Add(renewRetry - renewLook) // unless all went well
	file, err := n.oldCertificate()
	if err != nil {
		return err
	}
	if file != "" {
		if n.Lock != nil {
			release, ok, err := n.Lock(ctx, Keep)
			if err == nil && !ok {
				return nil // another master's turn
			}
			if err == nil {
				time.AfterFunc(renewTurn, release)
			}
		}
		n.Logf("renewing kubeadm's certificates: two thirds of the life of %s are over", file)
		config, err := documents(n.clusterConfig())
		if err != nil {
			return err
		}
		if err := n.write(kubeadmFile, config, 0o600); err != nil {
			return err
		}
		err = n.kubeadm(ctx, []string{"kubeadm", "certs", "renew", "all", "--config", n.path(kubeadmFile)}, resetBudget)
		if err := errors.Join(err, n.remove(kubeadmFile)); err != nil {
			return fmt.Errorf("renewing kubeadm's certificates: %w", err)
		}
	}
	if err := n.restartOld(); err != nil {
		return err
	}
	n.renewLooked = n.Now()
	return nil
}

// oldCertificate is a file whose certificate has lived for two thirds; empty: none.
func (n *Node) oldCertificate() (string, error) {
	files := []string{adminConf}
	for _, p := range staticPods {
		files = append(files, p.uses...)
	}
	for _, file := range files {
		cert, err := n.certificate(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // of a person's own, or made elsewhere
		}
		if err != nil {
			return "", err
		}
		if n.Now().After(cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)) {
			return file, nil
		}
	}
	return "", nil
}

// certificate reads the first one of a file, which may be a kubeconfig.
func (n *Node) certificate(file string) (*x509.Certificate, error) {
	data, err := os.ReadFile(n.path(file))
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(file, ".conf") {
		conf, err := kubeapi.ReadKubeconfig(n.path(file))
		if err != nil {
			return nil, err
		}
		data = conf.Cert
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate: kubeadm certs renew all makes one", n.path(file))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate in %s: %w", n.path(file), err)
	}
	return cert, nil
}

// restartOld changes the manifests that are older than what their pods use.
func (n *Node) restartOld() error {
	for _, p := range staticPods {
		manifest := kubernetesDir + "/manifests/" + p.name + ".yaml"
		written, err := os.Stat(n.path(manifest))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, file := range p.uses {
			used, err := os.Stat(n.path(file))
			if err != nil || !used.ModTime().After(written.ModTime()) {
				continue
			}
			if err := n.annotate(manifest, used.ModTime()); err != nil {
				return err
			}
			n.Logf("%s starts again with renewed certificates", p.name)
			break
		}
	}
	return nil
}

// annotate writes a static pod's manifest with the time in an annotation.
func (n *Node) annotate(manifest string, at time.Time) error {
	data, err := os.ReadFile(n.path(manifest))
	if err != nil {
		return err
	}
	var pod object
	if err := yaml.Unmarshal(data, &pod); err != nil {
		return fmt.Errorf("reading %s: %w", n.path(manifest), err)
	}
	pod = merge(pod, object{"metadata": object{"annotations": object{renewedAnnotation: at.UTC().Format(time.RFC3339Nano)}}})
	if data, err = documents(pod); err != nil {
		return err
	}
	return n.write(manifest, data, 0o600)
}
