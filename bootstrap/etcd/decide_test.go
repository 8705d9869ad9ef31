package etcd

import (
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestDecide: b of three members, unless the case says otherwise, has written
// its facts twice.
func TestDecide(t *testing.T) {
	s := newSim(t, 1, 3)
	s.addRoster(3, 1, 2)
	s.addRoster(3, 2, 3)
	const old, now, next, fewer = 0, 1, 2, 3
	r := s.opened[now]
	r.Serial, r.Left = 4, []nodeconf.Member{{Name: "d", PeerURL: "https://10.0.0.4:2380"}}
	s.sign(r)
	record := func(roster int, incarnations string) *Record {
		f := strings.Fields(incarnations)
		r := compose(s.opened[roster], s.rosters[roster].Digest(), map[string]string{"a": f[0], "b": f[1], "c": f[2]})
		return &r
	}
	r1, r2, older := record(now, "a1 b1 c1"), record(now, "a2 b1 c1"), record(old, "a1 b1 c1")
	holds := func(incarnation string, rec *Record) Answer {
		return Answer{AskedAfter: 2, Status: Status{Incarnation: incarnation, Record: rec, Digest: s.rosters[now].Digest()}}
	}
	runs := func(incarnation string, rec *Record) Answer {
		a := holds(incarnation, rec)
		a.Status.Data, a.Status.Generation = true, 1
		return a
	}
	before := func(a Answer) Answer { a.AskedAfter = 1; return a }
	blank := Facts{Incarnation: Incarnation{ID: "b1"}}
	held := func(rec *Record) Facts { f := blank; f.Record = rec; return f }
	withData := func(rec *Record, started bool) Facts {
		f := held(rec)
		f.Data, f.Incarnation.Started = true, started
		f.Cluster = Cluster{ID: rec.ClusterID(), Generation: rec.Generation, Incarnation: "b1"}
		return f
	}
	afterwards := record(fewer, "a1 b1 c1")
	holdsAfterwards := func(incarnation string) Answer {
		a := holds(incarnation, afterwards)
		a.Status.Digest = s.rosters[fewer].Digest()
		return a
	}
	lost := held(r1)
	lost.Incarnation.Started = true

	for _, c := range []struct {
		name    string
		self    string // default b
		roster  int    // default now
		facts   Facts
		unknown string
		offer   *nodeconf.SignedRoster
		running bool
		runsAs  string
		a, b, c Answer
		d       Answer
		do      Verb
		record  *Record
		to      string
		why     string
	}{
		{name: "something is unknown", facts: withData(r1, true), unknown: "not mounted", do: Stop, why: "not mounted"},
		{name: "newer roster", facts: blank, offer: &s.rosters[next], do: TakeRoster},
		{name: "empty disk", do: Renew},
		{name: "data lost", facts: lost, do: Renew, why: "another member"},
		{name: "nobody answers", facts: blank, do: Wait, why: "a (being asked), c (being asked)"},
		{name: "one does not answer", facts: blank, a: holds("a1", nil), c: Answer{Err: "no route"}, do: Wait, why: "c (no route)"},
		{name: "one cannot read its disk", facts: blank, a: holds("a1", nil), c: Answer{AskedAfter: 2, Status: Status{Unknown: "no KIMAGE"}}, do: Wait, why: "c (says: no KIMAGE)"},
		{name: "not the proposer", facts: blank, a: holds("a1", nil), c: holds("c1", nil), do: Wait, why: "proposal of a"},
		{name: "the proposer", self: "a", facts: Facts{Incarnation: Incarnation{ID: "a1"}}, b: holds("b1", nil), c: holds("c1", nil), do: Hold, record: r1},
		{name: "the proposer, before all answered again", self: "a", facts: Facts{Incarnation: Incarnation{ID: "a1"}, Record: r1}, b: before(holds("b1", nil)), c: before(holds("c1", nil)), do: Wait},
		{name: "the proposer proposes", self: "a", facts: Facts{Incarnation: Incarnation{ID: "a1"}, Record: r1}, b: holds("b1", r1), c: holds("c1", nil), do: Propose, record: r1, to: "c"},
		{name: "all hold", facts: held(r1), a: holds("a1", r1), c: holds("c1", r1), do: Found, record: r1},
		{name: "all held, as asked before the last write", facts: held(r1), a: holds("a1", r1), c: before(holds("c1", r1)), do: Wait},
		{name: "one holds another", facts: held(r1), a: holds("a1", r1), c: holds("c1", r2), do: Wait},
		{name: "one was imaged again", facts: held(r1), a: holds("a2", nil), c: holds("c1", r1), do: Wait, why: "proposal of a"},
		{name: "one was imaged again and claims the record", facts: held(r1), a: holds("a2", r1), c: holds("c1", r1), do: Wait},
		{name: "all hold a record of an older roster", facts: held(older), a: holds("a1", older), c: holds("c1", older), do: Wait},
		{name: "the own record names another incarnation", facts: held(record(now, "a1 b0 c1")), a: holds("a1", r1), c: holds("c1", r1), do: Wait},
		{name: "one runs the held record", facts: held(r1), a: runs("a1", r1), do: Found, record: r1},
		{name: "one ran it before the last write", facts: held(r1), a: before(runs("a1", r1)), do: Wait},
		{name: "one runs another record that names me", facts: held(r2), a: runs("a1", r1), do: Hold, record: r1},
		{name: "one runs a record of an older roster that names me", facts: blank, a: runs("a1", older), do: Hold, record: older},
		{name: "one runs a record that does not name me", facts: blank, a: runs("a1", record(now, "a1 b0 c1")), c: runs("c1", record(now, "a1 b0 c1")), do: Wait, why: "waits to be added by a, c"},
		{name: "one runs and all others were imaged again", facts: blank, a: runs("a1", record(now, "a1 b0 c0")), c: holds("c1", nil), do: Wait, why: "b and c were imaged again after a"},
		{name: "one runs and one was imaged again", facts: blank, a: runs("a1", record(now, "a1 b0 c1")), c: holds("c1", nil), do: Wait, why: "waits to be added"},
		{name: "all hold, and who left is silent", roster: fewer, facts: held(afterwards), a: holdsAfterwards("a1"), c: holdsAfterwards("c1"), do: Wait, why: "switch on d"},
		{name: "all hold, and who left has no data", roster: fewer, facts: held(afterwards), a: holdsAfterwards("a1"), c: holdsAfterwards("c1"), d: Answer{AskedAfter: 2}, do: Found, record: afterwards},
		{name: "all hold, and who left has data", roster: fewer, facts: held(afterwards), a: holdsAfterwards("a1"), c: holdsAfterwards("c1"), d: runs("d1", nil), do: Wait, why: "waits to be added by d"},
		{name: "data", facts: withData(r1, false), do: Start},
		{name: "data, and etcd ended", facts: withData(r1, true), do: Start},
		{name: "etcd runs", facts: withData(r1, true), running: true, do: Keep, why: "etcd runs"},
		{name: "etcd runs, all others were imaged again", facts: withData(r1, true), running: true, a: holds("a2", nil), c: holds("c2", nil), do: Keep, why: "kimage recover --from b"},
		{name: "etcd runs, the others were added again", facts: withData(r1, true), running: true, a: runs("a2", nil), c: runs("c2", nil), do: Keep, why: "etcd runs"},
		{name: "data of an older generation", roster: next, facts: withData(r1, true), running: true, do: SetAside},
		{name: "data of no recorded cluster", facts: Facts{Incarnation: Incarnation{ID: "b1"}, Data: true}, do: Stop, why: "another incarnation"},
		{name: "data of another cluster than the record's", facts: func() Facts { f := withData(r1, true); f.Record = r2; return f }(), do: Stop, why: "would have founded another"},
		{name: "all hold, and the cluster went on without this machine", facts: func() Facts { f := held(r1); f.Cluster = Cluster{ID: "1f", Generation: 1, Left: true}; return f }(), a: holds("a1", r1), c: holds("c1", r1), do: Wait, why: "cluster 1f went on"},
		{name: "all hold, and a cluster of the older generation went on", roster: next, facts: func() Facts { f := held(r1); f.Cluster = Cluster{ID: "1f", Generation: 1, Left: true}; return f }(), do: Wait, why: "all founding members must answer once"},
		{name: "the data of a member that joins was removed below its etcd", facts: Facts{Incarnation: Incarnation{ID: "b1", Started: true}, Cluster: Cluster{ID: "1f", Generation: 1, Incarnation: "b1", Member: "2", Joining: "a=https://10.0.0.1:2380"}}, running: true, runsAs: "2", do: SetAside, why: "data is gone"},
		{name: "no member of the roster", self: "x", facts: Facts{Incarnation: Incarnation{ID: "x1"}}, a: holds("a1", r1), do: Wait, why: "can be switched off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			roster := c.roster
			if roster == 0 {
				roster = now
			}
			st := State{Self: c.self, Unknown: c.unknown, Facts: c.facts, Roster: s.opened[roster], Digest: s.rosters[roster].Digest(), Offer: c.offer, Writes: 2, Running: c.running, RunsAs: c.runsAs, Answers: map[string]Answer{}}
			if st.Self == "" {
				st.Self = "b"
			}
			for name, a := range map[string]Answer{"a": c.a, "b": c.b, "c": c.c, "d": c.d} {
				if a.AskedAfter != 0 || a.Err != "" {
					st.Answers[name] = a
				}
			}
			got := Decide(st)
			if got.Do != c.do || !strings.Contains(got.Why, c.why) || strings.Join(got.To, " ") != c.to {
				t.Errorf("got %s (%s) to %v", got.Do, got.Why, got.To)
			}
			if c.record != nil && got.Record.Token() != c.record.Token() {
				t.Errorf("got record %+v", got.Record)
			}
		})
	}
}

