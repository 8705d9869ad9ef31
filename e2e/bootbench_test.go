//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/qemu"
	"github.com/kimage-project/kimage/pkg/seed"
)

// byHand is what a person would do on a machine where everything is in place,
// without waiting for anything that is there already.
const byHand = `#!/bin/sh
passed() { echo "$1 $(cut -d ' ' -f 1 /proc/uptime)" >>/root/passed; }
passed boot
until crictl info >/dev/null 2>&1; do sleep 0.2; done
systemctl start kimage-images
passed payload
kubeadm init --config /root/kubeadm.yaml >/root/init.log 2>&1
passed init
export KUBECONFIG=/etc/kubernetes/admin.conf
kubectl apply -f /usr/share/kimage/flannel.yaml
kubectl wait --for=condition=Ready nodes --all --timeout=15m
passed network
echo by hand: ready >/dev/console
`

// bySelf prints when the agent's machine had passed the same. kubeadm's part ends where
// the agent says that the machine has joined.
const bySelf = `at() { echo "$1 $(($2 / 1000))" | sed 's/\(...\)$/.\1/'; }
at boot $(systemctl show --property=ExecMainStartTimestampMonotonic --value kimage-agent)
at payload $(systemctl show --property=ExecMainExitTimestampMonotonic --value kimage-images)
journalctl -u kimage-agent -o short-monotonic --no-pager | sed -n 's/^\[ *\([0-9.]*\)\].*: phase \([a-z]*\).*/\2 \1/p' |
	awk '$1 == "joined" { print "init", $2 } $1 == "ready" { print "network", $2 } was == "etcd" { print "etcd", $2 } { was = $1 }'`

// passed reads lines of "NAME SECONDS", of which the last of a name counts.
func passed(lines string) map[string]float64 {
	all := map[string]float64{}
	for line := range strings.Lines(lines) {
		var name string
		var at float64
		if _, err := fmt.Sscan(line, &name, &at); err == nil {
			all[name] = at
		}
	}
	return all
}

// pathTable has a line for each part of the way to Ready. A machine that is alone joins
// nobody: what that takes is in the tables of the topologies.
func pathTable(t *testing.T, self, hand map[string]float64) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "seconds after the kernel's start:\n%-10s %10s %10s\n", "", "by itself", "by hand")
	for _, part := range []string{"boot", "payload", "etcd", "init", "network"} {
		cell := func(all map[string]float64, none string) string {
			at, ok := all[part]
			if !ok && none == "" {
				t.Errorf("nobody told when %s was passed: %v", part, all)
			}
			if !ok {
				return none
			}
			return fmt.Sprintf("%.1f", at)
		}
		byHand := ""
		if part == "etcd" {
			byHand = "(in init)"
		}
		fmt.Fprintf(&b, "%-10s %10s %10s\n", part, cell(self, ""), cell(hand, byHand))
	}
	return b.String()
}

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
	var way [2]map[string]float64
	t.Run("by itself", func(t *testing.T) {
		config := configs(t, system, key.Public, "", "--seed")
		n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), MemoryMiB: 4096, Seed: filepath.Join(config, "nodes/k8s-01/seed.iso")}, user, key)
		took[0] = n.kernelToReady("phase      ready since")
		way[0] = passed(n.must(bySelf, 2*time.Minute))
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
		took[1] = n.kernelToReady("by hand: ready")
		way[1] = passed(n.must("cat /root/passed", time.Minute))
	})
	if t.Failed() {
		return
	}
	t.Log("\n" + pathTable(t, way[0], way[1]))
	ratio := took[0].Seconds() / took[1].Seconds()
	t.Logf("kernel to Ready: by itself %s, by hand %s, ratio %.2f (goal %.2f)", took[0], took[1], ratio, maxBootRatio)
	if ratio > maxBootRatio {
		t.Errorf("ratio %.2f", ratio)
	}
}

// kernelToReady is how long after the kernel's start the Node became Ready, as
// the API server says. It is asked when the console says so, because questions
// take from the machine.
func (n *node) kernelToReady(shown string) time.Duration {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 15*time.Minute)
	defer cancel()
	if err := n.WaitConsole(ctx, shown); err != nil {
		r, _ := n.try("tail -n 20 /root/init.log; journalctl -u kimage-agent -o cat --no-pager | tail -n 20", 2*time.Minute)
		n.t.Fatalf("%v\n%s", err, r.Stdout)
	}
	out := n.must(kubectl+`get nodes -o jsonpath='{range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.lastTransitionTime}{end}'`, 2*time.Minute)
	at, _ := strings.CutPrefix(out, "True ")
	when, err := time.Parse(time.RFC3339, at)
	if err != nil {
		n.t.Fatalf("%q: %v", out, err)
	}
	booted, err := time.Parse(time.DateTime, n.must("date -u -d @$(sed -n 's/^btime //p' /proc/stat) '+%Y-%m-%d %H:%M:%S'", time.Minute))
	if err != nil {
		n.t.Fatal(err)
	}
	return when.Sub(booted)
}

// TestBootPath logs how long a machine takes to multi-user.target, and which units
// took longest, says systemd.
func TestBootPath(t *testing.T) {
	if os.Getenv("KIMAGE_E2E_BOOT") == "" {
		t.Skip("measured by make bench-boot")
	}
	n := boot(t, qemu.BIOS, 2048)
	n.settled()
	t.Log("\n" + n.must("systemd-analyze time; systemd-analyze blame --no-pager | head -n 20; systemd-analyze critical-chain --no-pager", 2*time.Minute))
}

// kubernetesVersion is the image's.
func kubernetesVersion(t *testing.T) string {
	t.Helper()
	var in struct {
		Manifest struct{ Kubernetes string }
	}
	if err := json.Unmarshal([]byte(need.Judge(t, "../bin/kimage", "inspect", image, "--json")), &in); err != nil {
		t.Fatal(err)
	}
	return in.Manifest.Kubernetes
}
