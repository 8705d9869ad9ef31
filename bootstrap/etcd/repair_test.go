package etcd

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestNextStep: a is asked, a voter of a cluster that b and c are in; what is
// said of each is how it is, unless the case says otherwise.
func TestNextStep(t *testing.T) {
	url := func(name string) string { return "https://" + name + ":2380" }
	voter := func(name string) EtcdMember {
		return EtcdMember{ID: "id-" + name, Name: name, Incarnation: name + "1", Added: 5, PeerURL: url(name), Started: true}
	}
	learner := func(name string) EtcdMember {
		m := voter(name)
		m.Learner, m.Started = true, false
		return m
	}
	serves := func(name string) Answer {
		return Answer{Status: Status{Name: name, Incarnation: name + "1", Data: true, Member: "id-" + name, Running: true, Serves: true}}
	}
	blank := func(name, incarnation string) Answer {
		return Answer{Status: Status{Name: name, Incarnation: incarnation}}
	}
	unfit := func(name, incarnation string) Answer {
		a := blank(name, incarnation)
		a.Status.Unfit = "its etcd is too old"
		return a
	}
	silent := Answer{Err: "no answer"}
	all := []EtcdMember{voter("a"), voter("b"), voter("c")}
	unregistered := voter("b")
	unregistered.Incarnation, unregistered.Added = "", 0
	orphan := learner("c")
	orphan.Name, orphan.Incarnation, orphan.Added = "", "", 0
	foreign := orphan
	foreign.Name, foreign.Started = "x", true

	for _, c := range []struct {
		name    string
		roster  string // default "a b c"
		members []EtcdMember
		b, c, d Answer
		hears   string // default "b c", those whose etcd is connected
		silent  time.Duration
		do      StepVerb
		of      string // the step's name
		why     string
	}{
		{name: "all is well", members: all, b: serves("b"), c: serves("c")},
		{name: "one is silent: nothing is known", members: all, b: serves("b"), c: silent, hears: "b"},
		{name: "a founding member is not registered", members: []EtcdMember{voter("a"), unregistered, voter("c")}, b: serves("b"), c: serves("c")},
		{name: "imaged again", members: all, b: serves("b"), c: blank("c", "c2"), hears: "b", do: Remove, of: "c", why: "its data is gone"},
		{name: "imaged again, and the other is down", members: all, b: silent, c: blank("c", "c2"), hears: "-", why: "c cannot be removed"},
		{name: "two machines of one name", members: all, b: serves("b"), c: blank("c", "c2"), why: "two machines are c"},
		{name: "removed: it is added", members: []EtcdMember{voter("a"), voter("b")}, b: serves("b"), c: blank("c", "c2"), hears: "b", do: Add, of: "c"},
		{name: "removed, and silent", members: []EtcdMember{voter("a"), voter("b")}, b: serves("b"), c: silent, hears: "b"},
		{name: "the learner has not started", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: blank("c", "c1"), hears: "b", why: "waits for c"},
		{name: "the learner runs", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: serves("c"), do: Promote, of: "c"},
		{name: "the learner was imaged again", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: blank("c", "c2"), hears: "b", do: Remove, of: "c", why: "came back as another"},
		{name: "the learner has a twin", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: blank("c", "c2"), why: "two machines are c"},
		{name: "the learner is silent, nobody waits", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: silent, silent: time.Hour, hears: "b", why: "waits for c"},
		{name: "the learner is silent, another waits", roster: "a b c d", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: silent, d: blank("d", "d1"), silent: time.Hour, hears: "b", do: Remove, of: "c", why: "silent for 1h"},
		{name: "the learner is silent for a moment, another waits", roster: "a b c d", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: silent, d: blank("d", "d1"), silent: time.Minute, hears: "b", why: "waits for c"},
		{name: "the learner cannot join, nobody waits", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: unfit("c", "c1"), hears: "b", why: "c, which was added, cannot join: its etcd is too old"},
		{name: "the learner cannot join, another waits", roster: "a b c d", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: unfit("c", "c1"), d: blank("d", "d1"), hears: "b", do: Remove, of: "c", why: "others wait"},
		{name: "one cannot join, and waits", members: all[:2], b: serves("b"), c: unfit("c", "c2"), hears: "b"},
		{name: "a learner of nobody", members: []EtcdMember{voter("a"), voter("b"), orphan}, b: serves("b"), c: blank("c", "c1"), hears: "b", do: Register, of: "c"},
		{name: "a learner of a person's", members: []EtcdMember{voter("a"), voter("b"), foreign}, b: serves("b"), c: blank("c", "c1"), hears: "b", why: "added by somebody else"},
		{name: "the learner left the roster", roster: "a b", members: []EtcdMember{voter("a"), voter("b"), learner("c")}, b: serves("b"), c: blank("c", "c1"), hears: "b", do: Remove, of: "c"},
		{name: "left the roster, down", roster: "a b d", members: all, b: serves("b"), d: blank("d", "d1"), hears: "b", do: Remove, of: "c", why: "left the roster and is down"},
		{name: "left the roster, lives: its replacement first", roster: "a b d", members: all, b: serves("b"), c: serves("c"), d: blank("d", "d1"), do: Add, of: "d"},
		{name: "left the roster, lives: its replacement has not come", roster: "a b d", members: all, b: serves("b"), c: serves("c"), d: silent, why: "stays until d"},
		{name: "left the roster, lives: a voter is down", roster: "a b d", members: append(all[:3:3], voter("d")), b: silent, c: serves("c"), d: serves("d"), hears: "c d", why: "stays until b"},
		{name: "left the roster, lives, replaced", roster: "a b d", members: append(all[:3:3], voter("d")), b: serves("b"), c: serves("c"), d: serves("d"), hears: "b c d", do: Remove, of: "c"},
		{name: "this one left the roster", roster: "b c d", members: append(all[:3:3], voter("d")), b: serves("b"), c: serves("c"), d: serves("d"), hears: "b c d"},
		{name: "grown", roster: "a b c d e", members: all, b: serves("b"), c: serves("c"), d: blank("d", "d1"), do: Add, of: "d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.roster == "" {
				c.roster = "a b c"
			}
			if c.hears == "" {
				c.hears = "b c"
			}
			s := State{Self: "a", Facts: Facts{Incarnation: Incarnation{ID: "a1"}}, Proving: true, Answers: map[string]Answer{"b": c.b, "c": c.c}, Hears: map[string]bool{},
				Silent: map[string]time.Duration{"b": c.silent, "c": c.silent, "d": c.silent}, View: &View{Cluster: "x", Self: "id-a", Members: c.members}}
			if c.d.Err != "" || c.d.Status.Name != "" {
				s.Answers["d"] = c.d
			}
			for _, name := range strings.Fields(c.roster) {
				s.Roster.Members = append(s.Roster.Members, nodeconf.Member{Name: name, PeerURL: url(name)})
			}
			for _, name := range strings.Fields(c.hears) {
				s.Hears["id-"+name] = true
			}
			step, why := nextStep(s)
			if step.Do != c.do || step.Name != c.of || !strings.Contains(why, c.why) {
				t.Errorf("got %+v, %q; want %s %s, %q", step, why, c.do, c.of, c.why)
			}
			if step.Do == Add && step.PeerURL != url(c.of) || step.Do == Remove && step.ID != "id-"+c.of {
				t.Errorf("got %+v", step)
			}
		})
	}
}