// TestNoQuorumIsExplained: a runs etcd and is answered by no quorum. What it says
// names the machines that are missing, also where members were replaced since the
// founding, of which the record knows nothing.
func TestNoQuorumIsExplained(t *testing.T) {
	member := func(name string) EtcdMember {
		return EtcdMember{ID: "id-" + name, Name: name, Incarnation: name + "7", PeerURL: "https://" + name + ":2380"}
	}
	learner := member("d")
	learner.Learner = true
	alone := &View{Cluster: "x", Self: "id-a", Members: []EtcdMember{member("a"), member("b"), member("c"), learner}}
	runs := func(name string) Answer {
		return Answer{Status: Status{Incarnation: name + "7", Data: true, Running: true, Member: "id-" + name}}
	}
	stopped := runs("b")
	stopped.Status.Running = false
	blank := func(incarnation string) Answer { return Answer{Status: Status{Incarnation: incarnation}} }
	off := Answer{Err: "no route to it"}
	for _, c := range []struct {
		name  string
		b, c  Answer
		hears string
		want  string
	}{
		{name: "two are off", b: off, c: off, want: "no quorum, and nothing is changed: of its 3 voters are down: b (no route to it), c (no route to it); switch them on; if they are gone for good, go on with the data of a: kimage recover --from a"},
		{name: "one is off, the other's etcd ended", b: stopped, c: off, want: "are down: b (its etcd does not run), c (no route to it); switch them on"},
		{name: "one is off, and one is heard of", b: off, c: runs("c"), hears: "id-c", want: "yet; of its voters are down: b (no route to it)"},
		{name: "an agent is off", b: off, c: runs("c"), hears: "id-b id-c", want: "no quorum has answered etcd yet"},
		{name: "etcds do not hear each other", b: runs("b"), c: runs("c"), want: "b (this machine's etcd does not hear its etcd), c"},
		{name: "two were imaged again", b: blank("b8"), c: blank("c8"), want: "a majority was lost: b and c were imaged again after a"},
		{name: "one was imaged again, one is off", b: blank("b8"), c: off, want: "b (its data is gone), c (no route to it); switch them on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := State{Self: "a", Roster: nodeconf.Roster{Generation: 1}, Running: true, Alone: alone, Answers: map[string]Answer{"b": c.b, "c": c.c}, Hears: map[string]bool{},
				Facts: Facts{Data: true, Incarnation: Incarnation{ID: "a7", Started: true}, Cluster: Cluster{ID: "x", Generation: 1, Incarnation: "a7", Member: "id-a", Added: 9}}}
			for _, id := range strings.Fields(c.hears) {
				s.Hears[id] = true
			}
			a := Decide(s)
			if a.Do != Keep || !strings.Contains(a.Note, c.want) || !strings.Contains(a.Why, c.want) {
				t.Errorf("got %s, note %q, why %q", a.Do, a.Note, a.Why)
			}
			if stuck := !strings.Contains(c.want, "yet"); a.Stuck != stuck {
				t.Errorf("stuck: %t", a.Stuck)
			}
		})
	}
	// The blank machines say so, too.
	s := State{Self: "b", Roster: nodeconf.Roster{Generation: 1, Founding: []string{"a", "b", "c"}, Members: []nodeconf.Member{{Name: "b"}}}, Facts: Facts{Incarnation: Incarnation{ID: "b8"}},
		Answers: map[string]Answer{"c": blank("c8"), "a": {Status: Status{Incarnation: "a7", Data: true, Generation: 1, Cluster: "x", Alone: alone}}}}
	if a := Decide(s); a.Do != Wait || !strings.Contains(a.Why, "a majority was lost: b and c") {
		t.Errorf("got %s: %s", a.Do, a.Why)
	}
	s.Roster.Founding = []string{"a"}
	if a := Decide(s); a.Do != Wait || !strings.Contains(a.Why, "a majority was lost: b and c") {
		t.Errorf("got %s: %s", a.Do, a.Why)
	}
	s.Answers["c"] = off
	if a := Decide(s); a.Do != Wait || !strings.Contains(a.Why, "waits to be added by the others; no quorum answers the etcd of a") {
		t.Errorf("got %s: %s", a.Do, a.Why)
	}
	s.Roster.Founding = []string{"a", "b", "c"}
	if a := Decide(s); a.Do != Wait || !strings.Contains(a.Why, "waits to be added by a; no quorum answers the etcd of a, which says why") {
		t.Errorf("got %s: %s", a.Do, a.Why)
	}
}

