//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
)

// etcdHealth asks the etcd of the one machine.
const etcdHealth = "etcdctl --endpoints=https://10.0.2.15:2379 --cacert=/etc/kimage/pki/etcd-ca.crt --cert=/etc/kimage/pki/etcd-agent.crt --key=/etc/kimage/pki/etcd-agent.key endpoint health --cluster"

// TestTopology1: a machine powers on with what kimage config wrote, and becomes
// a cluster by itself: nobody runs a command, and no network leads out.
func TestTopology1(t *testing.T) {
	key, err := qemu.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	config := configs(t, system, key.Public, "", "--seed")
	started := time.Now()
	n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), MemoryMiB: 4096, Seed: filepath.Join(config, "nodes/k8s-01/seed.iso")}, user, key)
	n.until(`"phase": "ready"`, "kimage-agent status --json || true; journalctl -u kimage-agent -o cat --no-pager | tail -n 8", 15*time.Minute)
	t.Logf("Ready %s after power-on", time.Since(started).Round(time.Second))
	n.told()
	n.must("cloud-init status --long", time.Minute) // degraded is not 0
	n.until(" Ready ", kubectl+"get nodes --no-headers", time.Minute)
	n.until("Running", kubectl+"get pods -n kube-system -l k8s-app=kube-dns --no-headers | grep -v Running || echo Running", 6*time.Minute)
	health := n.must(etcdHealth, 2*time.Minute)
	if !strings.Contains(health, "is healthy") {
		t.Error(health)
	}
	t.Log(n.must("journalctl -u kimage-agent -o cat --no-pager | grep '^phase'", time.Minute))
	n.quick()
	if failed := n.must("systemctl --failed --no-legend --plain", time.Minute); failed != "" {
		t.Errorf("units failed:\n%s", failed)
	}
	n.timeline()
	n.small()
	n.reboot()
	n.until(`"phase": "ready"`, "kimage-agent status --json || true", 8*time.Minute)
}
