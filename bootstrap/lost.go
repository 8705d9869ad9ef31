package bootstrap

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/report"
)

const (
	// lostAfter is how long no master answers before a worker listens for what the
	// masters may have to say.
	lostAfter = time.Minute
	// deliverEvery is how often masters look for machines that nobody hears of.
	deliverEvery = time.Minute
)

// ear listens for a roster while no master answers this machine, and no longer.
type ear struct {
	listen func(ctx context.Context) error
	logf   func(string, ...any)
	now    func() time.Time
	after  time.Duration

	since time.Time     // no master has answered; zero: one has
	stop  func()        // nil: it does not listen
	ended chan struct{} // closed when it does no longer
}

// newEar is nil on masters, which hear everybody, and on etcd members, whose
// agents find each other.
func (a *Agent) newEar() *ear {
	if a.conf.Node.Has(nodeconf.RoleMaster) || a.conf.Node.Has(nodeconf.RoleEtcd) {
		return nil
	}
	return &ear{logf: a.logf, now: time.Now, after: lostAfter, listen: func(ctx context.Context) error {
		return report.Receive(ctx, 0, func(s nodeconf.SignedRoster, from string) { a.rosters.take(s, from) })
	}}
}

// heard is told after each round of reports whether a master answered.
func (e *ear) heard(ctx context.Context, answered bool) {
	if e != nil && e.stop != nil {
		select {
		case <-e.ended:
			e.close() // the port was not free: it tries again
		default:
		}
	}
	switch {
	case e == nil:
	case answered:
		e.since = time.Time{}
		e.close()
	case e.since.IsZero():
		e.since = e.now()
	case e.stop == nil && e.now().Sub(e.since) >= e.after:
		e.logf("no master answers: listening for a roster that names others")
		ctx, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		e.ended = ended
		go func() {
			defer close(ended)
			if err := e.listen(ctx); err != nil && ctx.Err() == nil {
				e.logf("listening for a roster: %v", err)
			}
		}()
		e.stop = func() { cancel(); <-ended }
	}
}

func (e *ear) close() {
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

// deliverRosters brings the roster to the machines that no longer report, until ctx
// ends: they may know none of the masters that there are.
func (a *Agent) deliverRosters(ctx context.Context) {
	// At first nobody was heard of.
	for pause := report.SilentAfter; sleep(ctx, pause) == nil; pause = deliverEvery {
		a.deliverRoster(ctx, 0)
	}
}

// deliverRoster is one round. Who is off costs a connection that is never made.
func (a *Agent) deliverRoster(ctx context.Context, port int) {
	roster := a.rosters.highest()
	if roster.Serial == 0 {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, 16)
	for name, addresses := range a.silent(ctx) {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			for _, address := range addresses {
				if report.Deliver(ctx, address, port, roster.Signed) == nil {
					a.logf("brought the roster to %s at %s, which reported to no master", name, address)
					return
				}
			}
		})
	}
}

// silent are the addresses of the workers that were not heard of for too long, by
// name: as the cluster file has them, and as their Nodes do.
func (a *Agent) silent(ctx context.Context) map[string][]string {
	machines, pools, _ := a.store.List()
	lacks := slices.ContainsFunc(pools, func(p report.Pool) bool { return p.Heard < p.Size })
	all, heard := map[string][]string{}, map[string]bool{}
	for _, m := range machines {
		switch {
		case !m.Silent, slices.Contains(m.Roles, nodeconf.RoleMaster), slices.Contains(m.Roles, nodeconf.RoleEtcd):
			heard[m.Name] = true
		case m.Report != nil:
			all[m.Name] = slices.Concat(m.Addresses, m.Report.Addresses)
		default:
			all[m.Name], lacks = slices.Clone(m.Addresses), lacks || len(m.Addresses) == 0
		}
	}
	if lacks {
		// An error is no news: the API server is not up, and its own story is told.
		found, _ := a.unready(ctx)
		for name, addresses := range found {
			if !heard[name] {
				all[name] = append(all[name], addresses...)
			}
		}
	}
	for name, addresses := range all {
		slices.Sort(addresses)
		all[name] = slices.Compact(addresses)
	}
	return all
}
