//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
	"github.com/kimage-project/kimage/pkg/seed"
)

// byHand is what a person would do on a machine where everything is in place,
// without waiting for anything that is there already.
const byHand = `#!/bin/sh
until crictl info >/dev/null 2>&1; do sleep 0.2; done
systemctl start kimage-images
kubeadm init --config /root/kubeadm.yaml >/root/init.log 2>&1
KUBECONFIG=/etc/kubernetes/admin.conf kubectl apply -f /usr/share/kimage/flannel.yaml
`

// maxBootRatio is how much longer a machine may take that does it by itself.
const maxBootRatio = 1.15

// TestBootRatio: from the kernel's start to a Ready Node, a machine that becomes
// a cluster by itself beside the same machine on which kubeadm is run as soon as
// it can be. Only by make bench-boot: what is measured needs a quiet computer.
func TestBootRatio(t *testing.T) {
	if os.Getenv("KIMAGE_E2E_BOOT") == "" {
		t.Skip("measured by make bench-boot")
	}
	key := newKey(t)
	var took [2]time.Duration
	t.Run("by itself", func(t *testing.T) {
		config := configs(t, system, key.Public, "", "--seed")
		n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), MemoryMiB: 4096, Seed: filepath.Join(config, "nodes/k8s-01/seed.iso")}, user, key)
		took[0] = n.kernelToReady()
		n.quick()
	})
	t.Run("by hand", func(t *testing.T) {
		dir := t.TempDir()
		volume := filepath.Join(dir, "seed")
		cloudConfig, err := json.Marshal(map[string]any{
			"ssh_authorized_keys": []string{key.Public},
			"write_files": []map[string]string{
				{"path": "/root/kubeadm.yaml", "content": strings.ReplaceAll(kubeadmConfig, "VERSION", kubernetesVersion(t))},
				{"path": "/root/by-hand", "content": byHand, "permissions": "0755"},
			},
			"runcmd": [][]string{{"/root/by-hand"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		err = seed.Write(t.Context(), volume, map[string][]byte{"meta-data": []byte("instance-id: e2e\nlocal-hostname: node-1\n"), "network-config": []byte(networkConfig),
			"user-data": append([]byte("#cloud-config\n"), cloudConfig...)})
		if err != nil {
			t.Fatal(err)
		}
		n := bootWith(t, qemu.Config{Dir: filepath.Join(dir, "node"), MemoryMiB: 4096, Seed: volume}, user, key)
		took[1] = n.kernelToReady()
	})
	if t.Failed() {
		return
	}
	ratio := took[0].Seconds() / took[1].Seconds()
	t.Logf("kernel to Ready: by itself %s, by hand %s, ratio %.2f (goal %.2f)", took[0], took[1], ratio, maxBootRatio)
	if ratio > maxBootRatio {
		t.Errorf("ratio %.2f", ratio)
	}
}

// kernelToReady is how long after the kernel's start the Node became Ready, as
// the API server says. It asks seldom: questions take from the machine.
func (n *node) kernelToReady() time.Duration {
	n.t.Helper()
	const ready = "test -s /etc/kubernetes/admin.conf && KUBECONFIG=/etc/kubernetes/admin.conf kubectl get nodes -o jsonpath='{range .items[*].status.conditions[?(@.type==\"Ready\")]}{.status} {.lastTransitionTime}{end}'"
	deadline := time.Now().Add(15 * time.Minute)
	for time.Now().Before(deadline) {
		time.Sleep(10 * time.Second)
		r, err := n.try(ready, time.Minute)
		at, ok := strings.CutPrefix(strings.TrimSpace(r.Stdout), "True ")
		if err != nil || !ok {
			continue
		}
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			n.t.Fatal(err)
		}
		booted, err := time.Parse(time.DateTime, n.must("date -u -d @$(sed -n 's/^btime //p' /proc/stat) '+%Y-%m-%d %H:%M:%S'", time.Minute))
		if err != nil {
			n.t.Fatal(err)
		}
		return when.Sub(booted)
	}
	n.t.Fatalf("never Ready: %s", n.must("tail -n 20 /root/init.log 2>/dev/null; journalctl -u kimage-agent -o cat --no-pager | tail -n 20", time.Minute))
	return 0
}

// kubernetesVersion is the image's.
func kubernetesVersion(t *testing.T) string {
	t.Helper()
	var in struct {
		Manifest struct{ Kubernetes string }
	}
	if err := json.Unmarshal([]byte(judge(t, "../bin/kimage", "inspect", image, "--json")), &in); err != nil {
		t.Fatal(err)
	}
	return in.Manifest.Kubernetes
}
