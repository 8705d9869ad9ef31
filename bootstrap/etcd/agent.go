package etcd

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/peer"
)

// Config is what founding needs to know of its machine.
type Config struct {
	Name    string                // of the node, as in the roster
	Address string                // the node's own; empty is an error
	Cluster nodeconf.Cluster      // UID, the key of rosters, and the earliest time
	Roster  nodeconf.SignedRoster // what first boot wrote
	State   string                // directory on KIMAGE; empty is an error
	PKI     string                // empty: nodeconf.PKIDir
	Etcdutl string                // program; empty: etcdutl

	Heartbeat time.Duration // of etcd, the same on all members; 0: see timing
	Election  time.Duration // of etcd, the same on all members; 0: see timing
	Interval  time.Duration // between looks while something is awaited; 0: a second
	Settled   time.Duration // between looks while etcd runs; 0: seven seconds
	Timeout   time.Duration // of one question; 0: five seconds
	Count     time.Duration // how old a copy of the disk may be and not be noticed; 0: ten minutes

	// Mounted says why State must not be believed; no error: KIMAGE is mounted there.
	Mounted func() error
	// Running says whether etcd runs, or is about to: from Start on.
	Running func(context.Context) (bool, error)
	// Start starts etcd; on one that runs already it does nothing.
	Start func(context.Context, Launch) error
	// Ended returns the last words of an etcd that does not run; nil: it has none.
	Ended func(context.Context) (string, error)
	// Halt stops etcd, if it runs or is about to, and returns when it has ended.
	Halt func(context.Context) error

	// Clock is told what an answer showed of another member's clock; nil: nothing.
	Clock  func(name string, seen *peer.Clock)
	Now    func() time.Time     // nil: time.Now
	Report func(Action)         // each decision that differs from the last; nil: only logged
	Logf   func(string, ...any) // nil: nowhere
}

// Agent founds etcd on one machine and keeps its data and its roster.
type Agent struct {
	cfg     Config
	member  *member
	trust   *trust
	trouble string    // see State.Trouble
	counted time.Time // when it counted last; zero: not yet
	proofs  bool      // the others are to prove a quorum, because the own etcd does not run
	etcd    ownEtcd   // the own one; nil: it is not asked, and repairs nothing
	view    *viewCache
	survey  func(ctx context.Context, prove bool) // asks all other members
	ask     func(context.Context, nodeconf.Member, Question) (Status, error)
	make    func(context.Context, Record) (string, error)
	woken   chan struct{}

	mu      sync.Mutex
	answers map[string]Answer
	heard   map[string]time.Time    // when a peer last answered; of one that never did, when it was first asked
	counts  map[string]Count        // those that are noted, by name
	callers map[string]caller       // who asks and is not in the roster, by name
	offers  []nodeconf.SignedRoster // not yet looked at
	unfit   string                  // why this image's etcd cannot join
	last    Action
}

// settled is the pause between looks while etcd runs. That etcd has ended is noticed sooner
// where other members ask.
const settled = 7 * time.Second

// New checks the config and reads the certificates; it touches no state.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.Name == "" || cfg.State == "" || cfg.Cluster.UID == "":
		return nil, errors.New("BUG: founding without a name, a state directory or a cluster")
	case net.ParseIP(cfg.Address) == nil:
		return nil, fmt.Errorf("%s is not this node's address: etcd members have a fixed one in the cluster file", cfg.Address)
	case cfg.Mounted == nil || cfg.Running == nil || cfg.Start == nil || cfg.Halt == nil:
		return nil, errors.New("BUG: founding without Mounted, Running, Start or Halt")
	}
	fill(&cfg.PKI, nodeconf.PKIDir)
	fill(&cfg.Etcdutl, "etcdutl")
	fill(&cfg.Interval, time.Second)
	fill(&cfg.Settled, settled)
	fill(&cfg.Timeout, 5*time.Second)
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	a := newAgent(cfg, &stateDisk{dir: cfg.State, mounted: cfg.Mounted})
	t, err := loadTrust(cfg.PKI, a.cfg.Now, cfg.Cluster.Issued)
	if err != nil {
		return nil, err
	}
	a.trust = t
	a.ask = newClient(t, cfg.Cluster.UID, AgentPort, cfg.Timeout).ask
	a.make = a.restore
	if a.etcd, err = newGateway(cfg.PKI, cfg.Address, "https://"+net.JoinHostPort(cfg.Address, strconv.Itoa(ClientPort)), "http://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(MetricsPort)), cfg.Timeout); err != nil {
		return nil, err
	}
	return a, nil
}

