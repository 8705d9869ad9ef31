package kube

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/pki"
)

// TestProbeSaysWhich: a worker that waits for API servers says which of them
// does not answer, and why. Each is a real listener.
func TestProbeSaysWhich(t *testing.T) {
	now := time.Now()
	ours, err := pki.NewCA("ours", "kimage", "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := pki.NewCA("theirs", "kimage", "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, nodeconf.PKIDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, nodeconf.PKIDir, "ca.crt"), ours.Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		ca   pki.Pair
		ends time.Time
		off  bool
		want string
	}{
		{name: "of another CA", ca: theirs, want: "its certificate is of another cluster's authority"},
		{name: "certificate ended, or a clock is wrong", ca: ours, ends: now.Add(-time.Hour), want: "set the clock that is wrong"},
		{name: "off", ca: ours, off: true, want: "connection refused"},
		{name: "starting", ca: ours, want: "not ready"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaf, err := c.ca.Issue(pki.Request{CommonName: "kube-apiserver", Names: []string{"127.0.0.1"}, Server: true, NotAfter: c.ends}, "ECDSA-P256", now)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(leaf.Cert, leaf.Key)
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
			server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
			server.StartTLS()
			defer server.Close()
			addr := server.Listener.Addr().String()
			if c.off {
				server.Close()
			}
			n, err := New(Config{Node: nodeconf.Config{Node: nodeconf.Node{Roles: []string{nodeconf.RoleWorker}}, Image: nodeconf.Image{Kubernetes: "v1.37.2"}}, Name: "w1", Addresses: []string{"127.0.0.1"}, Root: root, API: addr})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if _, _, detail := n.probeAPI(ctx, true); !strings.HasPrefix(detail, "the balancer ("+addr+"): ") || !strings.Contains(detail, c.want) {
				t.Errorf("got %q, want %q", detail, c.want)
			}
		})
	}
}

// TestRuntimeDown: the socket of a runtime that ended is still there.
func TestRuntimeDown(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	if connects(socket) {
		t.Error("a runtime without a socket answers")
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if !connects(socket) {
		t.Error("a runtime that listens does not answer")
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if connects(socket) {
		t.Error("a runtime that ended answers")
	}
}
