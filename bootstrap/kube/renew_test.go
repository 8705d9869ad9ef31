package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/pki"
	"github.com/kimage-project/kimage/pkg/run"
)

// controlPlane is a master's certificates and manifests, as kubeadm leaves them.
type controlPlane struct {
	t    *testing.T
	root string
	ran  []string
	fail error
	end  time.Time // of what a renewal issues
}

func (c *controlPlane) put(p, content string) {
	c.t.Helper()
	file := filepath.Join(c.root, p)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// issue writes all certificates, made at now.
func (c *controlPlane) issue(now time.Time) {
	c.t.Helper()
	ca, err := pki.NewCA("ca", "test", "ECDSA-P256", now)
	if err != nil {
		c.t.Fatal(err)
	}
	pair, err := ca.Issue(pki.Request{CommonName: "x", Client: true}, "ECDSA-P256", now)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range staticPods {
		for _, file := range p.uses {
			if strings.HasSuffix(file, ".crt") {
				c.put(file, string(pair.Cert))
			}
		}
	}
	encoded := func(data []byte) string { return base64.StdEncoding.EncodeToString(data) }
	for _, file := range []string{adminConf, kubernetesDir + "/controller-manager.conf", kubernetesDir + "/scheduler.conf"} {
		c.put(file, "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{name: x, cluster: {server: \"https://127.0.0.1:1\", certificate-authority-data: "+encoded(ca.Cert)+"}}]\n"+
			"contexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x, user: {client-certificate-data: "+encoded(pair.Cert)+", client-key-data: "+encoded(pair.Key)+"}}]\n")
	}
}

func (c *controlPlane) run(_ context.Context, cmd run.Cmd) error {
	c.ran = append(c.ran, strings.Join(cmd.Argv[:4], " "))
	if c.fail != nil {
		return c.fail
	}
	time.Sleep(20 * time.Millisecond) // the files are newer than the manifests
	c.issue(c.end)
	return nil
}

func TestRenew(t *testing.T) {
	root := t.TempDir()
	firstBoot(t, root)
	start := time.Now()
	c := &controlPlane{t: t, root: root, end: start}
	c.issue(start)
	const manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, annotations: {a: b}}\nspec: {containers: [{name: x, args: [\"--v=2\"]}]}\n"
	time.Sleep(20 * time.Millisecond)
	for _, p := range staticPods {
		c.put(kubernetesDir+"/manifests/"+p.name+".yaml", manifest)
	}
	now := start
	busy, released := false, 0
	n := newNode(t, Config{Node: single(), Root: root, Run: c.run, Now: func() time.Time { return now },
		Lock: func(context.Context, Verb) (func(), bool, error) { return func() { released++ }, !busy, nil }})
	restarted := func() (count int) {
		for _, p := range staticPods {
			data, err := os.ReadFile(filepath.Join(root, kubernetesDir, "manifests", p.name+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), renewedAnnotation) && strings.Contains(string(data), "a: b") && strings.Contains(string(data), "--v=2") {
				count++
			}
		}
		return count
	}
	renew := func(what string, ran, pods int) {
		t.Helper()
		now = now.Add(renewLook)
		if err := n.renew(t.Context()); err != nil && !errors.Is(err, c.fail) {
			t.Fatal(err)
		}
		if len(c.ran) != ran || restarted() != pods {
			t.Errorf("%s: ran %q, %d pods start again; want %d and %d", what, c.ran, restarted(), ran, pods)
		}
	}
	renew("new", 0, 0)
	cert, err := n.certificate(adminConf)
	if err != nil {
		t.Fatal(err)
	}
	life := cert.NotAfter.Sub(cert.NotBefore)
	now = cert.NotBefore.Add(life*2/3 - time.Hour)
	renew("at nearly two thirds", 0, 0)
	now = cert.NotBefore.Add(life*2/3 + time.Hour)
	busy = true
	renew("another master's turn", 0, 0)
	busy, c.fail = false, errProgram
	renew("kubeadm fails", 1, 0)
	c.fail, c.end = nil, now
	renew("old", 2, len(staticPods))
	if err := n.renew(t.Context()); err != nil || !n.renewLooked.Equal(now) || len(c.ran) != 2 {
		t.Errorf("looked again at once: %v, ran %q", err, c.ran)
	}
	if want := "kubeadm certs renew all"; c.ran[1] != want {
		t.Errorf("ran %s", c.ran[1])
	}
	if exists(filepath.Join(root, kubeadmFile)) {
		t.Error("kubeadm's configuration stays")
	}
	now = now.Add(time.Hour)
	renew("renewed", 2, len(staticPods))

	// Cut off between renewing and starting again.
	time.Sleep(20 * time.Millisecond)
	for _, p := range staticPods {
		c.put(kubernetesDir+"/manifests/"+p.name+".yaml", manifest)
	}
	time.Sleep(20 * time.Millisecond)
	c.issue(now)
	now = now.Add(time.Hour)
	renew("renewed and cut off", 2, len(staticPods))
}
