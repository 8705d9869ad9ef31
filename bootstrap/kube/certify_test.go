package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/pki"
)

// TestMasterCertifiesItself: two years on, a master's kubelet has a certificate
// that kubelet.conf names, that is valid now, and that is also valid at the time
// that was, if the clock was wrong; the kubelet's own ones stay.
func TestMasterCertifiesItself(t *testing.T) {
	made := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	now := made
	root := t.TempDir()
	ca, err := pki.NewCA("kubernetes", "test", pki.DefaultAlgorithm, made)
	if err != nil {
		t.Fatal(err)
	}
	old, err := ca.Issue(pki.Request{CommonName: nodeUser + "m1", Organization: []string{"system:nodes"}, Client: true, NotAfter: made.Add(kubeletLifetime)}, pki.DefaultAlgorithm, made)
	if err != nil {
		t.Fatal(err)
	}
	c := &controlPlane{t: t, root: root}
	c.put(nodeconf.PKIDir+"/"+nodeconf.ClusterCA+".crt", string(ca.Cert))
	c.put(nodeconf.PKIDir+"/"+nodeconf.ClusterCA+".key", string(ca.Key))
	c.put(kubeletDir+"/pki/old.pem", string(old.Cert)+string(old.Key))
	current := filepath.Join(root, kubeletCertificateFile)
	if err := os.Symlink("old.pem", current); err != nil {
		t.Fatal(err)
	}
	c.put(kubeletConf, "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{name: x, cluster: {server: \"https://127.0.0.1:1\"}}]\n"+
		"contexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x, user: {client-certificate: "+current+", client-key: "+current+"}}]\n")
	n := &Node{Config: Config{Name: "m1", Root: root, Now: func() time.Time { return now }, Logf: t.Logf}}
	if n.kubeletCertificate().useless(now) {
		t.Fatal("a new certificate is of no use")
	}
	now = made.AddDate(2, 0, 0)
	if !n.kubeletCertificate().useless(now) {
		t.Fatal("a certificate is of use after its end")
	}
	if err := n.Apply(t.Context(), Action{Verb: Certify}); err != nil {
		t.Fatal(err)
	}
	if n.kubeletCertificate().useless(now) {
		t.Error("the new certificate is of no use")
	}
	data, err := os.ReadFile(current)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseCerts(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{made, now, now.AddDate(0, 11, 0)} {
		if certs[0].NotBefore.After(at) || certs[0].NotAfter.Before(at) {
			t.Errorf("valid from %s to %s, not at %s", certs[0].NotBefore, certs[0].NotAfter, at)
		}
	}
	now = made.AddDate(20, 0, 0)
	if err := n.Apply(t.Context(), Action{Verb: Certify}); err == nil || !strings.Contains(err.Error(), "check the clock") {
		t.Errorf("after the CA's end: %v", err)
	}
	if certs[0].Subject.CommonName != nodeUser+"m1" || certs[0].Subject.Organization[0] != "system:nodes" || !pki.Covers(data, ca.Cert, nil, made.AddDate(2, 0, 0)) {
		t.Errorf("%s", certs[0].Subject)
	}
	if fi, err := os.Stat(current); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}
