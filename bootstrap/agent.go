package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/balancer"
	"github.com/kimage-project/kimage/bootstrap/etcd"
	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/peer"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/run"
)

// Pauses between looks. A look costs handshakes, on this machine and on those
// that are asked: with little processor it is followed by a longer pause.
const (
	pauseLook    = 100 * time.Millisecond // while only this machine is asked: a wait's end is noticed at once
	pauseOthers  = 500 * time.Millisecond // while others are: there may be a thousand that ask
	pauseMoving  = 2 * time.Second
	pauseSettled = 10 * time.Second
	pausePerCPU  = 30 // times the processor time of the look, up to pauseMost
	pauseMost    = 5 * time.Second
)

// Agent makes this machine a part of its cluster, and keeps it one.
type Agent struct {
	conf  nodeconf.Config
	name  string
	image Manifest
	logf  func(string, ...any)
	phase *phases
	clock *stopwatch

	rosters *rosters
	agreed  sync.Map // by master: the digest of the roster that it had when it last answered, if this machine had the same
	seen    seen
	store   *report.Store                                      // of masters
	unready func(context.Context) (map[string][]string, error) // of masters: the Nodes that are not Ready
	shows   chan struct{}                                      // see show
	serves  chan struct{}                                      // has something in it when the own etcd begins to serve
}

func readConfig() (nodeconf.Config, error) {
	data, err := os.ReadFile(nodeconf.File)
	if err != nil {
		return nodeconf.Config{}, fmt.Errorf("this machine was not told what it is: %w", err)
	}
	return nodeconf.Decode(data)
}

// Run is the agent's whole life. It ends with ctx, or where it cannot begin.
func Run(ctx context.Context, logf func(string, ...any)) error {
	conf, err := readConfig()
	if err != nil {
		return err
	}
	image, err := readManifest()
	if err != nil {
		return err
	}
	name, err := nodeName(ctx, &conf, logf)
	if err != nil {
		return err
	}
	a := &Agent{conf: conf, name: name, image: image, logf: logf, clock: newStopwatch(time.Now), phase: &phases{node: name, logf: logf, now: time.Now, file: phaseFile},
		rosters: newRosters(conf.Cluster, logf), unready: kube.UnreadyNodes, shows: make(chan struct{}, 1), serves: make(chan struct{}, 1)}
	if err := a.setClock(); err != nil {
		logf("%v", err)
	}
	a.followRTC(ctx)
	a.beSeen(ctx)
	if err := a.identify(ctx); err != nil {
		return err
	}
	a.phase.set(partMachine, "", "")
	var etcdAgent *etcd.Agent
	if conf.Node.Has(nodeconf.RoleEtcd) {
		if etcdAgent, err = a.newEtcd(ctx); err != nil {
			return err
		}
	}
	a.rosters.open(etcdAgent)
	go a.rosters.offered(ctx, offeredFile)
	go func() {
		view := func() *etcd.View { return nil }
		if etcdAgent != nil {
			view = etcdAgent.View
		}
		if err := a.serveMetrics(ctx, view); err != nil && ctx.Err() == nil {
			logf("serving metrics: %v", err)
		}
	}()
	ended := make(chan error, 2)
	running := 0
	if etcdAgent != nil {
		running++
		go func() { ended <- etcdAgent.Run(ctx) }()
	}
	if conf.Node.Has(nodeconf.RoleMaster) || conf.Node.Has(nodeconf.RoleWorker) {
		running++
		go func() { ended <- a.runKube(ctx) }()
	}
	if running == 0 {
		return errors.New("BUG: a machine without roles")
	}
	return <-ended
}

// beSeen starts what shows a machine to people, also one that may not go on.
// None of it is needed to become a Node: a failure is said and no more.
func (a *Agent) beSeen(ctx context.Context) {
	go a.watch(ctx)
	go a.screens(ctx)
	say := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			a.logf("%s: %v", what, err)
		}
	}
	if a.conf.Node.Has(nodeconf.RoleMaster) {
		a.store = a.newStore()
		go func() { say("hearing the machines' reports", a.hearReports(ctx, nodeconf.PKIDir, clusterSocket)) }()
	}
	go func() { say("reporting to the masters", a.reports(ctx)) }()
}

// clockFloor is the latest time that has certainly passed, and of whose making it is.
func (a *Agent) clockFloor() (floor time.Time, what string) {
	if image := a.image.NotBefore; image.After(a.conf.Cluster.Issued) {
		return image, "the image's"
	}
	return a.conf.Cluster.Issued, "the config's"
}