// TestCorruptIsLostOnProof: what etcd says of its data counts only together with
// a quorum that serves without it.
func TestCorruptIsLostOnProof(t *testing.T) {
	const words = `{"level":"fatal","msg":"failed to read WAL, cannot be repaired","error":"walpb: crc mismatch"}`
	s := State{Self: "b", Facts: Facts{Incarnation: Incarnation{ID: "b1", Started: true}, Data: true, Cluster: Cluster{ID: "x", Incarnation: "b1", Generation: 1, Member: "m"}},
		Roster: nodeconf.Roster{Generation: 1}, Ended: words, Answers: map[string]Answer{"a": {Status: Status{Cluster: "x", Data: true, Running: true}}}}
	if a := Decide(s); a.Do != Wait || !strings.Contains(a.Why, "kimage recover") || !strings.Contains(a.Why, "crc mismatch") {
		t.Errorf("without proof: %s: %s", a.Do, a.Why)
	}
	s.Answers["a"] = Answer{Status: Status{Cluster: "x", Data: true, Running: true, Serves: true}}
	if a := Decide(s); a.Do != SetAside || !strings.Contains(a.Why, "a proves a quorum") {
		t.Errorf("with proof: %s: %s", a.Do, a.Why)
	}
	s.Answers["a"] = Answer{Status: Status{Cluster: "y", Data: true, Running: true, Serves: true}}
	if a := Decide(s); a.Do != Wait {
		t.Errorf("with proof of another cluster: %s: %s", a.Do, a.Why)
	}
	for _, own := range []string{ // as etcd 3.7.3 ended on damaged logs
		`{"level":"fatal","msg":"discovery failed","error":"walpb: crc mismatch: expected: 1 computed: 2: in file '0.wal' at position: 640"}`,
		`{"level":"fatal","msg":"discovery failed","error":"proto: cannot parse invalid wire-format data"}`,
	} {
		s.Ended = own
		if a := Decide(s); !strings.Contains(a.Why, "nobody proves a quorum") {
			t.Errorf("%s: %s: %s", own, a.Do, a.Why)
		}
	}
	for _, other := range []string{"listen tcp 10.0.0.1:2380: bind: address already in use", "no space left on device", "x509: certificate has expired", `"found data inconsistency with peers"`} {
		s.Ended = other
		if a := Decide(s); a.Do != Start {
			t.Errorf("%s: %s: %s", other, a.Do, a.Why)
		}
	}
}

