//go:build e2e

package e2e

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
)

const moreNodes = `  - {name: k8s-02, roles: [etcd, master, worker], address: 192.168.77.102, match: {mac: "52:54:00:17:08:02"}}
  - {name: k8s-03, roles: [etcd, worker], address: 192.168.77.103, match: {mac: "52:54:00:17:08:03"}}
`

// TestServe3: three machines with empty disks, one of them with UEFI, are switched on at
// once; each is installed, and they become one cluster.
func TestServe3(t *testing.T) {
	enough(t, 3, "make e2e-all")
	allAsked(t)
	r := newRoomOf(t, moreNodes+unhurried(2), system, user, image, "--dhcp-range", "192.168.77.101-192.168.77.150")
	started := time.Now()
	var all []*metalMachine
	var players []player
	for number, firmware := range []string{qemu.BIOS, qemu.UEFI, qemu.BIOS} {
		m := r.machine(number+1, firmware)
		m.memory = 2560
		if m.name == "k8s-03" {
			m.cpus, m.memory = 1, 1536
		}
		m.on()
		all = append(all, m)
		players = append(players, player{m.name != "k8s-03", func() string {
			phase, _, _ := strings.Cut(m.phase(m.name), " ")
			return phase
		}, func(nice int) error { return qemu.Renice(m.cmd.Process.Pid, nice) }})
	}
	ctx, cancel := context.WithCancel(t.Context())
	var turns sync.WaitGroup
	turns.Go(func() { takeTurns(ctx, t, players) })
	defer turns.Wait() // they look at the machines, which are gone when the story has ended
	defer cancel()
	for _, m := range all {
		m.awaitPhase("ready", time.Until(started.Add(60*time.Minute)))
		t.Logf("%s is Ready %s after power-on", m.name, time.Since(started).Round(time.Second))
	}
	// Who stepped back has much to do now.
	cancel()
	turns.Wait()
	for end := time.Now().Add(10 * time.Minute); ; time.Sleep(10 * time.Second) {
		out, err := all[0].try("sudo " + membersHealth)
		if err == nil && strings.Count(out, "is healthy") == len(all) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("etcd: %v\n%s", err, out)
		}
	}
	t.Logf("all members are healthy %s after power-on", time.Since(started).Round(time.Second))
	for _, m := range all {
		if n := strings.Count(r.words(), m.name+": installing: to vda"); n != 1 {
			t.Errorf("%s was installed %d times", m.name, n)
		}
	}
	if out := all[0].ssh("sudo " + kubectl + "get nodes --no-headers | awk '{print $1, $2}'"); out != "k8s-01 Ready\nk8s-02 Ready\nk8s-03 Ready" {
		t.Errorf("Nodes:\n%s", out)
	}
}
