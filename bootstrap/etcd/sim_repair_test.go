package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// simRepair is etcd, as far as repair sees it. It refuses nothing by which a
// cluster could lose its quorum, although the real one would: the agents must
// not ask for it.
type simRepair struct {
	clusters map[string]*simCluster // by ID
	clock    time.Time
	next     uint64 // member ID
	losses   int    // of disks, data, processes and ways to others
}

type simCluster struct {
	id       string
	configs  [][]simMember // each differs from the last by one
	register map[string]entry
	created  map[string]int64
	revision int64
	holder   *Agent // of the lock
	locked   int    // simRepair.losses when it was taken
	acked    int    // writes
}

type simMember struct {
	id, name, url    string
	learner, started bool
}

func (c *simCluster) members() []simMember { return c.configs[len(c.configs)-1] }

func (r *simRepair) founded(rec Record) {
	id := rec.ClusterID()
	if r.clusters[id] != nil {
		return
	}
	c := &simCluster{id: id, register: map[string]entry{}, created: map[string]int64{}, revision: 1}
	var first []simMember
	for _, m := range rec.Members {
		first = append(first, simMember{id: hexID(rec.MemberID(m.Name)), name: m.Name, url: m.PeerURL, started: true})
	}
	c.configs = [][]simMember{first}
	r.clusters[id] = c
}

// holds returns the machine with the data of a member; nil: nobody has it.
func (s *sim) holds(c *simCluster, id string) *simMachine {
	for _, m := range s.machines {
		if m.data != nil && hexID(m.data.member) == id && hexID(m.data.cluster) == c.id {
			return m
		}
	}
	return nil
}

// quorum are the machines of a quorum of voters that m reaches, m first; nil:
// there is none, or m is no voter.
func (s *sim) quorum(c *simCluster, m *simMachine) (up []*simMachine) {
	voters := 0
	own := false
	for _, v := range c.members() {
		if v.learner {
			continue
		}
		voters++
		o := s.holds(c, v.id)
		switch {
		case o == nil || !o.etcd:
		case o == m:
			own = true
			up = append([]*simMachine{m}, up...)
		case !s.cut[m.name+o.name] && !s.cut[o.name+m.name]:
			up = append(up, o)
		}
	}
	if !own || len(up) <= voters/2 {
		return nil
	}
	newest := 0
	for _, o := range up {
		newest = max(newest, o.data.applied)
	}
	if newest < c.acked {
		s.fail("an acknowledged write is lost: %d of %d are left", newest, c.acked)
	}
	return up
}

// event is something that happens in etcd, or to its members by the operator.
func (r *simRepair) event(s *sim) {
	r.clock = r.clock.Add(time.Duration(s.r.IntN(20)) * time.Second)
	for _, c := range r.clusters {
		m := s.machines[s.r.IntN(len(s.machines))]
		if m.data == nil || hexID(m.data.cluster) != c.id || !m.etcd {
			continue
		}
		up := s.quorum(c, m)
		if up == nil {
			continue
		}
		// A write; those that are not up will have it later.
		c.acked++
		c.revision++
		for _, o := range up {
			o.data.applied = c.acked
		}
		now := slices.Clone(c.members())
		for i, one := range now {
			o := s.holds(c, one.id)
			if o != nil && o.etcd && !s.cut[m.name+o.name] {
				o.data.applied, o.data.config = c.acked, len(c.configs)-1
				now[i].started, now[i].name = true, o.name
			}
		}
		c.configs[len(c.configs)-1] = now
		// Who was removed is told so, and ends.
		for _, o := range s.machines {
			if o.etcd && o.data != nil && hexID(o.data.cluster) == c.id && !slices.ContainsFunc(now, func(n simMember) bool { return n.id == hexID(o.data.member) }) {
				o.etcd = false
			}
		}
	}
	if !s.faults {
		for _, c := range r.clusters {
			if c.holder != nil && s.machines[int(c.holder.cfg.Name[0]-'a')].agent != c.holder {
				c.holder = nil // who held it has died, and its lease has ended
			}
		}
		return
	}
	switch s.r.IntN(12) {
	case 0:
		for _, c := range r.clusters {
			c.holder = nil // its lease has ended
		}
	case 1:
		r.clock = r.clock.Add(clearAfter)
	case 2:
		if last := s.roster(); last.Serial < 6 {
			s.changeRoster([]int{1, 3, 3, 3, 5}[s.r.IntN(5)])
		}
	}
}

