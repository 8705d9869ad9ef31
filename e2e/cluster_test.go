//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
)

// etcdHealth asks the etcd of the one machine.
const etcdHealth = "etcdctl --endpoints=https://10.0.2.15:2379 --cacert=/etc/kimage/pki/etcd-ca.crt --cert=/etc/kimage/pki/etcd-agent.crt --key=/etc/kimage/pki/etcd-agent.key endpoint health --cluster"

// TestTopology1: a machine powers on with what kimage config wrote, boots by UEFI, and
// becomes a cluster by itself: nobody runs a command, and no network leads out.
func TestTopology1(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	// Without a route to anywhere and without a DNS server; static, since a DHCP
	// server would tell both.
	text := strings.NewReplacer("OSNAME", system, "SSHKEY", key.Public, "    SNIPPET\n", "", wayOut, "mtu: 1500").Replace(clusterFile)
	config := configsOf(t, text, "--seed")
	capture := filepath.Join(t.TempDir(), "packets")
	started := time.Now()
	n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), Firmware: qemu.UEFI, MemoryMiB: 4096, Seed: filepath.Join(config, "nodes/k8s-01/seed.iso"), Capture: capture}, user, key)
	ctx, cancel := context.WithTimeout(t.Context(), slack*15*time.Minute)
	defer cancel()
	if err := n.awaitReady(ctx); err != nil {
		r, _ := n.try("kimage-agent status; journalctl -u kimage-agent -o cat --no-pager | tail -n 30", 2*time.Minute)
		t.Fatalf("%v\n%s", err, r.Stdout)
	}
	t.Logf("Ready %s after power-on", time.Since(started).Round(time.Second))
	n.told(false)
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
	n.cutsNothing()
	n.small()
	if os.Getenv("CI") == "" { // there TestMasterCertifiesItself of package kube moves the clock
		n.twoYearsLater()
	}
	n.keptToItself(capture)
}

// cutsNothing: a watch that goes through the balancer outlives the agent.
func (n *node) cutsNothing() {
	n.t.Helper()
	const script = `grep -q 127.0.0.1:7445 /etc/kubernetes/admin.conf || exit
timeout 300 ` + kubectl + `get --raw "/api/v1/nodes?watch=1" >/run/watched 2>&1 &
for i in $(seq 60); do [ -s /run/watched ] && break; sleep 1; done
systemctl restart kimage-agent && sleep 10
[ -s /run/watched ] && kill -0 $! && echo it goes on
kill $!`
	if out := n.must("bash -c '"+strings.ReplaceAll(script, "KUBECONFIG=", "env KUBECONFIG=")+"'", 3*time.Minute); !strings.HasPrefix(out, "it goes on") {
		n.t.Errorf("a watch that was open while the agent ended: %q, %s", out, n.must("tail -c 300 /run/watched", time.Minute))
	}
	n.until(`"phase": "ready"`, "kimage-agent status --json || true", 2*time.Minute)
}

// twoYearsLater switches the machine on again when all certificates that kubeadm
// and the cluster issued have ended, and nobody has an API server.
func (n *node) twoYearsLater() {
	n.t.Helper()
	n.must("timedatectl set-ntp false || true; timedatectl set-time \"$(date -d '+2 years' '+%F %T')\"", time.Minute)
	n.reboot()
	started := time.Now()
	n.until(`"phase": "ready"`, "kimage-agent status --json || true", 10*time.Minute)
	n.until(" Ready ", kubectl+"get nodes --no-headers", 2*time.Minute)
	if year := n.must("date +%Y", time.Minute); year < fmt.Sprint(time.Now().Year()+2) {
		n.t.Errorf("the machine is in the year %s", year)
	}
	n.t.Logf("two years later: Ready %s after the machine was up again", time.Since(started).Round(time.Second))
}

// leaves are packets to addresses outside of 10.0.2.0/24, but for those that no
// router passes on: to all machines of a network and to groups of them.
const leaves = "(ip and not dst net 10.0.2.0/24 and not dst net 224.0.0.0/4 and not dst host 255.255.255.255) or (ip6 and not dst net fe80::/10 and not dst net ff00::/8)"

// keptToItself: a machine has a route to its subnet alone, and none of its
// packets, says tcpdump, was for an address outside of it.
func (n *node) keptToItself(capture string) {
	n.t.Helper()
	if routes := n.must("ip route show default; ip -6 route show default; cat /run/systemd/resolve/resolv.conf | grep ^nameserver || true", time.Minute); routes != "" {
		n.t.Errorf("the machine knows a way out:\n%s", routes)
	}
	packets := func(filter string) []string {
		out, err := exec.Command("tcpdump", "-n", "-q", "-r", capture, "ether src "+qemu.MAC+" and ("+filter+")").Output()
		if err != nil {
			n.t.Fatalf("tcpdump: %v", err)
		}
		return slices.Collect(strings.Lines(string(out)))
	}
	all, out := packets("ip or ip6"), packets(leaves)
	n.t.Logf("of %d packets %d leave the subnet", len(all), len(out))
	if len(all) < 100 || len(out) > 0 {
		n.t.Errorf("%d packets, of which %d leave the subnet:\n%s", len(all), len(out), strings.Join(out[:min(len(out), 20)], ""))
	}
}