// TestRolledBackDisk: an older copy of a disk is not used once somebody has heard
// of a later state of it.
func TestRolledBackDisk(t *testing.T) {
	heard := func(incarnation string, counter uint64, tag string) map[string]Answer {
		return map[string]Answer{"a": {Status: Status{Heard: map[string]Count{"b": {incarnation, counter, tag}}}}}
	}
	s := State{Self: "b", Facts: Facts{Incarnation: Incarnation{ID: "b1", Counter: 3, Tags: []string{"two", "three"}, Started: true}, Data: true, Cluster: Cluster{ID: "x", Incarnation: "b1", Generation: 1}}, Roster: nodeconf.Roster{Generation: 1}}
	for _, c := range []struct {
		incarnation string
		counter     uint64
		tag         string
		data        bool
		do          Verb
	}{
		{"b1", 3, "three", true, Start}, {"b1", 3, "", true, Start}, {"b0", 9, "nine", true, Start}, {"b1", 2, "two", true, Start}, {"b1", 1, "one", true, Start},
		{"b1", 4, "four", true, SetAside}, {"b1", 4, "four", false, Renew}, {"b1", 3, "3", true, SetAside}, {"b1", 2, "2", true, SetAside}, {"b1", 3, "3", false, Renew},
	} {
		s.Answers, s.Facts.Data, s.Facts.Incarnation.Started = heard(c.incarnation, c.counter, c.tag), c.data, c.data
		if a := Decide(s); a.Do != c.do {
			t.Errorf("%+v: %s: %s", c, a.Do, a.Why)
		}
	}
}

// TestOldDiskIsNoticed puts a copy of a disk back under a founded cluster of three
// whose others have heard a count since: that of a start, or of the time that has
// passed. The machine may start a few times before it hears of the others.
func TestOldDiskIsNoticed(t *testing.T) {
	for _, since := range []string{"a start", "ten minutes", "two starts"} {
		for unheard := range 5 {
			s := newSim(t, 1, 3)
			s.repair = &simRepair{clusters: map[string]*simCluster{}, clock: time.Unix(1e9, 0), next: 1 << 32}
			s.faults, s.oldDisks = false, true
			all := func() {
				for _, m := range s.machines {
					s.step(m)
				}
			}
			starts := func(m *simMachine) {
				s.crash(m)
				s.boot(m)
				all()
			}
			s.calm()
			m := s.machines[1]
			facts, data := m.facts, *m.data
			all()
			switch since {
			case "a start":
				starts(m)
			case "ten minutes":
				s.repair.clock = s.repair.clock.Add(11 * time.Minute)
				all()
			case "two starts":
				starts(m)
				starts(m)
			}
			all()
			s.crash(m)
			m.facts, m.data, m.etcd = facts, &data, false
			for range unheard {
				s.boot(m)
				m.agent.count()
				s.crash(m)
			}
			s.boot(m)
			for range 3 { // it is set aside, and comes back as another
				s.step(m)
			}
			if m.data != nil || m.facts.Incarnation.ID == data.dir || s.failed != "" {
				t.Errorf("after %s, and %d starts: data %v, incarnation %s of %s, %s; last: %s", since, unheard, m.data, m.facts.Incarnation.ID, data.dir, s.failed, m.said.Why)
			}
		}
	}
}

