package etcd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/need"
)

var (
	exploreLosses = flag.Int("losses", 1, "how many disks or data directories are lost")
	exploreSplit  = flag.Bool("split", false, "let other things happen between decision and step")
)

// world is one state of all machines, with what is under way between them.
type world struct {
	*sim
	mail    map[string]Answer // answers under way, by asker and asked
	decided map[string]*decision
}

// decision is what an agent is about to do.
type decision struct {
	state State
	act   Action
}

// clone copies the world, agents with their memory included.
func (w *world) clone() *world {
	s := *w.sim
	c := &world{sim: &s, mail: maps.Clone(w.mail), decided: maps.Clone(w.decided)}
	s.r = rand.New(rand.NewPCG(1, 1))
	s.incarnations, s.owner, s.used = maps.Clone(s.incarnations), maps.Clone(s.owner), maps.Clone(s.used)
	s.trace = slices.Clone(s.trace)
	s.machines = nil
	for _, m := range w.machines {
		n := *m
		n.made = maps.Clone(m.made)
		if m.data != nil {
			d := *m.data
			n.data = &d
		}
		c.start1(&n)
		// All fields, also those that this test does not know.
		old, fresh := m.agent.member, n.agent.member
		disk, random, open := fresh.disk, fresh.random, fresh.open
		reflect.ValueOf(fresh).Elem().Set(reflect.ValueOf(old).Elem())
		fresh.disk, fresh.random, fresh.open = disk, random, open
		n.agent.answers = maps.Clone(m.agent.answers)
		s.machines = append(s.machines, &n)
	}
	return c
}

// start1 begins a life of an agent whose questions are events of their own.
func (w *world) start1(m *simMachine) {
	w.boot(m)
	m.agent.member.random = func() string { return fmt.Sprint(m.name, 1+len(w.incarnations[m.name])) }
	m.agent.offers = nil
	m.agent.ask = func(context.Context, nodeconf.Member, Question) (Status, error) {
		return Status{}, errors.New("proposals come by themselves")
	}
}

// key names the state, so that it is looked at once.
func (w *world) key() string {
	var b strings.Builder
	record := func(r *Record) {
		if r != nil {
			for _, m := range r.Members {
				b.WriteString(m.Incarnation)
			}
		}
		b.WriteByte(';')
	}
	status := func(st Status) {
		b.WriteString(st.Incarnation)
		if st.Data {
			b.WriteByte('+')
		}
		record(st.Record)
	}
	answer := func(m *simMachine, a Answer) {
		if a.AskedAfter == m.agent.member.writes {
			b.WriteByte('!')
		}
		status(a.Status)
	}
	for _, m := range w.machines {
		f := m.facts
		fmt.Fprintf(&b, "\n%s %v %v %v ", f.Incarnation.ID, f.Incarnation.Started, m.etcd, m.data)
		record(f.Record)
		status(m.agent.member.status())
		for _, peer := range w.machines {
			if a, ok := m.agent.answers[peer.name]; ok {
				b.WriteString(peer.name)
				answer(m, a)
			}
			if a, ok := w.mail[m.name+peer.name]; ok {
				b.WriteByte('>')
				answer(m, a)
			}
		}
		if d := w.decided[m.name]; d != nil {
			fmt.Fprint(&b, d.act.Do, d.state.Writes == m.agent.member.writes)
			record(&d.act.Record)
		}
	}
	fmt.Fprint(&b, w.images, w.used)
	return b.String()
}

