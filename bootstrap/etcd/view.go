package etcd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// viewCache is what the own etcd last said of the members. It is asked again
// only when something about the machines has changed or is being changed, and
// now and then: a read from a quorum costs all members something.
type viewCache struct {
	now func() time.Time

	mu    sync.Mutex
	view  *View
	hears map[string]bool
	alone *View  // without a view: what the own etcd knows by itself
	of    string // what the machines looked like
	at    time.Time
	known []EtcdMember // of the last view that there was
}

// viewAge is how old a view may be while nothing changes.
const viewAge = time.Minute

func (c *viewCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view, c.alone = nil, nil
}

func (c *viewCache) last() *View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

func (c *viewCache) withoutQuorum() *View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alone
}

// members are those of the last view, also after it was forgotten: they are asked.
func (c *viewCache) members() []EtcdMember {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known
}

// View is what the own etcd last said of the members; nil: it is not known.
func (a *Agent) View() *View { return a.view.last() }

// askOwn asks the own etcd of a member with data, or remembers what it said. If
// no quorum answers it, what it knows by itself is in alone.
func (a *Agent) askOwn(ctx context.Context, s State) (view, alone *View, heard map[string]bool) {
	c := a.view
	if a.etcd == nil || s.Unknown != "" || !s.Running || !s.Facts.Data {
		c.forget()
		return nil, nil, nil
	}
	c.mu.Lock()
	s.View, s.Hears = c.view, c.hears
	of, fresh := s.looks(), c.now().Sub(c.at) < viewAge
	same := of == c.of
	c.mu.Unlock()
	if s.View != nil && fresh && same {
		if step, why := nextStep(s); step.Do == "" && why == "" {
			return s.View, nil, s.Hears
		}
	}
	v, err := a.etcd.view(ctx)
	if err == nil {
		view = &v
	} else if v, err = a.etcd.known(ctx); err == nil { // a learner knows nothing, and one that has just started
		for i, m := range v.Members {
			v.Members[i].Name, v.Members[i].Incarnation = s.owner(m)
		}
		alone = &v
	}
	if err == nil {
		heard, err = a.etcd.hears(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view, c.alone, c.hears, c.of, c.at = nil, nil, nil, of, c.now()
	if err != nil {
		return nil, nil, nil
	}
	c.view, c.alone, c.hears, c.known = view, alone, heard, v.Members
	return view, alone, heard
}

// looks is what repair would see differently if it changed.
func (s State) looks() string {
	var b strings.Builder
	b.WriteString(s.Digest)
	for _, name := range slices.Sorted(maps.Keys(s.Answers)) {
		a := s.Answers[name]
		fmt.Fprint(&b, " ", name, a.Err == "", a.Status.Incarnation, a.Status.Data, a.Status.Running, a.Status.Member)
	}
	return b.String()
}

// live adds to a status what is so at this moment.
func (a *Agent) live(ctx context.Context, st *Status, prove bool) {
	if !st.Data {
		a.mu.Lock()
		defer a.mu.Unlock()
		st.Unfit = a.unfit
		return
	}
	var err error
	if st.Running, err = a.cfg.Running(ctx); err != nil || !st.Running {
		st.Running = false
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.last.Do == Keep {
			a.wake() // it ended since the last look
		}
		return
	}
	if prove && a.etcd != nil {
		ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout*3/4)
		defer cancel()
		if v, err := a.etcd.view(ctx); err == nil && v.Self == st.Member {
			st.View, st.Serves = &v, true
			return
		}
	}
	st.View, st.Alone = a.view.last(), a.view.withoutQuorum()
}
