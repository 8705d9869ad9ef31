//go:build integration

package kube

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// idle is the agent's loop on a machine that is Ready, in a process of its own
// beside the machine's first one: what it does every ten seconds. It prints what
// part of a core that took.
func (m machine) idle() error {
	window, err := time.ParseDuration(os.Getenv("KIMAGE_WINDOW"))
	if err != nil {
		window = time.Minute
	}
	n, err := New(Config{Node: m.Config, Name: m.Name, Addresses: []string{m.Address}, Roster: m.roster, Logf: log.Printf})
	if err != nil {
		return err
	}
	used := func() (sum time.Duration) {
		for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
			var u syscall.Rusage
			if err := syscall.Getrusage(who, &u); err == nil {
				sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
			}
		}
		return sum
	}
	look := func(ctx context.Context) error {
		if err := n.Apply(ctx, Decide(n.Observe(ctx))); err != nil {
			return err
		}
		if ready, why := n.Ready(ctx); !ready {
			return fmt.Errorf("not Ready: %s", why)
		}
		_, err := n.APIServers(ctx)
		return err
	}
	ctx := context.Background()
	if err := look(ctx); err != nil { // connections are made once
		return err
	}
	before, began, looks := used(), time.Now(), 0
	for ; time.Since(began) < window; looks++ {
		time.Sleep(10 * time.Second)
		if err := look(ctx); err != nil {
			return err
		}
	}
	percent := 100 * (used() - before).Seconds() / time.Since(began).Seconds()
	fmt.Printf("IDLE %.4f %% of a core, %d looks in %s\n", percent, looks, time.Since(began).Round(time.Second))
	return nil
}

// ownPart is what a master itself does on its way, by its log: between the
// decision to initialise and kubeadm's first line, and from its last line on
// until all is provisioned. kubeadm's own beginning is counted in.
func (c *cluster) ownPart(name string) (before, after time.Duration) {
	c.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, name, "log"))
	if err != nil {
		c.Fatal(err)
	}
	var decided, first, last, end time.Time
	for line := range strings.Lines(string(data)) {
		stamp, what, _ := strings.Cut(line, " ")
		at, err := time.Parse("15:04:05.000000", stamp)
		switch {
		case err != nil:
		case strings.HasPrefix(what, "DECIDE init"):
			decided = at
		case strings.HasPrefix(what, "kubeadm init:"):
			if last = at; first.IsZero() {
				first = at
			}
		case strings.HasPrefix(what, "provisioned "):
			end = at
		}
	}
	if decided.IsZero() || first.IsZero() || end.IsZero() {
		c.Fatalf("the log of %s does not show it", name)
	}
	return first.Sub(decided), end.Sub(last)
}

// TestIdle: a master does little itself on its way to Ready, and takes next to
// nothing for being looked after when it is.
func TestIdle(t *testing.T) {
	const limit = 0.05 // % of a core; the rest of 0.2 is for what founded etcd (TestEtcdIdle) and the balancer
	peers := storyPeers()
	peers.Nodes = append(peers.Nodes[:1], peers.Nodes[2:]...)
	c := newCluster(t, peers)
	c.startMaster("m1", m1)
	c.joined("m1")
	c.ready(m1, "m1", "")
	c.provisioned()
	before, after := c.ownPart("m1")
	t.Logf("its own part: %s before kubeadm, %s after it", before.Round(time.Millisecond), after.Round(time.Millisecond))
	if before+after > time.Second {
		t.Errorf("its own part is %s", before+after)
	}
	if before+after > time.Second {
		t.Error("that is more than a second")
	}
	cmd := exec.Command("nsenter", "--all", "--target", c.firstProcess("m1"), "--", os.Args[0])
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "KIMAGE_TEST_IDLE=1", "KIMAGE_TEST_MACHINE="+filepath.Join(c.dir, "m1/machine.json"))
	out, err := cmd.CombinedOutput()
	var percent float64
	for line := range strings.Lines(string(out)) {
		if _, err := fmt.Sscanf(line, "IDLE %f", &percent); err == nil {
			t.Log(strings.TrimSpace(line))
		}
	}
	if err != nil || percent == 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	if percent > limit {
		t.Errorf("it takes %.4f %% of a core", percent)
	}
}

// firstProcess is the ID of a machine's first process: unshare's child.
func (c *cluster) firstProcess(name string) string {
	c.Helper()
	pid := c.running[name].Process.Pid
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		c.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
