package kube

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKubeconfig: a file that changed is read again, also where only the
// certificate that it names did.
func TestKubeconfig(t *testing.T) {
	root := t.TempDir()
	n := newNode(t, Config{Node: single(), Root: root})
	current := filepath.Join(root, kubeletDir, "pki/kubelet-client-current.pem")
	conf := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: \"https://SERVER\", certificate-authority-data: YQ==}}]\n" +
		"contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {client-certificate: " + current + ", client-key: " + current + "}}]\n"
	want := func(server, cert string) {
		t.Helper()
		for range 2 {
			c, err := n.kubeconfig(kubeletConf)
			if err != nil || c.Server != "https://"+server || string(c.Cert) != cert {
				t.Fatalf("got %s, %s, %v, want %s, %s", c.Server, c.Cert, err, server, cert)
			}
		}
	}
	put := func(server string) {
		writeFile(t, filepath.Join(root, kubeletConf), strings.Replace(conf, "SERVER", server, 1))
	}
	if _, err := n.kubeconfig(kubeletConf); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	put("one")
	writeFile(t, current, "first")
	want("one", "first")
	writeFile(t, current, "other") // as long as the first
	want("one", "other")
	put("two")
	want("two", "other")
	if err := os.Remove(filepath.Join(root, kubeletConf)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.kubeconfig(kubeletConf); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after its removal: %v", err)
	}
}
