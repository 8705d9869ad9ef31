//go:build chaos

package etcd

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// members are the machines of the newest roster.
func (c *chaos) members() (all []*chaosMachine) {
	for _, m := range c.machines {
		for _, r := range c.roster.Members {
			if r.Name == m.Name {
				all = append(all, m)
			}
		}
	}
	return all
}

// whole says whether the members are those of the roster, all voters, and all
// serve; or what is missing.
func (c *chaos) whole() string {
	members := c.members()
	for _, m := range members {
		if said := m.said(); said != string(Keep)+": etcd runs" {
			return m.Name + " says " + said
		}
	}
	for _, m := range c.machines {
		if said := m.said(); !slices.Contains(members, m) && m.agent != nil && !strings.Contains(said, "can be switched off") {
			return m.Name + " says " + said
		}
	}
	for _, m := range members {
		out, err := c.ctl(m, "member", "list")
		if err != nil {
			return err.Error()
		}
		if all := string(out); strings.Count(all, "\n") != len(members) || strings.Count(all, ", started, ") != len(members) || strings.Count(all, ", false\n") != len(members) {
			return "members are\n" + all
		}
	}
	return ""
}

// calm ends all faults and waits until the cluster is whole.
func (c *chaos) calm() {
	c.note("faults end")
	for _, undo := range c.undo {
		undo()
	}
	c.undo = nil
	for _, m := range c.machines {
		m.armed = false
	}
	missing := ""
	for start := time.Now(); time.Since(start) < 3*time.Minute; {
		c.wait(300 * time.Millisecond)
		if missing = c.whole(); missing == "" {
			c.note("whole")
			return
		}
	}
	c.t.Fatalf("the cluster is not repaired: %s", missing)
}

// lose takes something from a member, or changes the roster: what repair is for.
// The others are whole.
func (c *chaos) lose() {
	members := c.members()
	m := members[c.r.IntN(len(members))]
	off := func() {
		c.kill(m)
		c.killEtcd(m)
	}
	switch c.r.IntN(6) {
	case 0:
		c.note("%s: imaged again", m.Name)
		off()
		c.image(m)
	case 1:
		c.note("%s: rm -rf of the data", m.Name)
		c.killEtcd(m)
		data, _ := filepath.Glob(filepath.Join(m.state(), dataDir, "*"))
		for _, d := range data {
			os.Rename(d, filepath.Join(m.Dir, "removed"))
			os.RemoveAll(filepath.Join(m.Dir, "removed"))
		}
	case 2:
		c.note("%s: its log is damaged", m.Name)
		off()
		c.damage(m)
	case 3:
		c.note("%s: an older copy of its disk is put back", m.Name)
		off()
		old := filepath.Join(m.Dir, "old")
		c.must(exec.Command("cp", "-a", m.disk(), old).Run())
		c.boot(m)
		for end := time.Now().Add(time.Minute); !strings.HasPrefix(m.said(), string(Keep)) && time.Now().Before(end); {
			c.wait(100 * time.Millisecond)
		}
		c.wait(2 * time.Second) // in which it is asked, and writes come
		off()
		c.must(os.RemoveAll(m.disk()))
		c.must(os.Rename(old, m.disk()))
	default:
		c.change()
	}
}

// damage turns a bit in the middle of a log's records.
func (c *chaos) damage(m *chaosMachine) {
	logs, err := filepath.Glob(filepath.Join(m.state(), dataDir, "*", "member", "wal", "*.wal"))
	c.must(err)
	logs = slices.DeleteFunc(logs, func(f string) bool { return strings.Contains(f, asideHead) })
	slices.Sort(logs)
	if len(logs) == 0 {
		return
	}
	f, err := os.OpenFile(logs[len(logs)-1], os.O_RDWR, 0)
	c.must(err)
	defer f.Close()
	var b [1]byte
	const at = 700 // among the first entries
	_, err = f.ReadAt(b[:], at)
	c.must(err)
	b[0] ^= 4
	_, err = f.WriteAt(b[:], at)
	c.must(err)
}

// change makes a roster with another member, two more, or two less. The new ones
// are imaged with it; of the old ones some are told of it.
func (c *chaos) change() {
	now := c.members()
	var out []*chaosMachine
	for _, m := range c.machines {
		if !slices.Contains(now, m) {
			out = append(out, m)
		}
	}
	next := slices.Clone(now)
	switch {
	case len(now) == 5:
		c.r.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
		next = next[:3]
	case c.r.IntN(3) == 0:
		next = append(next, out...)
	default:
		next[c.r.IntN(len(next))] = out[c.r.IntN(len(out))]
	}
	c.roster.Serial++
	signed := c.sign(next)
	var names []string
	told := false
	for _, m := range next {
		names = append(names, m.Name)
		if fresh := !slices.Contains(now, m); fresh || len(next) < len(now) && !told {
			told = true
			m.Roster = signed
			c.tell(m)
			c.kill(m)
			if fresh {
				c.killEtcd(m)
				c.image(m)
			}
			c.boot(m)
		}
	}
	c.note("roster %d: %s", c.roster.Serial, strings.Join(names, " "))
}

// TestChaosRepair loses data and machines and changes the roster, on real etcd,
// while a client writes and the faults of TestChaos go on. Needs root and network
// namespaces.
func TestChaosRepair(t *testing.T) {
	built := programs(t)
	seeds := []uint64{*simSeed}
	if *simSeed == 0 {
		seeds = nil
		for range *chaosSchedules {
			seeds = append(seeds, rand.Uint64N(1_000_000))
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			c := newChaos(t, seed, built, 5)
			c.lost = 0
			t.Cleanup(func() { c.explain(seed) })
			c.start()
			c.calm()
			c.write()
			start, losses := time.Now(), 3+c.r.IntN(3)
			for range losses {
				c.lose()
				for range c.r.IntN(5) {
					c.fault()
					c.wait(time.Duration(20+c.r.IntN(600)) * time.Millisecond)
				}
				c.calm()
			}
			writes := c.written()
			if writes == 0 {
				t.Error("nothing was written")
			}
			t.Logf("%d losses and changes repaired in %.0f s, %d data directories, %d acknowledged writes are there", losses, time.Since(start).Seconds(), c.check.seen, writes)
		})
	}
}