// TestWrongClockDoesNotJoin: a blank machine whose clock is off stops, whether it
// has been added or not, and until etcd has been started to join.
func TestWrongClockDoesNotJoin(t *testing.T) {
	view := &View{Cluster: "x", Self: "1", Revision: 9, Members: []EtcdMember{{ID: "1", Name: "a", Incarnation: "a1"}, {ID: "4", Name: "d", Incarnation: "d1", Added: 9, Learner: true}}}
	serves := Answer{Ahead: -3 * time.Hour, Status: Status{Incarnation: "a1", Data: true, Generation: 1, Cluster: "x", View: view, Running: true}}
	other := Answer{Ahead: -3 * time.Hour, Status: Status{Incarnation: "b1"}}
	s := State{Self: "d", Roster: nodeconf.Roster{Generation: 1, Founding: []string{"a"}, Members: []nodeconf.Member{{Name: "a"}, {Name: "b"}, {Name: "d"}}},
		Facts: Facts{Incarnation: Incarnation{ID: "d1"}}, Answers: map[string]Answer{"a": serves, "b": other}}
	decides := func(want Verb, wrong bool) Action {
		t.Helper()
		a := Decide(s)
		if a.Do != want || strings.Contains(a.Why, "this machine's clock is wrong") != wrong {
			t.Errorf("got %s: %s, want %s", a.Do, a.Why, want)
		}
		return a
	}
	decides(Stop, true)
	right := func(a Answer) Answer { a.Ahead = 0; return a }
	s.Answers = map[string]Answer{"a": right(serves), "b": right(other)}
	s.Facts.Cluster = decides(Join, false).Cluster
	decides(Start, false)
	s.Answers = map[string]Answer{"a": serves, "b": other}
	decides(Stop, true)
	s.Facts.Incarnation.Started, s.Running = true, true
	decides(Wait, false)
	// Not added yet.
	s.Facts = Facts{Incarnation: Incarnation{ID: "d2"}}
	decides(Stop, true)
}
