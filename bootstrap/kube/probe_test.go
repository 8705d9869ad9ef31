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

// answering is an API server of an authority that answers every question so, until the
// test ends.
func answering(t *testing.T, ca pki.Pair, ends time.Time, code int) *httptest.Server {
	t.Helper()
	leaf, err := ca.Issue(pki.Request{CommonName: "kube-apiserver", Names: []string{"127.0.0.1"}, Server: true, NotAfter: ends}, "ECDSA-P256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(leaf.Cert, leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

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
			server := answering(t, c.ca, c.ends, http.StatusInternalServerError)
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

// TestInitBesideAnother: what decided to initialise is looked at once more under the
// lock, and not judged by another rule: an API server that starts for ever keeps nobody
// from it.
func TestInitBesideAnother(t *testing.T) {
	root := t.TempDir()
	firstBoot(t, root)
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(root, nodeconf.PKIDir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	ca := pki.Pair{Cert: read("ca.crt"), Key: read("ca.key")}
	for _, c := range []struct {
		name string
		code int
		seen answerSince
		want error
	}{
		{"silent before, now it starts", 500, answerSince{APISilent, time.Now().Add(-time.Hour)}, ErrBusy},
		{"it starts", 500, answerSince{APIStarting, time.Now().Add(-startingFor + time.Minute)}, ErrBusy},
		{"it starts for ever", 500, answerSince{APIStarting, time.Now().Add(-startingFor)}, nil},
		{"it started for ever, now it is ready", 200, answerSince{APIStarting, time.Now().Add(-startingFor)}, ErrBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := answering(t, ca, time.Time{}, c.code)
			free := func(context.Context, Verb) (func(), bool, error) { return func() {}, true, nil }
			n := newNode(t, Config{Node: single(), Root: root, Lock: free, API: server.Listener.Addr().String()})
			n.apiSeen = c.seen
			if _, err := n.lock(t.Context(), Init); err != c.want {
				t.Errorf("got %v, want %v", err, c.want)
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
