package etcd

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/peer"
)

// askAll asks every other member and waits for the answers.
func (a *Agent) askAll(ctx context.Context, prove bool) {
	s := a.member.observe()
	var wg sync.WaitGroup
	for _, m := range a.peers(s) {
		wg.Go(func() { a.askOne(ctx, m, s, nil, prove) })
	}
	wg.Wait()
}

// peers are all that are asked: the roster's other members, those of etcd, who
// asks, and by a machine without data also those that left the roster.
func (a *Agent) peers(s State) (all []nodeconf.Member) {
	if s.Facts.Roster == nil {
		return nil
	}
	members := s.Roster.Members
	if !s.Facts.Data {
		members = slices.Concat(members, s.Roster.Left)
	}
	for _, m := range a.view.members() {
		members = append(members[:len(members):len(members)], nodeconf.Member{Name: m.Name, PeerURL: m.PeerURL})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	known := func(name string) bool {
		return slices.ContainsFunc(all, func(m nodeconf.Member) bool { return m.Name == name })
	}
	for _, m := range members {
		if m.Name != "" && m.Name != a.cfg.Name && !known(m.Name) {
			all = append(all, m)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.callers)) {
		c := a.callers[name]
		switch {
		case a.cfg.Now().Sub(c.at) > callerAge:
			delete(a.callers, name)
			delete(a.answers, name)
		case !known(name):
			all = append(all, c.Member)
		}
	}
	return all
}

// askOne asks one member, and hears the answer.
func (a *Agent) askOne(ctx context.Context, m nodeconf.Member, s State, rec *Record, prove bool) {
	sent := a.cfg.Now()
	st, err := a.ask(ctx, m, Question{ClusterUID: a.cfg.Cluster.UID, Roster: *s.Facts.Roster, Record: rec, Prove: prove, PeerURL: a.peerURL(s)})
	now := a.cfg.Now()
	answer := Answer{AskedAfter: s.Writes, Status: st}
	if err != nil {
		answer.Err, answer.BadTime = peer.Why(err, now), peer.BadTime(err)
	} else if !st.Time.IsZero() {
		answer.Ahead = st.Time.Sub(sent.Add(now.Sub(sent) / 2))
	}
	if a.cfg.Clock != nil {
		a.cfg.Clock(m.Name, answer.clock(m.Name))
	}
	a.hear(m.Name, answer)
}

// hear keeps an answer.
func (a *Agent) hear(name string, answer Answer) {
	a.mu.Lock()
	a.answers[name] = answer
	if _, asked := a.heard[name]; !asked || answer.Err == "" {
		a.heard[name] = a.cfg.Now()
	}
	a.mu.Unlock()
	if answer.Status.Roster != nil {
		a.offer(*answer.Status.Roster)
	}
	count := Count{answer.Status.Incarnation, answer.Status.Counter, answer.Status.Tag}
	a.mu.Lock()
	known := answer.Err != "" || a.counts[name] == count
	a.mu.Unlock()
	if known {
		return
	}
	if err := a.member.heard(name, count); err != nil {
		a.cfg.Logf("etcd: noting how far %s has counted: %v", name, err)
		return
	}
	a.mu.Lock()
	a.counts[name] = count
	a.mu.Unlock()
}

// offer keeps a roster to be looked at.
func (a *Agent) offer(r nodeconf.SignedRoster) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.offers {
		if o.Digest() == r.Digest() {
			return
		}
	}
	a.offers = append(a.offers, r)
}

// Offer has a roster looked at that came by another way than from a member.
func (a *Agent) Offer(r nodeconf.SignedRoster) {
	a.offer(r)
	a.wake()
}
