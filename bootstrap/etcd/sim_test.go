package etcd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

var (
	simSeed      = flag.Uint64("seed", 0, "run only the schedule of this seed")
	simSchedules = flag.Uint64("schedules", 2000, "how many random schedules to simulate")
)

// simMachine is a machine with its disk. The agent on it comes and goes.
type simMachine struct {
	name      string
	config    nodeconf.SignedRoster // on the seed of first boot
	facts     Facts                 // durable
	data      *simData
	made      map[string]simData // half made data, by name
	unmounted bool
	etcd      bool     // the process runs
	ghost     *simData // what it serves although the files were removed; nil: its data is there
	agent     *Agent
	life      int // of the agent
	busy      bool
	said      Action
}

// simData is what a data directory says.
type simData struct {
	dir             string
	member, cluster uint64
	generation      int
	applied         int // how many acknowledged writes it has
	config          int // which change of the members it has applied last
}

// simDisk is the machine's disk as one life of the agent sees it.
type simDisk struct {
	s    *sim
	m    *simMachine
	life int
}

// died is the panic that ends the life of an agent in the middle of something.
type died struct{}

func (d simDisk) alive() {
	if d.m.life != d.life {
		panic(died{})
	}
}

// mayDie is a power cut at an unlucky moment.
func (d simDisk) mayDie() {
	d.alive()
	if d.s.faults && d.s.r.IntN(40) == 0 {
		d.s.crash(d.m)
		panic(died{})
	}
}

func (d simDisk) load() (Facts, error) {
	d.alive()
	if d.m.unmounted {
		return Facts{}, errors.New("KIMAGE is not mounted")
	}
	f := d.m.facts
	if d.m.data != nil {
		if d.m.data.dir != f.Incarnation.ID {
			return Facts{}, errors.New("unknown data")
		}
		f.Data = true
	}
	return f, nil
}

func (d simDisk) save(file string, content any) error {
	d.mayDie()
	switch c := content.(type) {
	case Incarnation:
		d.s.incarnations[d.m.name] = append(d.s.incarnations[d.m.name], c.ID)
		d.m.facts.Incarnation = c
	case Record:
		d.m.facts.Record = &c
	case nodeconf.SignedRoster:
		d.m.facts.Roster = &c
	case Cluster:
		d.m.facts.Cluster = c
	case map[string]Count:
		d.m.facts.Heard = c
	default:
		panic(file)
	}
	d.mayDie()
	return nil
}

func (d simDisk) move(from, to string) error {
	d.mayDie()
	if strings.HasPrefix(to, asideHead) {
		if d.m.etcd {
			d.s.fail("%s: data is moved below a running etcd", d.m.name)
		}
		d.m.data = nil
	} else {
		if d.m.data != nil {
			return errors.New("directory not empty")
		}
		made, ok := d.m.made[from]
		if !ok {
			return errors.New("no such directory")
		}
		made.dir = to
		d.m.data = &made
		d.s.hasData(d.m)
	}
	d.mayDie()
	return nil
}

// sim is one random schedule.
type sim struct {
	t            *testing.T
	seed         uint64
	r            *rand.Rand
	key          ed25519.PrivateKey
	cluster      nodeconf.Cluster
	rosters      []nodeconf.SignedRoster // of rising serial and generation
	opened       []nodeconf.Roster
	machines     []*simMachine
	cut          map[string]bool
	late         []func() // proposals that are delivered once more
	incarnations map[string][]string
	owner        map[uint64]string // member ID to the incarnation that has it
	used         map[uint64]bool   // member IDs of which an etcd ran
	eager        int               // a third of it: how probably a peer is asked in a round
	images       int               // re-imagings left
	depth        int
	faults       bool
	oldDisks     bool       // older copies of disks are put back
	repair       *simRepair // nil: only founding
	failed       string
	trace        []string
}

func (s *sim) fail(format string, args ...any) {
	if s.failed == "" {
		s.failed = fmt.Sprintf(format, args...)
	}
}

func (s *sim) log(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf(format, args...))
}

func newSim(t *testing.T, seed uint64, n int) *sim {
	r := rand.New(rand.NewPCG(seed, 1))
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	s := &sim{t: t, seed: seed, r: r, key: key, faults: true, images: r.IntN(4), eager: 1 + r.IntN(2), cut: map[string]bool{}, incarnations: map[string][]string{}, owner: map[uint64]string{}, used: map[uint64]bool{},
		cluster: nodeconf.Cluster{Name: "c", UID: "uid", RosterKey: base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))}}
	s.addRoster(n, 1, 1)
	for _, m := range s.roster().Members {
		s.machines = append(s.machines, &simMachine{name: m.Name, config: s.rosters[0], made: map[string]simData{}})
	}
	return s
}

