//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
)

// cutPhases are the agent's phases before Ready, in their order, and how long each
// lasts as a part of the boot before them (of 26 s by a machine's own clock: 4, 6, 42 and
// 21 s); that is measured again in each life.
var cutPhases = []struct {
	name string
	long float64
}{{"etcd", 0.15}, {"waiting", 0.25}, {"init", 1.6}, {"joined", 0.8}}

// cut is one power cut that is still to come, at a part of a phase.
type cut struct {
	phase string
	at    float64 // of the phase's length
}

// cutsOf reads KIMAGE_CUTS, how many cuts of a phase are asked for: so many in each,
// or etcd=1,init=2.
func cutsOf(t *testing.T, phase string) int {
	t.Helper()
	setting := os.Getenv("KIMAGE_CUTS")
	if setting == "" && os.Getenv("KIMAGE_E2E_ALL") == "" {
		t.Skip("hours of power cuts: make e2e-all, or KIMAGE_CUTS=n in each phase, or KIMAGE_CUTS=etcd=1,init=2")
	}
	number := "10"
	if setting != "" {
		number = setting
	}
	if strings.Contains(setting, "=") {
		_, rest, _ := strings.Cut(","+setting, ","+phase+"=")
		number, _, _ = strings.Cut("0"+rest, ",")
	}
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("KIMAGE_CUTS=%s: %v", setting, err)
	}
	return n
}

// TestPowerCuts: the power of a machine that becomes a cluster is cut at random
// moments of each phase, and each time it gets there after it is switched on
// again. The machine does not notice: its disk is copied as qemu's death would
// leave it, the machine is paused, and another one boots from the copy.
// KIMAGE_SEED repeats a run, as far as emulation does.
func TestPowerCuts(t *testing.T) {
	var open []cut
	for _, p := range cutPhases {
		open = append(open, slices.Repeat([]cut{{phase: p.name}}, cutsOf(t, p.name))...)
	}
	random := randomOf(t)
	key := newKey(t)
	config := filepath.Join(configs(t, system, key.Public, "", "--seed"), "nodes/k8s-01/seed.iso")
	long := map[string]time.Duration{}
	number := 0
	for life := 1; len(open) > 0; life++ {
		if life > 5 {
			t.Fatalf("in so many lives no moment came for %v", open)
		}
		for i := range open {
			open[i].at = random.Float64()
		}
		slices.SortFunc(open, func(x, y cut) int { return int(1e6 * (x.at - y.at)) })
		m := machineOf(t, qemu.Config{Dir: filepath.Join(t.TempDir(), fmt.Sprint("life", life)), Image: image, Format: "raw", DiskGiB: 20, Seed: config})
		spent := map[string]time.Duration{}
		for at, last := "", time.Now(); at != "ready" && len(open) > 0; time.Sleep(50 * time.Millisecond) {
			now := time.Now()
			spent[at] += now.Sub(last)
			at, last = phaseOf(m), now
			if at != "" && len(long) == 0 { // it has booted
				for _, p := range cutPhases {
					long[p.name] = time.Duration(p.long * float64(spent[""]))
				}
			}
			i := slices.IndexFunc(open, func(c cut) bool { return c.phase == at && spent[at] >= time.Duration(c.at*float64(long[at])) })
			if i < 0 {
				continue
			}
			number++
			t.Logf("cut %d: %s into %s", number, spent[at].Round(100*time.Millisecond), at)
			powerCut(t, m, qemu.Config{Dir: filepath.Join(t.TempDir(), "again"), Format: "qcow2", Seed: config}, key)
			open, last = slices.Delete(open, i, i+1), time.Now()
		}
		m.Kill()
		for name := range long {
			if spent[name] > 0 {
				long[name] = spent[name]
				continue
			}
			// A phase that is over before a screen shows it: others' cuts hit it too.
			left := len(open)
			if open = slices.DeleteFunc(open, func(c cut) bool { return c.phase == name }); len(open) < left {
				t.Logf("no screen ever showed the phase %s: %d cuts less", name, left-len(open))
			}
		}
		t.Logf("life %d: %v", life, spent)
	}
}

