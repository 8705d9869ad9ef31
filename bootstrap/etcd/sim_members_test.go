package etcd

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

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

func (e *simMembers) known(context.Context) (View, error) {
	if !e.m.etcd || e.m.data == nil {
		return View{}, errors.New("etcd does not run")
	}
	c := e.r.clusters[hexID(e.m.data.cluster)]
	v := View{Cluster: c.id, Self: hexID(e.m.data.member)}
	for _, m := range c.configs[e.m.data.config] {
		reg := c.register[m.id]
		v.Members = append(v.Members, EtcdMember{ID: m.id, Name: reg.Name, Incarnation: reg.Incarnation, PeerURL: m.url, Learner: m.learner, Started: m.started})
		if m.id == v.Self && m.learner {
			return View{}, errors.New("rpc not supported for learner")
		}
	}
	return v, nil
}

func (e *simMembers) self(context.Context) (string, error) {
	if !e.m.etcd || e.m.data == nil || e.s.faults && e.s.r.IntN(2) == 0 {
		return "", errors.New("etcd does not answer yet")
	}
	return hexID(e.m.data.member), nil
}

// runs says whether the machine's etcd is the member id of a cluster.
func (m *simMachine) runs(c *simCluster, id string) bool {
	d := m.data
	if m.ghost != nil {
		d = m.ghost
	}
	return m.etcd && d != nil && hexID(d.member) == id && hexID(d.cluster) == c.id
}

func (e *simMembers) hears(context.Context) (map[string]bool, error) {
	if e.s.events(1); e.m.life != e.life {
		panic(died{})
	}
	if !e.m.etcd || e.m.data == nil {
		return nil, errors.New("etcd does not run")
	}
	c, all := e.r.clusters[hexID(e.m.data.cluster)], map[string]bool{}
	for _, m := range c.members() {
		for _, o := range e.s.machines {
			if o.runs(c, m.id) && !e.s.cut[e.m.name+o.name] && !e.s.cut[o.name+e.m.name] {
				all[m.id] = true
			}
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
	m.etcd, m.ghost = true, nil
	s.used[id] = true
}