// changeRoster has other members, of the same founding.
func (s *sim) changeRoster(n int) {
	last := s.roster()
	r := nodeconf.Roster{ClusterUID: "uid", Generation: last.Generation, Serial: last.Serial + 1, Founding: last.Founding, Issued: time.Unix(int64(last.Serial+1), 0)}
	for _, i := range s.r.Perm(len(s.machines))[:n] {
		r.Members = append(r.Members, nodeconf.Member{Name: s.machines[i].name, PeerURL: fmt.Sprintf("https://10.0.0.%d:2380", i+1)})
	}
	slices.SortFunc(r.Members, func(a, b nodeconf.Member) int { return strings.Compare(a.Name, b.Name) })
	r.Left = r.Without(last)
	s.sign(r)
	for _, m := range s.machines { // the operator images the new ones with it, or tells one of the old
		if s.r.IntN(3) == 0 {
			m.config = s.rosters[len(s.rosters)-1]
			s.crash(m)
		}
	}
	var names []string
	for _, m := range r.Members {
		names = append(names, m.Name)
	}
	s.log("roster %d: %v", r.Serial, names)
}

// whole says what is missing until the members are those of the newest roster.
func (s *sim) whole() string {
	r := s.roster()
	for _, c := range s.repair.clusters {
		var up *simMachine
		for _, m := range s.machines {
			if m.data != nil && hexID(m.data.cluster) == c.id && m.data.generation == r.Generation && s.quorum(c, m) != nil {
				up = m
			}
		}
		if up == nil {
			continue
		}
		var missing []string
		for _, want := range r.Members {
			ok := slices.ContainsFunc(c.members(), func(m simMember) bool {
				o := s.holds(c, m.id)
				return m.url == want.PeerURL && !m.learner && o != nil && o.etcd && o.name == want.Name
			})
			if !ok {
				missing = append(missing, want.Name+" is no voter")
			}
		}
		for _, m := range c.members() {
			if !slices.ContainsFunc(r.Members, func(want nodeconf.Member) bool { return want.PeerURL == m.url }) {
				missing = append(missing, m.url+" left and is a member")
			}
		}
		return strings.Join(missing, ", ")
	}
	return "" // no quorum: founding's own checks say what is to be said
}

// TestRepairSchedules is TestSchedules with all that may happen afterwards:
// machines imaged again and lost for good, others added and dismissed by new
// rosters, leases that end while their holder works, joining members that are
// killed, cut off or told of a past that is no more.
func TestRepairSchedules(t *testing.T) {
	from, to := uint64(1), *simSchedules
	if *simSeed != 0 {
		from, to = *simSeed, *simSeed
	}
	repaired := 0
	for seed := from; seed <= to; seed++ {
		s := newSim(t, seed, []int{3, 3, 1, 5}[seed%4])
		s.repair = &simRepair{clusters: map[string]*simCluster{}, clock: time.Unix(1e9, 0), next: 1 << 32}
		for i := len(s.machines); i < 5; i++ {
			s.machines = append(s.machines, &simMachine{name: string(rune('a' + i)), config: s.rosters[0], made: map[string]simData{}})
		}
		failed := s.run()
		if failed == "" {
			s.repaired()
			for range 2 { // now that it is whole
				s.faults, s.images = true, 1+s.r.IntN(2)
				for range 60 {
					s.event()
				}
				s.calm()
				repaired += s.repaired()
			}
			failed = s.failed
		}
		if failed != "" {
			if *simSeed != 0 {
				t.Log(strings.Join(s.trace, "\n"))
			}
			t.Fatalf("%s\nall of it: go test ./bootstrap/etcd -run TestRepairSchedules -seed %d -v", failed, seed)
		}
	}
	t.Logf("%d schedules, %d changes of members", to-from+1, repaired)
}

