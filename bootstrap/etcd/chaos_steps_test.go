//go:build chaos

package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// death ends an agent's process as kill -9 does, right after its nth step. A
// step is what an action is made of: one fact written, one directory made or
// moved, one record sent, one start of etcd. So every action is among the
// places, and every place between its parts.
type death struct {
	After int
	Power bool   // etcd dies with it
	Note  string // file that says after which step
	state string

	mu    sync.Mutex
	steps int
}

func (d *death) came() bool {
	_, err := os.Stat(d.Note)
	return err == nil
}

func (d *death) step(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.steps++; d.steps != d.After {
		return
	}
	os.WriteFile(d.Note, fmt.Appendf(nil, format, args...), 0o600)
	if pid := etcdOf(d.state); d.Power && pid != 0 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// counting looks at what a.apply, and the answers to others, do to the world.
func (d *death) counting(a *Agent) {
	a.member.disk = dyingDisk{a.member.disk, d}
	ask, make, start := a.ask, a.make, a.cfg.Start
	a.ask = func(ctx context.Context, m nodeconf.Member, q Question) (Status, error) {
		st, err := ask(ctx, m, q)
		if q.Record != nil {
			d.step("propose to %s", m.Name)
		}
		return st, err
	}
	a.make = func(ctx context.Context, rec Record) (string, error) {
		made, err := make(ctx, rec)
		d.step("make the data")
		return made, err
	}
	a.cfg.Start = func(ctx context.Context, l Launch) error {
		err := start(ctx, l)
		d.step("start etcd")
		return err
	}
}

type dyingDisk struct {
	disk
	death *death
}

func (d dyingDisk) save(file string, content any) error {
	err := d.disk.save(file, content)
	d.death.step("write %s", file)
	return err
}

func (d dyingDisk) move(from, to string) error {
	err := d.disk.move(from, to)
	d.death.step("move the data")
	return err
}

// moreSteps is more than any member needs to found.
const moreSteps = 20

// TestChaosSteps kills the agent of each member in turn after each of its
// steps, until it founds without reaching another. Where many schedules are
// asked for, etcd dies with it in a second round.
func TestChaosSteps(t *testing.T) {
	built := programs(t)
	rounds := []string{"agent", "power"}
	if *chaosSchedules <= 12 {
		rounds = rounds[:1]
	}
	for _, round := range rounds {
		steps := [3][moreSteps]string{}
		t.Run(round, func(t *testing.T) {
			for i, name := range []string{"a", "b", "c"} {
				for n := range moreSteps {
					t.Run(fmt.Sprint(name, n+1), func(t *testing.T) {
						t.Parallel()
						c := newChaos(t, uint64(1_000_000+n*100+i*10+len(rounds)), built, 3)
						steps[i][n] = c.killedAfter(c.machines[i], n+1, round == "power", built["etcdutl"])
					})
				}
			}
		})
		for i, name := range []string{"a", "b", "c"} {
			reached := slices.Index(steps[i][:], "")
			if reached < 8 || slices.ContainsFunc(steps[i][reached:], func(s string) bool { return s != "" }) {
				t.Errorf("%s, %s: it died after %q", round, name, steps[i])
				continue
			}
			t.Logf("%s, %s was killed after each of: %s", round, name, strings.Join(steps[i][:reached], "; "))
		}
	}
}

// killedAfter founds while m is killed after its nth step, and returns what that
// was; empty: there was none.
func (c *chaos) killedAfter(m *chaosMachine, n int, power bool, etcdutl string) string {
	note := filepath.Join(m.Dir, "died")
	for _, o := range c.machines {
		o.Etcdutl = etcdutl // nothing else happens that could hit a slow one
		if o == m {
			o.Death = &death{After: n, Power: power, Note: note}
		}
		c.tell(o)
		c.boot(o)
	}
	for start := time.Now(); time.Since(start) < time.Minute; {
		c.wait(100 * time.Millisecond)
		if ok, how := c.founded(); ok && how == allServe {
			step, _ := os.ReadFile(note)
			return string(step)
		}
	}
	for _, o := range c.machines {
		c.t.Errorf("%s: %s", o.Name, o.said())
		log, _ := os.ReadFile(filepath.Join(o.Dir, "agent.log"))
		c.t.Logf("%.6000s", log)
	}
	return ""
}

// tell writes what an agent reads when it begins.
func (c *chaos) tell(m *chaosMachine) {
	data, err := json.Marshal(m.chaosNode)
	c.must(err)
	file := filepath.Join(m.Dir, "node.json")
	c.must(os.WriteFile(file+".new", data, 0o600))
	c.must(os.Rename(file+".new", file))
}
