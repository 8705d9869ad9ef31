//go:build integration

package kube

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestCoreDNS: a real CoreDNS ends itself on the resolv.conf of a machine
// without a resolver, and lives on the one that pods get; what it cannot know
// it refuses at once.
func TestCoreDNS(t *testing.T) {
	coredns := program(t, "coredns")
	if coredns == "" {
		t.Fatal("no coredns on this machine: bake an image from source first (kimage build)")
	}
	const machine = "172.17.9.9"
	if out, err := exec.Command("sh", "-ec", "ip link set lo up; ip addr replace "+machine+"/32 dev lo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ours, _ := podResolver("", []string{machine})
	for _, tt := range []struct {
		name, resolv string
		lives        bool
	}{{"machine's", "# no resolver\n", false}, {"pods'", ours, true}} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "resolv.conf"), tt.resolv)
			// kubeadm's, but for the zone of the cluster, which needs one.
			writeFile(t, filepath.Join(dir, "Corefile"), ".:5353 {\nerrors\nhealth {\nlameduck 5s\n}\nready\nforward . "+dir+"/resolv.conf {\nmax_concurrent 1000\n}\ncache 30\nloop\nreload\nloadbalance\n}\n")
			cmd := exec.Command(coredns, "-conf", filepath.Join(dir, "Corefile"))
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case err := <-ended:
				if tt.lives {
					t.Errorf("CoreDNS ended: %v", err)
				}
				return
			case <-time.After(5 * time.Second):
			}
			defer func() { cmd.Process.Kill(); <-ended }()
			if !tt.lives {
				t.Fatal("CoreDNS lives without a resolver")
			}
			if answer, err := http.Get("http://127.0.0.1:8181/ready"); err != nil || answer.StatusCode != http.StatusOK {
				t.Errorf("CoreDNS is not ready: %v", err)
			}
			resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "udp", "127.0.0.1:5353")
			}}
			started := time.Now()
			_, err := resolver.LookupHost(t.Context(), "example.com.")
			var dns *net.DNSError
			if took := time.Since(started); !errors.As(err, &dns) || took > 2*time.Second {
				t.Errorf("example.com: %v after %s", err, took)
			}
		})
	}
}