// setClock moves a clock that is behind what is certain: certificates would
// not be valid yet.
func (a *Agent) setClock() error {
	floor, what := a.clockFloor()
	if !time.Now().Before(floor) {
		return nil
	}
	ts := unix.NsecToTimespec(floor.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("the clock is before %s making (%s) and cannot be set: %w", what, floor.Format(time.RFC3339), err)
	}
	a.logf("the clock was before %s making: set to %s", what, floor.Format(time.RFC3339))
	return nil
}

// identify goes on only when machine, image and disk are those of the config.
func (a *Agent) identify(ctx context.Context) error {
	for {
		why := a.whyNot()
		if why == "" {
			return nil
		}
		a.phase.set(partMachine, PhaseStopped, why)
		if err := sleep(ctx, pauseSettled); err != nil {
			return err
		}
	}
}

func (a *Agent) whyNot() string {
	if _, err := findData(); err != nil {
		return err.Error()
	}
	m, err := readMachine()
	if err != nil {
		return err.Error()
	}
	owner, err := readOwner()
	if err != nil {
		return err.Error()
	}
	if why := wrong(a.conf, a.name, m, a.image, owner); why != "" || owner != nil {
		return why
	}
	if err := own(ownerOf(a.conf, a.name, m)); err != nil {
		return fmt.Sprintf("writing whose disk this is: %v", err)
	}
	return ""
}

// newEtcd is what founds etcd and keeps it running.
func (a *Agent) newEtcd(ctx context.Context) (*etcd.Agent, error) {
	signed, err := readRoster(nodeconf.RosterFile)
	if err != nil {
		return nil, err
	}
	only := !a.conf.Node.Has(nodeconf.RoleMaster) && !a.conf.Node.Has(nodeconf.RoleWorker)
	keeps := false
	return etcd.New(etcd.Config{Name: a.name, Address: a.conf.Node.Addresses[0], Cluster: a.conf.Cluster, Roster: signed, State: Data + "/state",
		Mounted: func() error { _, err := findData(); return err },
		Running: etcdRuns, Start: startEtcd, Halt: haltEtcd, Ended: etcdWords, Logf: a.logf, Clock: func(name string, c *peer.Clock) { a.seen.noteClock(name, byEtcd, c) },
		Report: func(act etcd.Action) {
			if act.Do == etcd.Keep && !keeps {
				select {
				case a.serves <- struct{}{}:
				default:
				}
			}
			keeps = act.Do == etcd.Keep
			says := etcdSays(act, only, joined())
			if only && act.Do != etcd.Stop {
				awaits := kube.AwaitsEtcd
				if keeps {
					awaits = ""
				}
				a.clock.looked(awaits)
			}
			if says.phase == PhaseReady {
				a.ready(ctx, partEtcd, says.why)
			} else {
				a.phase.set(partEtcd, says.phase, says.why)
			}
		}})
}

// etcdSays is what etcd's agent has to say of the phase, on a machine that is only
// an etcd member or a Node that has joined or not. The phase of one that has is
// the kubelet's: why etcd does not run, or what it lacks, is told beside it.
func etcdSays(act etcd.Action, only, joined bool) saying {
	switch {
	case act.Do == etcd.Stop:
		return saying{PhaseStopped, act.Why}
	case act.Do == etcd.Keep && only && act.Stuck:
		return saying{PhaseEtcd, act.Note}
	case act.Do == etcd.Keep && only:
		return saying{PhaseReady, act.Note}
	case act.Do == etcd.Keep:
		return saying{why: act.Note}
	case only || !joined:
		return saying{PhaseEtcd, act.Why}
	}
	return saying{why: "etcd: " + act.Why}
}

func joined() bool { return exists("/etc/kubernetes/kubelet.conf") }

