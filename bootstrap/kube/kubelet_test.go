//go:build integration

package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// kubelet does what kubeadm and the cluster see of one.
func (m machine) kubelet() {
	var (
		pods    = map[string]*exec.Cmd{}
		healthy sync.Once
		on      = "/run/kubelet.on" // what systemctl of this machine makes, touches and removes
		since   time.Time           // when it was started
		known   bool                // it has made its Node, or found it: once in its life
	)
	for ; ; time.Sleep(300 * time.Millisecond) {
		manifests, _ := filepath.Glob(kubernetesDir + "/manifests/*.yaml")
		for file, cmd := range pods { // kubeadm reset stops containers; there is no runtime to do it
			if !slices.Contains(manifests, file) {
				cmd.Process.Kill()
				cmd.Wait()
				delete(pods, file)
			}
		}
		started, err := os.Stat(on)
		if err != nil || !exists(kubeletDir+"/config.yaml") {
			continue
		}
		if !started.ModTime().Equal(since) {
			since, known = started.ModTime(), false
		}
		healthy.Do(func() {
			go http.ListenAndServe("127.0.0.1:10248", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if !exists(on) {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}))
		})
		for _, file := range manifests {
			if cmd := pods[file]; cmd == nil || cmd.ProcessState != nil {
				if cmd, err := startPod(file); err != nil {
					log.Printf("kubelet: %s: %v", file, err)
				} else {
					pods[file] = cmd
				}
			}
		}
		if err := m.beat(&known); err != nil {
			log.Printf("kubelet: %v", err)
			time.Sleep(time.Second)
		}
	}
}