// repaired waits, in calm, until the members are those of the roster, and counts
// the changes that there were.
func (s *sim) repaired() (changes int) {
	missing := ""
	for _, m := range s.machines { // the operator images or tells them all
		m.config = s.rosters[len(s.rosters)-1]
		s.crash(m)
		s.boot(m)
	}
	for range 80 {
		for _, m := range s.machines {
			s.step(m)
		}
		s.repair.event(s)
		s.repair.clock = s.repair.clock.Add(time.Minute)
		if missing = s.whole(); missing == "" {
			break
		}
	}
	if missing != "" {
		for _, m := range s.machines {
			missing += fmt.Sprintf("\n%s %s: %s", m.name, m.said.Do, m.said.Why)
		}
		s.fail("L2-L4: %s", missing)
	}
	for _, c := range s.repair.clusters {
		changes += len(c.configs) - 1
	}
	return changes
}

// TestStepIsOfAFreshLook: two of three voters leave the roster. Between the
// decision to remove the one and the lock the other is switched off, as if a first
// change were not yet committed: the removal would leave one of two.
func TestStepIsOfAFreshLook(t *testing.T) {
	ctx := t.Context()
	s := newSim(t, 1, 3)
	s.repair = &simRepair{clusters: map[string]*simCluster{}, clock: time.Unix(1e9, 0), next: 1 << 32}
	s.faults = false
	s.calm()
	r := s.roster()
	r.Serial, r.Members = 2, r.Members[:1]
	r.Left = r.Without(s.roster())
	s.sign(r)
	s.untilStep(func(m *simMachine, act Action) bool {
		if act.Repair.Do != Remove {
			return false
		}
		for _, o := range s.machines {
			if o != m && o.name != act.Repair.Name {
				s.crash(o)
				o.etcd = false
				s.lost()
			}
		}
		if err := m.agent.repair(ctx, act.Repair); err != nil {
			t.Error(err)
		}
		return true
	})
	for _, c := range s.repair.clusters {
		if len(c.members()) != 3 || s.failed != "" {
			t.Errorf("members %v; %s", c.members(), s.failed)
		}
	}
}

// untilStep repairs, in calm, until one is about to make a step of which do says
// that it is the one.
func (s *sim) untilStep(do func(*simMachine, Action) bool) {
	ctx := context.Background()
	for _, m := range s.machines {
		m.config = s.rosters[len(s.rosters)-1]
		s.crash(m)
		s.boot(m)
	}
	for range 20 {
		for _, m := range s.machines {
			m.agent.survey(ctx, false)
			state := m.agent.observe(ctx)
			act := Decide(state)
			if act.Do == Keep && do(m, act) {
				return
			}
			m.agent.apply(ctx, state, act)
		}
		s.repair.event(s)
	}
	s.t.Fatal("no such step is made")
}

// TestWhoLeftIsAsked: a cluster of five was told to be one of three, the two that left
// have the only data that is not lost, and they are off. The three, all blank and all
// founding members, may not found another.
func TestWhoLeftIsAsked(t *testing.T) {
	s := newSim(t, 1, 3)
	s.repair = &simRepair{clusters: map[string]*simCluster{}, clock: time.Unix(1e9, 0), next: 1 << 32}
	s.faults = false
	for i := len(s.machines); i < 5; i++ {
		s.machines = append(s.machines, &simMachine{name: string(rune('a' + i)), config: s.rosters[0], made: map[string]simData{}})
	}
	three := s.roster()
	five := three
	five.Serial, five.Members = 2, slices.Clone(three.Members)
	for i, m := range s.machines[3:] {
		five.Members = append(five.Members, nodeconf.Member{Name: m.name, PeerURL: fmt.Sprintf("https://10.0.0.%d:2380", i+4)})
	}
	s.calm()
	s.sign(five)
	s.repaired()
	three.Serial, three.Left = 3, three.Without(five)
	s.sign(three)
	for i, m := range s.machines {
		s.crash(m)
		if m.etcd = false; i < 3 {
			m.facts, m.data, m.config = Facts{}, nil, s.rosters[2]
		}
	}
	if s.failed != "" || s.machines[3].data == nil || s.machines[4].data == nil {
		t.Fatalf("the cluster of five was not made: %s", s.failed)
	}
	for range 20 {
		for _, m := range s.machines[:3] {
			if m.agent == nil {
				s.boot(m)
			}
			s.step(m)
		}
	}
	if s.failed != "" {
		t.Error(s.failed)
	}
	if why := s.machines[0].said.Why; !strings.Contains(why, "members have left the roster") {
		t.Errorf("%s says: %s", s.machines[0].name, why)
	}
}
