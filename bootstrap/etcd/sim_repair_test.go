package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
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

// simMembers is the own etcd as one life of an agent sees it.
type simMembers struct {
	s    *sim
	r    *simRepair
	m    *simMachine
	life int
}

func (r *simRepair) boot(s *sim, m *simMachine, life int) {
	m.agent.etcd = &simMembers{s, r, m, life}
	m.agent.cfg.Now = func() time.Time { return r.clock }
	m.agent.view.now = m.agent.cfg.Now
	agent := m.agent
	agent.survey = func(ctx context.Context, prove bool) {
		own := agent.member.observe()
		for _, peer := range agent.peers(own) {
			agent.askOne(ctx, peer, own, nil, prove)
		}
	}
}

// at is the cluster, if a quorum answers at this moment.
func (e *simMembers) at() (*simCluster, error) {
	e.s.events(1)
	if e.m.life != e.life {
		panic(died{})
	}
	if !e.m.etcd || e.m.data == nil {
		return nil, errors.New("etcd does not run")
	}
	c := e.r.clusters[hexID(e.m.data.cluster)]
	if e.s.quorum(c, e.m) == nil {
		return nil, errors.New("no quorum")
	}
	return c, nil
}

func (e *simMembers) view(context.Context) (View, error) {
	c, err := e.at()
	if err != nil {
		return View{}, err
	}
	v := View{Cluster: c.id, Self: hexID(e.m.data.member), Revision: c.revision}
	if c, err = e.at(); err != nil { // the members are read later than the register
		return View{}, err
	}
	e.m.data.config = len(c.configs) - 1
	for _, m := range c.members() {
		one := EtcdMember{ID: m.id, PeerURL: m.url, Learner: m.learner, Started: m.started}
		if m.started {
			one.Name = m.name
		}
		if reg, ok := c.register[m.id]; ok && c.created[m.id] <= v.Revision {
			one.Name, one.Incarnation, one.Added = reg.Name, reg.Incarnation, c.created[m.id]
		}
		v.Members = append(v.Members, one)
	}
	return v, nil
}

func (e *simMembers) self(context.Context) (string, error) {
	if !e.m.etcd || e.m.data == nil || e.s.faults && e.s.r.IntN(2) == 0 {
		return "", errors.New("etcd does not answer yet")
	}
	return hexID(e.m.data.member), nil
}

func (e *simMembers) hears(context.Context) (map[string]bool, error) {
	c, err := e.at()
	if err != nil {
		return nil, err
	}
	all := map[string]bool{}
	for _, m := range c.members() {
		if o := e.s.holds(c, m.id); o != nil && o.etcd && !e.s.cut[e.m.name+o.name] && !e.s.cut[o.name+e.m.name] {
			all[m.id] = true
		}
	}
	return all, nil
}

func (e *simMembers) lock(context.Context, string) (func(), error) {
	c, err := e.at()
	if err != nil {
		return nil, err
	}
	if c.holder != nil {
		return nil, errLocked
	}
	agent := e.m.agent
	c.holder, c.locked = agent, e.r.losses
	return func() {
		if c.holder == agent {
			c.holder = nil
		}
	}, nil
}

func (e *simMembers) register(_ context.Context, id, name, incarnation string) error {
	c, err := e.at()
	if err != nil {
		return err
	}
	if _, ok := c.register[id]; !ok {
		c.revision++
		c.register[id], c.created[id] = entry{name, incarnation}, c.revision
	}
	return nil
}

func (e *simMembers) add(_ context.Context, url string) (string, error) {
	c, err := e.at()
	if err != nil {
		return "", err
	}
	up, voters := len(e.s.quorum(c, e.m)), 0
	for _, m := range c.members() {
		if m.learner || m.url == url {
			return "", errors.New("too many learner members in cluster, or its peer URL is known")
		}
		voters++
	}
	if up < voters {
		return "", errors.New("unhealthy cluster")
	}
	e.r.next++
	id := hexID(e.r.next)
	c.configs = append(c.configs, append(slices.Clone(c.members()), simMember{id: id, url: url, learner: true}))
	e.s.log("%s adds %s as %s", e.m.name, url, id)
	return id, nil
}

