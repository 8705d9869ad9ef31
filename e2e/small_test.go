//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap"
)

// What the agent and the balancer may take of a node that is Ready.
const (
	maxRSSKiB = 25 << 10 // each
	// The agent's own part of the time to Ready, by the machine's clock. It is measured
	// while all that begins beside the agent takes its share of the processors, so that
	// only what is silly is found here: the limit, a second, is judged where the agent is
	// alone (TestIdle of package kube). A paced machine does one instruction in a
	// nanosecond, on one of its two processors at a time, whatever the computer does.
	maxOwnSeconds = 4
	// Both together, with all programs that they run. On an emulated core waking up
	// and encrypting cost much more than other work, so that only what is silly is
	// found here. On a core that is not emulated it is measured by TestIdle of the
	// packages kube and balancer, and by TestEtcdIdle.
	maxEmulatedCPUPercent = 15
)

// small: the agent and the balancer of a node that is Ready take next to nothing.
// KIMAGE_E2E_WINDOW is how long that is looked at.
func (n *node) small() {
	n.t.Helper()
	window, err := time.ParseDuration(os.Getenv("KIMAGE_E2E_WINDOW"))
	if err != nil {
		window = time.Minute
	}
	units := []string{"kimage-agent", "kimage-balancer"}
	number := func(command string) float64 {
		out := n.must(command, time.Minute)
		v, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		if err != nil {
			n.t.Fatalf("%s: %q", command, out)
		}
		return v
	}
	look := func(unit string) float64 {
		return number("sed -n 's/^usage_usec //p' /sys/fs/cgroup/system.slice/" + unit + ".service/cpu.stat")
	}
	up := func() float64 { return number("cut -d ' ' -f 1 /proc/uptime") } // a paced machine's seconds are its own
	started := up()
	before := []float64{look(units[0]), look(units[1])}
	n.must(fmt.Sprintf("sleep %.0f", window.Seconds()), 5*window)
	var sum float64
	for i, unit := range units {
		percent := (look(unit) - before[i]) / 1e4 / (up() - started)
		rss := number("sed -n 's/^VmRSS:\\s*\\([0-9]*\\) kB/\\1/p' /proc/$(systemctl show --property=MainPID --value " + unit + ")/status")
		n.t.Logf("%s: RSS %.1f MiB; %.2f %% of an emulated core over %.0f s", unit, rss/1024, percent, up()-started)
		if rss > maxRSSKiB {
			n.t.Errorf("the RSS of %s is %.1f MiB", unit, rss/1024)
		}
		sum += percent
	}
	if sum > maxEmulatedCPUPercent {
		n.t.Errorf("both take %.2f %% of an emulated core", sum)
	}
}

// quick: of the time to Ready the agent's own part is small.
func (n *node) quick() {
	n.t.Helper()
	r, err := n.try("kimage-agent status --json", 2*time.Minute)
	var s bootstrap.Status
	if err != nil || json.Unmarshal([]byte(r.Stdout), &s) != nil || s.Node == nil || s.Node.Took == nil {
		n.t.Fatalf("status (%v):\n%s", err, r.Stdout)
	}
	n.t.Logf("ready: %s", s.Node.Took)
	if own := s.Node.Took.Own; own > maxOwnSeconds {
		n.t.Errorf("the agent's own part is %.1f s of the machine's clock", own)
	}
}