func (s *sim) addRoster(n, generation, serial int) {
	r := nodeconf.Roster{ClusterUID: "uid", Generation: generation, Serial: serial, Issued: time.Unix(int64(serial), 0)}
	for i := range n {
		name := string(rune('a' + i))
		r.Founding = append(r.Founding, name)
		r.Members = append(r.Members, nodeconf.Member{Name: name, PeerURL: fmt.Sprintf("https://10.0.0.%d:2380", i+1)})
	}
	s.sign(r)
}

// sign makes r the newest roster.
func (s *sim) sign(r nodeconf.Roster) {
	signed, err := r.Sign(s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	opened, err := signed.Open(s.cluster.RosterKey, "uid")
	if err != nil {
		s.t.Fatal(err)
	}
	s.rosters, s.opened = append(s.rosters, signed), append(s.opened, opened)
}

// open is SignedRoster.Open with a memory: signatures would take most of the time.
func (s *sim) open(signed nodeconf.SignedRoster) (nodeconf.Roster, error) {
	for i := range s.rosters {
		if bytes.Equal(s.rosters[i].Payload, signed.Payload) {
			return s.opened[i], nil
		}
	}
	return nodeconf.Roster{}, errors.New("unknown roster")
}

// roster is the newest.
func (s *sim) roster() nodeconf.Roster { return s.opened[len(s.opened)-1] }

// boot starts the agent's next life.
func (s *sim) boot(m *simMachine) {
	cfg := Config{Name: m.name, Address: fmt.Sprint("10.0.0.", m.name[0]-'a'+1), Cluster: s.cluster, Roster: m.config, Etcdutl: "etcdutl", Heartbeat: time.Second, Election: time.Second,
		Logf:    func(string, ...any) {},
		Report:  func(a Action) { m.said = a },
		Running: func(context.Context) (bool, error) { return m.etcd, nil },
		Halt:    func(context.Context) error { m.etcd = false; return nil },
		Start:   func(_ context.Context, l Launch) error { s.start(m, l); return nil },
	}
	disk := simDisk{s, m, m.life}
	m.agent = newAgent(cfg, disk)
	m.agent.member.random = func() string { return fmt.Sprintf("%s%d", m.name, len(s.incarnations[m.name])+100*m.life) }
	m.agent.member.open = s.open
	m.agent.ask = s.ask(m, m.life)
	if s.repair != nil {
		s.repair.boot(s, m, m.life)
	}
	m.agent.make = func(ctx context.Context, rec Record) (string, error) {
		name := fmt.Sprintf("%s.%d%s", rec.incarnation(m.name), m.life, partial)
		made := etcdWouldBe(restoreArgs(rec, m.name, "seed", name))
		if s.repair != nil {
			s.repair.founded(rec)
		}
		made.generation = rec.Generation
		s.events(2)
		disk.alive()
		m.made[name] = made
		return name, nil
	}
}

// etcdWouldBe computes the IDs as etcd does, from what etcdutl is told.
func etcdWouldBe(argv []string) simData {
	value := func(name string) string { return argv[slices.Index(argv, name)+1] }
	var ids []uint64
	var d simData
	for _, m := range strings.Split(value("--initial-cluster"), ",") {
		name, url, _ := strings.Cut(m, "=")
		sum := sha1.Sum([]byte(url + value("--initial-cluster-token")))
		id := binary.BigEndian.Uint64(sum[:])
		ids = append(ids, id)
		if name == value("--name") {
			d.member = id
		}
	}
	slices.Sort(ids)
	var all []byte
	for _, id := range ids {
		all = binary.BigEndian.AppendUint64(all, id)
	}
	sum := sha1.Sum(all)
	d.cluster = binary.BigEndian.Uint64(sum[:])
	return d
}

// start is etcd's side of being started.
func (s *sim) start(m *simMachine, l Launch) {
	if l.Joins && s.repair != nil && (m.data == nil || m.data.dir != l.Incarnation) {
		if !m.facts.Incarnation.Started {
			s.fail("%s: etcd joins, and the disk does not say so", m.name)
		}
		s.repair.join(s, m, l)
		return
	}
	if m.etcd {
		return // systemd starts no unit twice
	}
	if m.data == nil || m.data.dir != l.Incarnation || !slices.Contains(l.Argv, "--initial-cluster-state=existing") {
		s.fail("%s: etcd is started without data, or as a new cluster", m.name)
		return
	}
	if !m.facts.Incarnation.Started {
		s.fail("%s: etcd runs, and the disk does not say so", m.name)
	}
	m.etcd, m.ghost = true, nil
	s.used[m.data.member] = true
}

// hasData checks S1 and S2 when a machine came to have data.
func (s *sim) hasData(m *simMachine) {
	d := m.data
	s.log("%s has data of cluster %x, member %x, directory %s", m.name, d.cluster, d.member, d.dir)
	if s.used[d.member] {
		s.fail("S2: %s comes back under the ID of a member that lost its data", m.name)
	}
	if o := s.owner[d.member]; o != "" && o != d.dir {
		s.fail("S2: member ID of incarnations %s and %s", o, d.dir)
	}
	s.owner[d.member] = d.dir
	for _, o := range s.machines {
		if o.data != nil && o.data.generation == d.generation && o.data.cluster != d.cluster {
			s.fail("S1: %s and %s hold data of two clusters", o.name, m.name)
		}
	}
}

// ask is the network as one life of an agent sees it.
func (s *sim) ask(from *simMachine, life int) func(context.Context, nodeconf.Member, Question) (Status, error) {
	return func(ctx context.Context, to nodeconf.Member, q Question) (Status, error) {
		m := s.machines[int(to.Name[0]-'a')]
		deliver := func() (st Status, err error) {
			if m.agent == nil || s.cut[from.name+m.name] {
				return Status{}, errors.New("no route")
			}
			defer func() {
				if e := recover(); e != nil {
					if _, ok := e.(died); !ok {
						panic(e)
					}
					err = errors.New("connection reset")
				}
			}()
			return m.agent.answer(ctx, from.name, q)
		}
		alive := func() {
			if from.life != life {
				panic(died{})
			}
		}
		s.events(1)
		alive()
		if s.faults && q.Record != nil && s.r.IntN(2) == 0 {
			s.late = append(s.late, func() { deliver() })
		}
		if s.faults && s.r.IntN(8) == 0 {
			return Status{}, errors.New("lost question")
		}
		st, err := deliver()
		s.events(1)
		alive()
		if err == nil && s.faults && s.r.IntN(8) == 0 {
			return Status{}, errors.New("lost answer")
		}
		return st, err
	}
}

// step lets the agent of a machine do some of its loop.
func (s *sim) step(m *simMachine) {
	if m.agent == nil || m.busy {
		return
	}
	m.busy = true
	life := m.life
	defer func() {
		if m.life == life {
			m.busy = false
		}
		if e := recover(); e != nil {
			if _, ok := e.(died); !ok {
				panic(e)
			}
		}
	}()
	ctx := context.Background()
	m.agent.count()
	own := m.agent.member.observe()
	for _, peer := range m.agent.peers(own) {
		if !s.faults || s.r.IntN(3) < s.eager {
			m.agent.askOne(ctx, peer, own, nil, false)
		}
	}
	agent := m.agent
	state := agent.observe(ctx)
	act := Decide(state)
	agent.report(act)
	if s.noOldDisk(act); s.failed != "" {
		return
	}
	s.events(1)
	if m.life != life {
		panic(died{})
	}
	err := agent.apply(ctx, state, act)
	s.log("%s: %s (%s) %v %.6s", m.name, act.Do, act.Why, err, act.Record.Token())
}

// noOldDisk: nobody has put an older copy of a disk back.
func (s *sim) noOldDisk(act Action) {
	if strings.Contains(act.Why, oldDisk) && !s.oldDisks {
		s.fail("no disk was put back, and: %s", act.Why)
	}
}

// run runs the schedule and returns what went wrong.
func (s *sim) run() string {
	for range 40 + s.r.IntN(120) {
		s.event()
		if s.failed != "" {
			return s.failed
		}
	}
	s.calm()
	return s.failed
}

// TestSchedules throws random faults at the real decisions and the real member:
// kills between any two writes, power cuts, machines imaged again and data
// removed while questions are under way, cuts, late, repeated and invented
// proposals, an unmounted disk, new rosters and generations.
func TestSchedules(t *testing.T) {
	from, to := uint64(1), *simSchedules
	if *simSeed != 0 {
		from, to = *simSeed, *simSeed
	}
	for seed := from; seed <= to; seed++ {
		n := []int{3, 3, 3, 2, 1, 5}[seed%6]
		s := newSim(t, seed, n)
		if failed := s.run(); failed != "" {
			if *simSeed != 0 {
				t.Log(strings.Join(s.trace, "\n"))
			}
			t.Fatalf("%s\n%d members; all of it: go test ./bootstrap/etcd -run TestSchedules -seed %d -v", failed, n, seed)
		}
	}
	t.Logf("%d schedules", to-from+1)
}