func fill[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}

// newAgent is New without files and network.
func newAgent(cfg Config, d disk) *Agent {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	fill(&cfg.Count, 10*time.Minute)
	a := &Agent{
		cfg: cfg,
		member: &member{name: cfg.Name, uid: cfg.Cluster.UID, disk: d,
			random: func() string { return strings.ToLower(rand.Text()) },
			open: opened(func(s nodeconf.SignedRoster) (nodeconf.Roster, error) {
				return s.Open(cfg.Cluster.RosterKey, cfg.Cluster.UID)
			})},
		woken:   make(chan struct{}, 1),
		view:    &viewCache{now: cfg.Now},
		answers: map[string]Answer{},
		heard:   map[string]time.Time{},
		counts:  map[string]Count{},
		callers: map[string]caller{},
		offers:  []nodeconf.SignedRoster{cfg.Roster},
	}
	a.survey = a.askAll
	return a
}

// Run answers the other agents and founds, until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	ln, err := a.listen(ctx)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: a.handler(), ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0)} // of strangers; a member's agent says itself why it is refused
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(tls.NewListener(ln, a.trust.config(x509.ExtKeyUsageClientAuth, func(string) error { return nil })))
	}()
	defer server.Close()
	for {
		a.count()
		act := a.round(ctx)
		pause := a.cfg.Interval
		switch act.Do {
		case Keep:
			pause = a.cfg.Settled
		case TakeRoster, Renew, Hold, Found, SetAside, Join, Joined:
			pause = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-served:
			return err
		case <-a.woken:
		case <-time.After(pause):
		}
	}
}

// count counts up at each start, and now and then while it runs.
func (a *Agent) count() {
	now := a.cfg.Now()
	if (a.counted.IsZero() || now.Sub(a.counted) >= a.cfg.Count) && a.member.count() == nil {
		a.counted = now
	}
}

// listen waits for the node's address. The port is also what keeps a second
// agent from the same state: the order of writes is known to one process only.
func (a *Agent) listen(ctx context.Context) (net.Listener, error) {
	for {
		ln, err := net.Listen("tcp", net.JoinHostPort(a.cfg.Address, strconv.Itoa(AgentPort)))
		if err == nil {
			return ln, nil
		}
		a.report(Action{Do: Wait, Why: err.Error()})
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(a.cfg.Interval):
		}
	}
}

// round is one look, decision and step.
func (a *Agent) round(ctx context.Context) Action {
	a.survey(ctx, a.proofs)
	s := a.observe(ctx)
	act := Decide(s)
	a.report(act)
	if err := a.apply(ctx, s, act); err != nil && !errors.Is(err, errMoved) && ctx.Err() == nil {
		if act.Do == Keep {
			act.Note = err.Error()
			act.Why = "etcd runs; " + act.Note
		} else {
			act = Action{Do: Wait, Why: err.Error()}
		}
		a.report(act)
	}
	return act
}

// caller is another etcd machine that asked this one.
type caller struct {
	nodeconf.Member
	at time.Time
}

// callerAge is how long somebody who is not in the roster is asked back: a
// member that left it is one until its successors are.
const callerAge = 5 * time.Minute

// wake ends the pause between two rounds.
func (a *Agent) wake() {
	select {
	case a.woken <- struct{}{}:
	default:
	}
}