func (e *simMembers) remove(_ context.Context, id string) error {
	c, err := e.at()
	if err != nil {
		return err
	}
	return e.change(c, "removes "+id, slices.DeleteFunc(slices.Clone(c.members()), func(m simMember) bool { return m.id == id }))
}

func (e *simMembers) promote(_ context.Context, id string) error {
	c, err := e.at()
	if err != nil {
		return err
	}
	o := e.s.holds(c, id)
	if o == nil || !o.etcd || o.data.applied < c.acked {
		return errors.New("can only promote a learner member which is in sync with leader")
	}
	now := slices.Clone(c.members())
	for i := range now {
		if now[i].id == id {
			now[i].learner = false
		}
	}
	return e.change(c, "promotes "+id, now)
}

// change makes now the members, and checks S3: a quorum of them lives, what was
// lost since the lock was taken not counted. Of one who has lost the lock
// meanwhile etcd itself refuses what would end without a quorum.
func (e *simMembers) change(c *simCluster, what string, now []simMember) error {
	voters, live := 0, 0
	for _, m := range e.s.machines { // the most that reach one of them
		reached := 0
		voters = 0
		for _, v := range now {
			if v.learner {
				continue
			}
			voters++
			if o := e.s.holds(c, v.id); o != nil && o.etcd && !e.s.cut[m.name+o.name] && !e.s.cut[o.name+m.name] {
				reached++
			}
		}
		live = max(live, reached)
	}
	if c.holder != e.m.agent && live <= voters/2 {
		return errors.New("unhealthy cluster")
	}
	for _, o := range e.s.quorum(c, e.m) {
		o.data.applied = c.acked // who has the change has all before it
	}
	e.s.log("%s %s", e.m.name, what)
	c.configs = append(c.configs, now)
	if live+e.r.losses-c.locked <= voters/2 {
		e.s.fail("S3: %s %s, and of %d voters %d live", e.m.name, what, voters, live)
	}
	return nil
}

// join is etcd's side of being started to join: it believes any member that it
// reaches, also one that has not heard of the last changes, if that one's
// members have the addresses that it was told.
func (r *simRepair) join(s *sim, m *simMachine, l Launch) {
	i := slices.IndexFunc(l.Argv, func(a string) bool { return strings.HasPrefix(a, "--initial-cluster=") })
	var told []string
	own := ""
	for _, pair := range strings.Split(strings.TrimPrefix(l.Argv[i], "--initial-cluster="), ",") {
		name, url, _ := strings.Cut(pair, "=")
		told = append(told, url)
		if name == m.name {
			own = url
		}
	}
	slices.Sort(told)
	c := r.clusters[m.facts.Cluster.ID]
	from := -1
	for _, i := range s.r.Perm(len(s.machines)) {
		if o := s.machines[i]; o.etcd && o.data != nil && hexID(o.data.cluster) == c.id && !s.cut[m.name+o.name] && !s.cut[o.name+m.name] {
			from = o.data.config
		}
	}
	if from < 0 {
		s.log("%s: etcd ends: could not retrieve cluster information", m.name)
		return
	}
	var urls []string
	var me simMember
	for _, one := range c.configs[from] {
		urls = append(urls, one.url)
		if one.url == own {
			me = one
		}
	}
	slices.Sort(urls)
	if !slices.Equal(urls, told) || me.id == "" {
		s.log("%s: etcd ends: member count is unequal", m.name)
		return
	}
	id, _ := strconv.ParseUint(me.id, 16, 64)
	cluster, _ := strconv.ParseUint(c.id, 16, 64)
	m.data = &simData{dir: l.Incarnation, member: id, cluster: cluster, generation: m.facts.Cluster.Generation}
	s.hasData(m)
	m.etcd = true
	s.used[id] = true
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