// TestOldEtcdDoesNotJoin: where etcd ends because the cluster is of a newer one,
// the machine waits for a person and is not added again and again.
func TestOldEtcdDoesNotJoin(t *testing.T) {
	const (
		tooHigh = `{"level":"warn","msg":"cluster version of remote member is not compatible; too high","remote-member-cluster-version":"3.7.0","maximum-cluster-version-supported":"3.6.0"}` + "\n"
		ends    = `{"level":"fatal","msg":"discovery failed","error":"incompatible with current running cluster"}`
	)
	ctx := t.Context()
	s := newSim(t, 1, 1)
	s.faults = false
	m := s.machines[0]
	words := ends
	start := func() *Agent {
		s.crash(m)
		s.boot(m)
		m.agent.cfg.Ended = func(context.Context) (string, error) { return words, nil }
		return m.agent
	}
	joins := Facts{Roster: &s.rosters[0], Incarnation: Incarnation{ID: "a1", ClusterUID: "uid", Node: "a", Started: true},
		Cluster: Cluster{ID: "x", Generation: 1, Incarnation: "a1", Member: "4", Added: 9, Joining: "b=https://10.0.0.2:2380"}}
	m.facts = joins
	if a := Decide(start().observe(ctx)); a.Do != SetAside { // it heard no version
		t.Errorf("got %s: %s", a.Do, a.Why)
	}
	words = tooHigh + ends
	for range 2 {
		if a := Decide(start().observe(ctx)); a.Do != Wait || !strings.Contains(a.Why, "boot this machine with an image of the newer Kubernetes") {
			t.Errorf("got %s: %s", a.Do, a.Why)
		}
	}
	// Its place was given to another: it comes back, and says so.
	m.facts.Incarnation, m.facts.Cluster = Incarnation{ID: "a2", ClusterUID: "uid", Node: "a"}, Cluster{}
	st, err := m.agent.answer(ctx, "a", Question{ClusterUID: "uid", Roster: s.rosters[0]})
	if err != nil || !strings.Contains(st.Unfit, "older than the cluster's") {
		t.Errorf("it tells %q, %v", st.Unfit, err)
	}
	m.agent.answers["b"] = Answer{AskedAfter: m.agent.member.writes, Status: Status{Data: true, Generation: 1, Cluster: "x"}}
	if a := Decide(m.agent.observe(ctx)); a.Do != Wait || !strings.Contains(a.Why, "newer Kubernetes") {
		t.Errorf("got %s: %s", a.Do, a.Why)
	}
	// With the newer image.
	m.facts, words = joins, ""
	if a := Decide(start().observe(ctx)); a.Do != SetAside {
		t.Errorf("got %s: %s", a.Do, a.Why)
	}
}

// TestTroubleIsTold: what etcd found and a person must settle is in the reason,
// also while an etcd that ends again and again runs for a moment.
func TestTroubleIsTold(t *testing.T) {
	ctx := t.Context()
	s := newSim(t, 1, 1)
	s.faults = false
	s.repair = &simRepair{clusters: map[string]*simCluster{}, clock: time.Unix(1e9, 0), next: 1 << 32}
	s.calm()
	m := s.machines[0]
	for words, want := range map[string]string{
		`{"level":"fatal","msg":"discovery failed","error":"1f found data inconsistency with peers"}`:                 "hashkv --cluster",
		`{"level":"panic","msg":"invalid downgrade; server version is lower than determined cluster version"}`:        "image of the newer Kubernetes",
		`{"level":"fatal","msg":"discovery failed","error":"listen tcp 10.0.0.1:2380: bind: address already in use"}`: "there is data",
	} {
		m.agent.cfg.Ended = func(context.Context) (string, error) { return words, nil }
		m.etcd = false
		if a := Decide(m.agent.observe(ctx)); a.Do != Start || !strings.Contains(a.Why, want) {
			t.Errorf("%s: got %s: %s", words, a.Do, a.Why)
		}
		own := m.agent.etcd
		m.etcd, m.agent.etcd = true, nil // it does not answer yet
		if a := Decide(m.agent.observe(ctx)); a.Do != Keep || want != "there is data" && !strings.Contains(a.Note, want) {
			t.Errorf("%s: got %s: %s", words, a.Do, a.Note)
		}
		m.agent.etcd = own
		if a := Decide(m.agent.observe(ctx)); a.Do != Keep || a.Note != "" {
			t.Errorf("%s: got %s: %s", words, a.Do, a.Note)
		}
	}

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"errors":["etcdserver: no leader","memberID:27 alarm:CORRUPT ","alarm:CORRUPT","memberID:28  alarm:NOSPACE"]}`))
	}))
	defer server.Close()
	alarms, err := (&gateway{client: server.URL, http: server.Client()}).alarms(ctx)
	if err != nil || !slices.Equal(alarms, []Alarm{{"CORRUPT", "1b"}, {"CORRUPT", ""}, {"NOSPACE", "1c"}}) {
		t.Errorf("got %v, %v", alarms, err)
	}
	st := m.agent.observe(ctx)
	st.View.Alarms = []Alarm{{"CORRUPT", st.View.Self}, {"CORRUPT", ""}, {"NOSPACE", st.View.Self}}
	for _, want := range []string{"the data of a differs", "the data of a member differs", "etcdctl alarm disarm", "the database of a is full"} {
		if a := Decide(st); !strings.Contains(a.Note, want) || !strings.Contains(a.Why, want) {
			t.Errorf("got %s, which does not say %q", a.Note, want)
		}
	}
}