// observe is the state that is decided on.
func (a *Agent) observe(ctx context.Context) (s State) {
	s = a.member.observe()
	if s.Unknown != "" {
		return s
	}
	if s.Facts.Data || s.Facts.joining() {
		var err error
		if s.Running, err = a.cfg.Running(ctx); err != nil {
			s.Unknown = err.Error()
			return s
		}
		if s.Facts.Incarnation.Started && !s.Running && a.cfg.Ended != nil && (s.Facts.Data || a.unfit == "") {
			if s.Ended, err = a.cfg.Ended(ctx); err != nil {
				s.Unknown = err.Error()
				return s
			}
		}
	}
	if s.Facts.Data && s.Facts.Incarnation.Started && !s.Running {
		a.trouble = troubleBy(s.Ended)
	}
	s.Trouble = a.trouble
	if s.Facts.joining() && s.Running && a.etcd != nil {
		if id, err := a.etcd.self(ctx); err == nil {
			s.RunsAs = id
			s.Facts.Data = a.member.observe().Facts.Data // it made it before it answered
		}
	}
	a.proofs = s.Facts.Data && unusableBy(s.Ended) != ""
	defer func() {
		if s.View, s.Alone, s.Hears = a.askOwn(ctx, s); s.View != nil || s.Alone != nil {
			a.trouble, s.Trouble = "", ""
		}
	}()
	a.mu.Lock()
	defer a.mu.Unlock()
	if unfit := unfitBy(s.Ended); unfit != "" && !s.Facts.Data {
		a.unfit = unfit
	}
	s.Unfit = a.unfit
	s.Answers, s.Silent = map[string]Answer{}, map[string]time.Duration{}
	for name, answer := range a.answers {
		s.Answers[name] = answer
		s.Silent[name] = a.cfg.Now().Sub(a.heard[name])
	}
	s.Offer, s.Refused = a.highest(s)
	return s
}

// highest looks at the rosters that were heard of. Those that are not higher
// are forgotten; one that contradicts the own one is kept, to be complained of.
func (a *Agent) highest(s State) (offer *nodeconf.SignedRoster, refused string) {
	best, kept := s.Roster, a.offers[:0]
	for _, o := range a.offers {
		r, err := a.member.open(o)
		if err != nil {
			refused = err.Error()
			if o.Digest() == a.cfg.Roster.Digest() {
				kept = append(kept, o) // the own config is wrong; say so at every look
			}
			continue
		}
		newer, err := r.Newer(best)
		if err != nil {
			refused = err.Error()
			kept = append(kept, o)
		}
		if newer {
			best, offer = r, &o
			kept = append(kept, o)
		}
	}
	a.offers = kept
	return offer, refused
}

// apply does what was decided, if nothing was written since.
func (a *Agent) apply(ctx context.Context, s State, act Action) error {
	switch act.Do {
	case Stop, Wait:
		return nil
	case Keep:
		if act.Repair.Do == "" {
			return nil
		}
		return a.repair(ctx, act.Repair)
	case TakeRoster:
		return a.member.takeRoster(s, act.Roster)
	case Renew:
		// The data may have been removed below a running etcd. It would go on as a
		// member that nobody can replace, since the others hear it.
		if err := a.cfg.Halt(ctx); err != nil {
			return err
		}
		return a.member.renew(s)
	case Hold:
		return a.member.hold(s, act.Record)
	case Join:
		return a.member.join(s, act.Cluster)
	case Joined:
		return a.member.joined(s)
	case Propose:
		a.propose(ctx, s, act)
		return nil
	case Found:
		return a.member.found(ctx, s, act.Record, a.make)
	case SetAside:
		if err := a.cfg.Halt(ctx); err != nil {
			return err
		}
		return a.member.setAside(s)
	case Start:
		if err := a.member.started(s); err != nil {
			return err
		}
		return a.cfg.Start(ctx, a.cfg.launch(s.Facts, s.Roster, a.peerURL(s)))
	}
	return fmt.Errorf("BUG: no way to do %q", act.Do)
}

// peerURL is where the own etcd listens: as the cluster knows it. One that left
// the roster is a member until it is replaced.
func (a *Agent) peerURL(s State) string {
	if rec := s.Facts.held(s.Self); rec != nil {
		return rec.peerURL(s.Self)
	}
	for _, m := range s.Roster.Members {
		if m.Name == s.Self {
			return m.PeerURL
		}
	}
	return "https://" + net.JoinHostPort(a.cfg.Address, strconv.Itoa(PeerPort))
}

// propose sends a record to those that do not hold it.
func (a *Agent) propose(ctx context.Context, s State, act Action) {
	for _, m := range s.Roster.Members {
		if slices.Contains(act.To, m.Name) {
			a.askOne(ctx, m, s, &act.Record, false)
		}
	}
	a.wake()
}

// report tells of a decision that differs from the last.
func (a *Agent) report(act Action) {
	a.mu.Lock()
	same := a.last.Do == act.Do && a.last.Why == act.Why
	a.last = act
	a.mu.Unlock()
	if same {
		return
	}
	a.cfg.Logf("etcd: %s: %s", act.Do, act.Why)
	if a.cfg.Report != nil {
		a.cfg.Report(act)
	}
}
