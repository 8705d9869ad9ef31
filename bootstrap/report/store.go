package report

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// SilentAfter is how old a last report may be: a machine that is well sends one a minute.
const SilentAfter = 3 * time.Minute

// ClockShown is how far a machine's clock may be from the master's unmentioned.
// A report is some seconds old when it is read.
const ClockShown = time.Minute

// Known is a machine, or a pool, of the cluster file.
type Known struct {
	Name      string
	Pool      bool
	Roles     []string
	Addresses []string
	Size      int // of a pool
}

// Machine is one line of what a master knows of the cluster: a machine of the
// cluster file, or of a pool.
type Machine struct {
	Name      string     `json:"name"`
	Pool      string     `json:"pool,omitempty"`
	Roles     []string   `json:"roles,omitempty"`
	Addresses []string   `json:"addresses,omitempty"` // by the cluster file
	Heard     *time.Time `json:"heard"`               // the last report, by the master's clock; null: never
	Silent    bool       `json:"silent"`              // never heard of, or not for too long
	From      string     `json:"from,omitempty"`      // the address that the report came from
	// ClockAheadSeconds is how far the machine's clock is ahead of the master's.
	ClockAheadSeconds int     `json:"clockAheadSeconds"`
	Report            *Report `json:"report"`
}

// Pool says how many machines of a pool were heard of.
type Pool struct {
	Name  string `json:"name"`
	Size  int    `json:"size"`
	Heard int    `json:"heard"` // and are not silent
}

// Cluster is what a master's agent knows of all machines.
type Cluster struct {
	APIVersion string    `json:"apiVersion"`
	Name       string    `json:"name"`
	Master     string    `json:"master"` // who says so
	Since      time.Time `json:"since"`  // when it began to listen: who was silent since was never heard of
	Machines   []Machine `json:"machines"`
	Pools      []Pool    `json:"pools,omitempty"`
	OK         bool      `json:"ok"` // all machines are heard of and ready, and the pools have their size
}

// Store keeps the last report of each machine, in memory: who was not heard of
// since the agent started will be within a minute, or is not there.
type Store struct {
	ClusterName string
	Master      string         // whose it is
	Known       func() []Known // now
	Now         func() time.Time
	Ready       string    // the phase of a machine that is well
	Since       time.Time // when the master began to listen

	mu   sync.Mutex
	last map[[2]string]entry // by pool and name
}

type entry struct {
	report Report
	from   string
	heard  time.Time
	ahead  time.Duration
}

// Put keeps a report of a machine that the roster knows.
func (s *Store) Put(pool, from string, r Report) error {
	now, name := s.Now(), r.Name
	if pool != "" {
		name = pool
	}
	known := s.Known()
	i := slices.IndexFunc(known, func(k Known) bool { return k.Name == name && k.Pool == (pool != "") })
	if i < 0 {
		return fmt.Errorf("%s is not in the newest list of machines that this master has heard of (roster.json): make the configs again with kimage config", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[[2]string]entry{}
	}
	s.last[[2]string{pool, Plain(r.Name, maxWord)}] = entry{r.clean(), Plain(from, maxWord), now, r.Time.Sub(now)}
	if pool != "" {
		s.prune(pool, 2*known[i].Size+8)
	}
	return nil
}

// prune forgets the machines of a pool that were not heard of for the longest:
// one token may claim any name of the pool.
func (s *Store) prune(pool string, limit int) {
	var keys [][2]string
	for k := range s.last {
		if k[0] == pool {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return s.last[b].heard.Compare(s.last[a].heard) })
	for _, k := range keys[min(limit, len(keys)):] {
		delete(s.last, k)
	}
}

// Cluster is what the master knows of every machine of the cluster file, and of those
// of its pools that were heard of.
func (s *Store) Cluster() Cluster {
	c := Cluster{APIVersion: nodeconf.APIVersion, Name: s.ClusterName, Master: s.Master, Since: s.Since}
	c.Machines, c.Pools, c.OK = s.List()
	return c
}

// List is its machines and pools, and whether all are well.
func (s *Store) List() ([]Machine, []Pool, bool) {
	now, ok := s.Now(), true
	s.mu.Lock()
	defer s.mu.Unlock()
	var machines []Machine
	var pools []Pool
	for _, k := range s.Known() {
		if !k.Pool {
			m := s.machine(now, "", k.Name, k)
			machines = append(machines, m)
			ok = ok && !m.Silent && m.Report.Phase == s.Ready
			continue
		}
		p := Pool{Name: k.Name, Size: k.Size}
		for key := range s.last {
			if key[0] != k.Name {
				continue
			}
			m := s.machine(now, k.Name, key[1], k)
			machines = append(machines, m)
			if !m.Silent {
				p.Heard++
				ok = ok && m.Report.Phase == s.Ready
			}
		}
		ok = ok && p.Heard >= p.Size
		pools = append(pools, p)
	}
	slices.SortFunc(machines, func(a, b Machine) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name))
	})
	return machines, pools, ok
}

func (s *Store) machine(now time.Time, pool, name string, k Known) Machine {
	m := Machine{Name: name, Pool: pool, Roles: k.Roles, Addresses: k.Addresses, Silent: true}
	e, heard := s.last[[2]string{pool, name}]
	if !heard {
		return m
	}
	m.Heard, m.Report, m.From, m.ClockAheadSeconds = &e.heard, &e.report, e.from, int(e.ahead.Seconds())
	m.Silent = now.Sub(e.heard) > SilentAfter
	return m
}

// KnownMachines are all that the roster lists.
func KnownMachines(r nodeconf.Roster) []Known {
	var all []Known
	index := map[string]int{}
	add := func(name, role string, addresses ...string) {
		i, ok := index[name]
		if !ok {
			i = len(all)
			index[name] = i
			all = append(all, Known{Name: name, Addresses: addresses})
		}
		if !slices.Contains(all[i].Roles, role) {
			all[i].Roles = append(all[i].Roles, role)
		}
	}
	for _, p := range r.Peers.Nodes {
		for _, role := range p.Roles {
			add(p.Name, role, p.Addresses...)
		}
	}
	for _, m := range r.Members {
		add(m.Name, nodeconf.RoleEtcd, hostOf(m.PeerURL)...)
	}
	for _, m := range r.Masters {
		add(m.Name, nodeconf.RoleMaster, m.Address)
	}
	for _, p := range r.Peers.Pools {
		all = append(all, Known{Name: p.Name, Pool: true, Roles: p.Roles, Size: p.Size})
	}
	return all
}

func hostOf(peerURL string) []string {
	u, err := url.Parse(peerURL)
	if err != nil || u.Hostname() == "" {
		return nil
	}
	return []string{u.Hostname()}
}
