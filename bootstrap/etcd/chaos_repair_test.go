//go:build chaos

package etcd

import (
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
		if data, _ := filepath.Glob(filepath.Join(m.state(), dataDir, "*", "member")); len(data) == 0 {
			return m.Name + " has no data" // and its agent may not have seen that yet
		}
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
// The others are whole. What is returned is called when the cluster is whole
// again.
func (c *chaos) lose() (then func()) {
	then = func() {}
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
		c.removeData(m)
	case 2:
		c.note("%s: its log is damaged", m.Name)
		off()
		c.damage(m)
		then = func() {
			if log, _ := os.ReadFile(filepath.Join(m.Dir, "etcd.log")); unusableBy(string(log)) == "" {
				c.t.Errorf("the log of %s was damaged, and its etcd did not notice", m.Name)
			}
		}
	case 3:
		c.note("%s: an older copy of its disk is put back", m.Name)
		off()
		old := filepath.Join(m.Dir, "old")
		c.must(exec.Command("cp", "-a", m.disk(), old).Run())
		c.boot(m)
		c.must(os.Remove(filepath.Join(m.Dir, "said")))
		for end := time.Now().Add(time.Minute); !strings.HasPrefix(m.said(), string(Keep)) && time.Now().Before(end); {
			c.wait(100 * time.Millisecond)
		}
		served := strings.HasPrefix(m.said(), string(Keep))
		c.wait(2 * time.Second) // in which it is asked, and writes come
		off()
		noticed := func() int {
			log, _ := os.ReadFile(filepath.Join(m.Dir, "agent.log"))
			return strings.Count(string(log), string(SetAside)+": "+oldDisk)
		}
		before := noticed()
		then = func() {
			if served && noticed() == before { // it served, so others have heard of it
				c.t.Errorf("an older copy of the disk of %s was put back, and nobody noticed", m.Name)
			}
		}
		c.lookLast()
		c.must(os.RemoveAll(m.disk()))
		c.must(os.Rename(old, m.disk()))
	default:
		c.change()
	}
	return then
}

// damage turns a bit in what an entry of the log holds. Damage to a record's
// length is not among what must be noticed: etcd takes it for a write that power
// cut off, and goes on without what follows.
func (c *chaos) damage(m *chaosMachine) {
	logs, err := filepath.Glob(filepath.Join(m.state(), dataDir, "*", "member", "wal", "*.wal"))
	c.must(err)
	logs = slices.DeleteFunc(logs, func(f string) bool { return strings.Contains(f, asideHead) })
	slices.Sort(logs)
	last := logs[len(logs)-1]
	data, err := os.ReadFile(last)
	c.must(err)
	const anEntry = 2
	var entries []walRecord
	for r := range walRecords(data) {
		if r.number[1] == anEntry && len(r.bytes[3]) > 0 {
			entries = append(entries, r)
		}
	}
	hit := entries[c.r.IntN(len(entries))]
	data[hit.end-1-c.r.IntN(len(hit.bytes[3]))] ^= 1 << c.r.IntN(8)
	f, err := os.OpenFile(last, os.O_WRONLY, 0)
	c.must(err)
	defer f.Close()
	_, err = f.WriteAt(data[:hit.end], 0)
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
	schedules(t, 5, func(c *chaos) {
		c.lost = 0
		c.start()
		c.calm()
		c.write()
		start, losses := time.Now(), 3+c.r.IntN(3)
		for range losses {
			then := c.lose()
			for range c.r.IntN(5) {
				c.fault()
				c.wait(time.Duration(20+c.r.IntN(600)) * time.Millisecond)
			}
			c.calm()
			then()
		}
		writes := c.written()
		c.lookLast()
		if c.check.changes() < 3 { // the founding ones
			c.t.Errorf("the logs have %d changes of members", c.check.changes())
		}
		if writes == 0 {
			c.t.Error("nothing was written")
		}
		c.t.Logf("%d losses and changes repaired in %.0f s, %d data directories, %d changes of members, %d acknowledged writes are there", losses, time.Since(start).Seconds(), c.check.seen, c.check.changes(), writes)
	})
}