// next are all worlds that one event makes of this one.
func (w *world) next() (all []*world) {
	event := func(name string, do func(c *world, m []*simMachine)) {
		c := w.clone()
		c.log("%s", name)
		do(c, c.machines)
		all = append(all, c)
	}
	ctx := context.Background()
	for i, m := range w.machines {
		for j, peer := range w.machines {
			pair := m.name + peer.name
			if i == j {
				continue
			}
			// To lose a question or an answer is the same as not to ask.
			if _, under := w.mail[pair]; under {
				event(m.name+" hears "+peer.name, func(c *world, ms []*simMachine) {
					ms[i].agent.hear(peer.name, c.mail[pair])
					delete(c.mail, pair)
				})
			} else {
				event(m.name+" asks "+peer.name+", which answers", func(c *world, ms []*simMachine) {
					own := ms[i].agent.member.observe()
					st, err := ms[j].agent.answer(ctx, m.name, Question{ClusterUID: "uid", Roster: c.rosters[0]})
					if err != nil {
						c.fail("%v", err)
					}
					c.mail[pair] = Answer{AskedAfter: own.Writes, Status: st}
				})
			}
		}
		if d := w.decided[m.name]; d != nil {
			event(m.name+" applies "+string(d.act.Do), func(c *world, ms []*simMachine) {
				c.decided[m.name] = nil
				ms[i].agent.apply(ctx, d.state, d.act)
			})
		} else if s := m.agent.observe(ctx); true {
			act := Decide(s)
			if w.noOldDisk(act); act.Do != Wait && act.Do != Keep && act.Do != Propose && act.Do != Stop {
				event(m.name+" decides "+string(act.Do), func(c *world, ms []*simMachine) {
					if c.decided[m.name] = (&decision{s, act}); !*exploreSplit {
						c.decided[m.name] = nil
						ms[i].agent.apply(ctx, s, act)
					}
				})
			}
		}
		for _, rec := range w.records() {
			event(m.name+" is proposed a record", func(_ *world, ms []*simMachine) { ms[i].agent.member.accept(rec) })
		}
		dies := func(c *world, m *simMachine) {
			c.decided[m.name] = nil
			for _, peer := range c.machines {
				delete(c.mail, m.name+peer.name)
			}
			c.start1(m)
		}
		event(m.name+" is killed", func(c *world, ms []*simMachine) { dies(c, ms[i]) })
		if w.images > 0 && m.facts.Incarnation.ID != "" {
			event(m.name+" is imaged again", func(c *world, ms []*simMachine) {
				c.images--
				ms[i].facts, ms[i].data, ms[i].etcd = Facts{Roster: &c.rosters[0]}, nil, false
				dies(c, ms[i])
			})
			if m.data != nil {
				event(m.name+"'s data is removed", func(c *world, ms []*simMachine) {
					c.images--
					ms[i].data, ms[i].etcd = nil, false
				})
			}
		}
	}
	return all
}

// records are all that name incarnations which have existed.
func (w *world) records() []Record {
	all := []map[string]string{{}}
	for _, m := range w.machines {
		var longer []map[string]string
		for _, id := range slices.Compact(slices.Sorted(slices.Values(w.incarnations[m.name]))) {
			for _, one := range all {
				c := maps.Clone(one)
				c[m.name] = id
				longer = append(longer, c)
			}
		}
		all = longer
	}
	var recs []Record
	for _, one := range all {
		recs = append(recs, compose(w.roster(), w.rosters[0].Digest(), one))
	}
	return recs
}

// TestAllSchedulesOfTwo looks at every state that two members can get into with
// -losses losses of a disk or of data, any number of kills, answers that arrive at
// any time later, and every record that could be proposed, at any time. From
// every 64th state a calm time must lead to a founding.
func TestAllSchedulesOfTwo(t *testing.T) {
	if testing.Short() {
		need.Missing(t, "the patience for a minute or more (-short)")
	}
	first := &world{sim: newSim(t, 1, 2), mail: map[string]Answer{}, decided: map[string]*decision{}}
	first.faults, first.images = false, *exploreLosses
	for _, m := range first.machines {
		m.facts.Roster = &first.rosters[0]
		first.start1(m)
	}
	seen := map[string]bool{first.key(): true}
	founded := 0
	for queue := []*world{first}; len(queue) > 0; queue = queue[1:] {
		for _, w := range queue[0].next() {
			if w.failed != "" {
				t.Fatalf("%s, after\n%s", w.failed, strings.Join(w.trace, "\n"))
			}
			k := w.key()
			if seen[k] {
				continue
			}
			seen[k] = true
			queue = append(queue, w)
			if w.machines[0].data != nil && w.machines[1].data != nil {
				founded++
			}
			if len(seen)%64 == 0 {
				c := w.clone()
				for _, m := range c.machines {
					m.agent.ask = c.sim.ask(m, m.life)
				}
				if c.calm(); c.failed != "" {
					t.Fatalf("%s, after\n%s", c.failed, strings.Join(c.trace, "\n"))
				}
			}
		}
	}
	t.Logf("%d states, %d of them founded", len(seen), founded)
}