// randomOf is repeated by KIMAGE_SEED.
func randomOf(t *testing.T) *rand.Rand {
	seed, err := strconv.ParseUint(os.Getenv("KIMAGE_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("KIMAGE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestJoinCuts: a worker loses its power at random moments of its join, is switched
// on again and becomes a Node; then it is imaged again, for the next cut.
func TestJoinCuts(t *testing.T) {
	number := cutsOf(t, "join")
	enough(t, 2, "make e2e-all")
	if number == 0 {
		return
	}
	random := randomOf(t)
	c := describe(t, "1", "--workers", "1")
	defer c.explain()
	master, worker := c.nodes[0], c.nodes[1]
	master.start()
	awaits := func(n *clusterNode) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), slack*20*time.Minute)
		defer cancel()
		if err := n.awaitReady(ctx); err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
	}
	awaits(master)
	long := time.Hour // the phase's length, measured whenever no cut came: at first, most often
	for done, life := 0, 1; done < number; life++ {
		if life > 3*number+3 {
			t.Fatalf("%d cuts in so many lives", done)
		}
		moment := time.Duration(random.Float64() * float64(long))
		if err := worker.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		spent := worker.untilIn("join", moment)
		if spent < moment {
			t.Logf("the join took %s, less than %s", spent.Round(100*time.Millisecond), moment.Round(100*time.Millisecond))
			long = spent
		} else {
			done++
			worker.Kill()
			t.Logf("cut %d: %s into join", done, spent.Round(100*time.Millisecond))
			started := time.Now()
			if err := worker.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			master.until(worker.name+" True", kubectl+`get nodes -o jsonpath='{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}'`, 20*time.Minute)
			t.Logf("a Ready Node %s after it was switched on again", time.Since(started).Round(time.Second))
			worker.until(`"phase":"ready"`, "cat /run/kimage/phase.json", 5*time.Minute)
			if failed := worker.must("systemctl --failed --no-legend --plain", time.Minute); failed != "" {
				t.Errorf("units failed:\n%s", failed)
			}
		}
		worker.image(c.t)
		master.must(kubectl+"delete node "+worker.name+" --ignore-not-found --timeout=2m", 3*time.Minute)
	}
}

// untilIn waits until a machine has spent so long in a phase, and returns how long
// that was: less, if the phase was over before.
func (n *clusterNode) untilIn(phase string, long time.Duration) (spent time.Duration) {
	n.t.Helper()
	const limit = slack * 20 * time.Minute
	for began, last, was := time.Now(), time.Now(), ""; ; time.Sleep(50 * time.Millisecond) {
		now, is := time.Now(), phaseOf(n.Machine)
		if was == phase {
			spent += now.Sub(last)
		}
		switch {
		case is == phase && spent >= long, was == phase && is != phase, is == "ready":
			return spent
		case now.Sub(began) > limit:
			n.t.Fatalf("%s was never in %s, and is in %q", n.name, phase, is)
		}
		last, was = now, is
	}
}

func machineOf(t *testing.T, c qemu.Config) *qemu.Machine {
	t.Helper()
	c.CPUs, c.MemoryMiB, c.Isolated, c.Paced = 2, 4096, true, true
	m, err := qemu.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		if t.Failed() {
			t.Logf("console:\n%s", lastLines(m.Console(), 60))
		}
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

var consolePhase = regexp.MustCompile(`phase {6}([a-z]+) since`)

// phaseOf is the last phase that the agent told of on the console.
func phaseOf(m *qemu.Machine) string {
	all := consolePhase.FindAllStringSubmatch(m.Console(), -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}

// powerCut boots a machine from what a power cut leaves of m's disk, while m is
// paused, and waits until it is Ready.
func powerCut(t *testing.T, m *qemu.Machine, c qemu.Config, key qemu.Key) {
	t.Helper()
	c.Image = c.Dir + ".qcow2"
	for _, step := range []func() error{
		func() error { return m.CopyDisk(t.Context(), c.Image) },
		func() error { return m.Pause(t.Context()) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	started := time.Now()
	n := &node{machineOf(t, c), t, user, key}
	ctx, cancel := context.WithTimeout(t.Context(), slack*20*time.Minute)
	defer cancel()
	if err := n.awaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	n.until(" Ready ", kubectl+"get nodes --no-headers", time.Minute)
	n.must("kimage-agent status", 2*time.Minute) // the runtime has all images, too
	if out := n.must("ls -d /var/lib/kimage/state/etcd/*/member/wal", time.Minute); strings.Contains(out, "\n") {
		t.Errorf("etcd has data of several incarnations:\n%s", out)
	}
	n.until("is healthy", etcdHealth, 2*time.Minute)
	t.Log(n.must("journalctl -u kimage-agent -o cat --no-pager | grep ^ready:", time.Minute))
	t.Logf("Ready %s after it was switched on again", time.Since(started).Round(time.Second))
	n.Kill()
	for _, file := range []string{n.Disk(), c.Image} {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
}