// startPod starts the program of a static pod on the machine itself.
func startPod(file string) (*exec.Cmd, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	objects, err := kubeapi.Objects(data)
	if err != nil || len(objects) != 1 {
		return nil, fmt.Errorf("%d objects, %w", len(objects), err)
	}
	containers, _ := kubeapi.Field(objects[0], "spec", "containers").([]any)
	command, _ := containers[0].(kubeapi.Object)["command"].([]any)
	var argv []string
	for _, a := range command {
		argv = append(argv, a.(string))
	}
	out, err := os.OpenFile("/var/lib/"+argv[0]+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	log.Printf("kubelet: started %s", argv[0])
	go func() { err := cmd.Wait(); log.Printf("kubelet: %s ended: %v", argv[0], err) }()
	return cmd, nil
}

// beat gets a certificate, registers the Node, or says that it is Ready.
func (m machine) beat(known *bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if !exists(kubeletConf) {
		if !exists(kubernetesDir + "/bootstrap-kubelet.conf") {
			return nil
		}
		return m.bootstrap(ctx)
	}
	conf, err := kubeapi.ReadKubeconfig(kubeletConf)
	if err != nil {
		return err
	}
	c, err := kubeapi.New(conf)
	if err != nil {
		return err
	}
	defer c.Close()
	now := time.Now().UTC().Format(time.RFC3339)
	room := object{"cpu": "4", "memory": "8Gi", "pods": "110"}
	status := object{"status": object{"capacity": room, "allocatable": room, "addresses": []any{object{"type": "InternalIP", "address": m.Address}}, "conditions": []any{object{"type": "Ready", "status": "True", "reason": "Test",
		"message": "posts", "lastHeartbeatTime": now, "lastTransitionTime": now}}}}
	err = c.Merge(ctx, "/api/v1/nodes/"+m.Name+"/status", status)
	if kubeapi.Is(err, 404) && !*known {
		err = m.register(ctx, c)
		*known = err == nil
		return err
	}
	*known = *known || err == nil
	return errors.Join(err, m.endPods(ctx, c))
}

// endPods confirms the end of the machine's pods that are deleted.
func (m machine) endPods(ctx context.Context, c *kubeapi.Client) error {
	var pods struct{ Items []kubeapi.Object }
	if err := c.Get(ctx, "/api/v1/pods", url.Values{"fieldSelector": {"spec.nodeName=" + m.Name}}, &pods); err != nil {
		return err
	}
	var errs []error
	for _, p := range pods.Items {
		if kubeapi.Field(p, "metadata", "deletionTimestamp") != nil {
			errs = append(errs, c.DeleteNow(ctx, "/api/v1/namespaces/"+kubeapi.Text(p, "metadata", "namespace")+"/pods/"+kubeapi.Text(p, "metadata", "name"), kubeapi.Text(p, "metadata", "uid")))
		}
	}
	return errors.Join(errs...)
}

func (m machine) register(ctx context.Context, c *kubeapi.Client) error {
	flags, err := os.ReadFile(kubeletDir + "/kubeadm-flags.env")
	if err != nil {
		return err
	}
	labels, taints := object{"kubernetes.io/hostname": m.Name, "kubernetes.io/os": "linux"}, []any{}
	for f := range strings.FieldsSeq(strings.Trim(strings.TrimPrefix(string(flags), "KUBELET_KUBEADM_ARGS="), "\"\n")) {
		if list, ok := strings.CutPrefix(f, "--node-labels="); ok {
			for l := range strings.SplitSeq(list, ",") {
				k, v, _ := strings.Cut(l, "=")
				labels[k] = v
			}
		}
		if list, ok := strings.CutPrefix(f, "--register-with-taints="); ok && list != "" {
			for t := range strings.SplitSeq(list, ",") {
				key, effect, _ := strings.Cut(t, ":")
				k, v, _ := strings.Cut(key, "=")
				taints = append(taints, object{"key": k, "value": v, "effect": effect})
			}
		}
	}
	log.Printf("kubelet: registers with %v, %v", labels, taints)
	return c.Create(ctx, "/api/v1/nodes", object{"apiVersion": "v1", "kind": "Node", "metadata": object{"name": m.Name, "labels": labels}, "spec": object{"taints": taints}}, nil)
}

// bootstrap asks for a certificate as a kubelet does, and writes kubelet.conf.
func (m machine) bootstrap(ctx context.Context) error {
	conf, err := kubeapi.ReadKubeconfig(kubernetesDir + "/bootstrap-kubelet.conf")
	if err != nil {
		return err
	}
	c, err := kubeapi.New(conf)
	if err != nil {
		return err
	}
	defer c.Close()
	cert, key, err := askCertificate(ctx, c, m.Name)
	if err != nil {
		return err
	}
	file := kubeletDir + "/pki/kubelet-client-current.pem"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, append(cert, key...), 0o600); err != nil {
		return err
	}
	kubeconfig, err := documents(object{"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"clusters": []any{object{"name": "x", "cluster": object{"server": conf.Server, "certificate-authority": kubernetesDir + "/pki/ca.crt"}}},
		"users":    []any{object{"name": "x", "user": object{"client-certificate": file, "client-key": file}}},
		"contexts": []any{object{"name": "x", "context": object{"cluster": "x", "user": "x"}}}})
	if err != nil {
		return err
	}
	return os.WriteFile(kubeletConf, kubeconfig, 0o600)
}

// request makes a CertificateSigningRequest for a name, and its key.
func request(ctx context.Context, c *kubeapi.Client, name string) (string, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", nil, err
	}
	r, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: nodeUser + name, Organization: []string{"system:nodes"}}}, key)
	if err != nil {
		return "", nil, err
	}
	var made csr
	err = c.Create(ctx, csrPath, object{"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": object{"generateName": "node-csr-"},
		"spec": object{"request": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r}), "signerName": kubeletSigner,
			"usages": []string{"digital signature", "client auth"}}}, &made)
	return made.Metadata.Name, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

func askCertificate(ctx context.Context, c *kubeapi.Client, name string) (cert, key []byte, err error) {
	csrName, key, err := request(ctx, c, name)
	if err != nil {
		return nil, nil, err
	}
	for ; ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		var r struct {
			Status struct {
				Certificate []byte
				Conditions  []struct{ Type, Message string }
			}
		}
		if err := c.Get(ctx, csrPath+"/"+csrName, nil, &r); err != nil {
			return nil, nil, err
		}
		for _, x := range r.Status.Conditions {
			if x.Type == "Denied" {
				return nil, nil, errors.New("denied: " + x.Message)
			}
		}
		if len(r.Status.Certificate) > 0 {
			return r.Status.Certificate, key, nil
		}
	}
	return nil, nil, ctx.Err()
}