// runKube makes the machine a Node.
func (a *Agent) runKube(ctx context.Context) error {
	addresses := a.conf.Node.Addresses
	for len(addresses) == 0 {
		if found := a.ownAddress(); found != "" {
			addresses = []string{found}
			break
		}
		a.clock.looked(awaitsAddress)
		a.phase.set(partKube, PhaseWaiting, "no network leads to a master: this machine has no address yet (is the cable in, does DHCP answer?)")
		if err := sleep(ctx, pauseMoving); err != nil {
			return err
		}
	}
	n, err := kube.New(kube.Config{Node: a.conf, Name: a.name, Addresses: addresses, Roster: func() nodeconf.Roster { return a.rosters.highest().Roster }, Clock: a.seen.clockWrong, Lock: a.askLock, Logf: a.logf, Run: a.runProgram})
	if err != nil {
		return err
	}
	if err := a.awaitImages(ctx); err != nil {
		return err
	}
	said := "" // the last failure: one that repeats is said once
	for {
		before := processorTime()
		s := n.Observe(ctx)
		cost := processorTime() - before
		act := kube.Decide(s)
		a.tell(act)
		awaits := s.Awaits(act)
		if act.Verb != kube.Keep { // what a Node that is not Ready waits for, settle sees
			a.clock.looked(awaits)
		}
		err := n.Apply(ctx, act)
		failure := ""
		switch {
		case errors.Is(err, kube.ErrBusy):
			awaits = kube.AwaitsOthers
			a.clock.looked(awaits)
		case err != nil && ctx.Err() == nil:
			failure = fmt.Sprintf("%s: %v", act.Verb, err)
			if failure != said {
				a.logf("%s", failure)
			}
		}
		said = failure
		pause := a.pause(ctx, n, act, awaits, failure)
		if pause > 0 {
			pause = max(pause, min(pausePerCPU*cost, pauseMost))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.serves:
		case <-time.After(pause):
		}
	}
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// pause says when to look again after act.
func (a *Agent) pause(ctx context.Context, n *kube.Node, act kube.Action, awaits, failure string) time.Duration {
	switch {
	case act.Verb == kube.Keep:
		if a.settle(ctx, n) {
			return pauseSettled
		}
		return pauseLook
	case awaits == kube.AwaitsEtcd, awaits == kube.AwaitsRuntime:
		return pauseLook
	case awaits == kube.AwaitsOthers:
		return pauseOthers
	case awaits != kube.AwaitsNothing || failure != "" || act.Verb == kube.Stop:
		return pauseMoving
	}
	return 0
}

// runProgram runs what package kube runs, and notes how long kubeadm takes.
func (a *Agent) runProgram(ctx context.Context, c run.Cmd) error {
	if c.Argv[0] != "kubeadm" {
		return run.Run(ctx, c)
	}
	return a.clock.during(awaitsKubeadm, func() error { return run.Run(ctx, c) })
}

// tell says which phase begins; when a master's init or join does, askLock knows.
func (a *Agent) tell(act kube.Action) {
	switch act.Verb {
	case kube.Stop:
		a.phase.set(partKube, PhaseStopped, act.Why)
	case kube.Wait, kube.Clean, kube.Certify:
		a.phase.set(partKube, PhaseWaiting, act.Why)
	case kube.Join:
		if !a.conf.Node.Has(nodeconf.RoleMaster) {
			a.phase.set(partKube, PhaseJoin, act.Why)
		}
	}
}

// settle tells whether the machine is Ready, for which it waits a while, and the
// balancers which API servers the cluster has.
func (a *Agent) settle(ctx context.Context, n *kube.Node) bool {
	for end := time.Now().Add(pauseMoving); ; {
		before := processorTime()
		ready, why := n.Ready(ctx)
		if ready {
			break
		}
		pause := max(pauseLook, pausePerCPU*(processorTime()-before))
		a.clock.looked(awaitsNetwork)
		a.phase.set(partKube, PhaseJoined, why)
		if time.Now().After(end) || sleep(ctx, min(pause, pauseMost)) != nil {
			return false
		}
	}
	a.clock.looked("")
	a.ready(ctx, partKube, "")
	n.Settled()
	servers, err := n.APIServers(ctx)
	if err != nil {
		return true // those that are known stay
	}
	if err := balancer.WriteAPIServers(balancer.StateDir, a.conf.Cluster.UID, servers); err != nil {
		a.logf("%v", err)
	}
	return true
}

// ready says that the machine is, and for the first time how it came to be. note
// is for people.
func (a *Agent) ready(ctx context.Context, by part, note string) {
	took, first := a.clock.ready(ctx)
	a.phase.tookTo(took)
	a.phase.set(by, PhaseReady, note)
	if first {
		a.logf("ready: %s", took)
	}
}

// masters are those of the highest roster on this machine.
func (a *Agent) masters() []nodeconf.Master { return a.rosters.highest().Masters }

// ownAddress is the source of the route to the masters; nothing is sent.
func (a *Agent) ownAddress() string {
	for _, m := range a.masters() {
		conn, err := net.Dial("udp", net.JoinHostPort(m.Address, "6443"))
		if err != nil {
			continue
		}
		conn.Close()
		if ap, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
			return ap.Addr().WithZone("").String()
		}
	}
	return ""
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
