package balancer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"
)

// The times of a probe. A backend that falls silent right after an answer is
// asked again after interval, and found silent after timeout: 1.7 s. One that
// fails at once is asked again every retry, until it has failed for patience:
// 1.75 s. Asking costs an API server a read of etcd and this machine most of what
// its balancers use of a processor, so that none is asked more often.
const (
	interval = 850 * time.Millisecond
	timeout  = 850 * time.Millisecond
	patience = 800 * time.Millisecond
	retry    = 100 * time.Millisecond
	// A backend that stands by, see standsBy, is asked every standby. It is asked at
	// once when one that is used does not answer for doubt, and when a connection is
	// placed on it.
	standby = 10 * interval
	doubt   = 300 * time.Millisecond
	// A time-out is slower times what answers take of late, if that is more than
	// timeout, and at most maxTimeout: where every processor is emulated or
	// overloaded, connections that are made again only make all slower.
	slower     = 6
	maxTimeout = 10 * time.Second
	// What may still answer is given up after slowest times the longest delay of
	// handshakes lately, if that is more than patience. A delay counts less from
	// answer to answer: with three answers a second, a third of it is left after 90 s.
	slowest = 3
	fade    = 256
	// Where answers are dear, they are asked for less often: after dear times what
	// the quickest of the last few took, and at most after standby.
	dear = 8
	// beyond: a probe that hung since before another backend became ready ends, and
	// one more is asked, before anything is closed.
	beyond = 300 * time.Millisecond
	// late: a probe that ends this long after its deadline says that this machine
	// stood still, not the backend.
	late = 250 * time.Millisecond
	// What has failed for long is asked every standby, while others are ready.
	long = time.Minute
)

// backend is one server and the connections placed on it. All fields but addr
// and kick are under the balancer's mutex.
type backend struct {
	addr  string
	kick  chan struct{} // asks for a probe now
	state state
	flows map[*flow]struct{}
}

// probeNow ends the pause between two probes.
func (b *backend) probeNow() {
	select {
	case b.kick <- struct{}{}:
	default: // it is asked for already
	}
}

// watch probes one backend until ctx ends, or it is neither listed nor used.
func (b *Balancer) watch(ctx context.Context, be *backend) {
	defer b.running.Done()
	p := &prober{addr: be.addr, path: b.config.Path, tls: b.config.TLS}
	defer p.close()
	pause, due := newPause()
	defer pause.close()
	doubts := newTimer(b.askStandbys)
	defer doubts.close()
	pause.reset(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-be.kick:
			pause.stop()
		case <-due:
		}
		began, limit := time.Now(), b.timeout()
		doubts.reset(doubt)
		h, why := p.probe(ctx, limit)
		doubts.stop()
		if h != Ready && time.Since(began) > limit+late {
			began = time.Now()
			h, why = p.probe(ctx, limit)
		}
		if ctx.Err() != nil {
			return
		}
		next, done := b.record(be, h, why, began)
		if done {
			return
		}
		pause.reset(next)
	}
}

// timeout is how long a backend may take to answer.
func (b *Balancer) timeout() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pace.timeout()
}

// pace is how long answers take of late: an average, so that one that was late
// does not count for much. It begins with the longest that counts, and so does
// peak: the time after a start is the busiest, and what begins then is slow.
type pace time.Duration

const maxPace = pace(maxTimeout) / slower

// and weighs an answer so that one which just came in time does not make the time-out longer.
func (p pace) and(answer time.Duration) pace { return p + (pace(answer)-p)/slower }

func (p pace) timeout() time.Duration {
	return min(max(timeout, slower*time.Duration(p)), maxTimeout)
}

// peak is the longest delay of handshakes lately; see answered.
type peak time.Duration

const maxPeak = peak(maxTimeout) / slowest

func (p peak) and(answer time.Duration) peak {
	return min(max(peak(answer), p-(p-peak(answer))/fade), maxPeak)
}

func (p peak) late() time.Duration { return max(patience, slowest*time.Duration(p)) }

// lately are the last answers' times, the oldest overwritten.
type lately struct {
	took [8]time.Duration
	next int
}

func (l *lately) add(took time.Duration) {
	l.took[l.next%len(l.took)] = took
	l.next++
}

// dear is how much longer than interval is waited before the next question. What
// makes some answers slow, as an election, does not count: the quickest does.
func (l *lately) dear() time.Duration {
	return min((dear * slices.Min(l.took[:])).Truncate(interval), standby-interval)
}

// answered takes in how long an answer took; b.mu is held. Of a backend that was
// late with its handshakes that is all the time since it failed, unless that is
// longer than anything is waited for. Other answers count for little: an election
// delays them too, and handshakes never.
func (b *Balancer) answered(was state, took time.Duration, now time.Time) {
	b.pace = b.pace.and(took)
	b.lately.add(took)
	took = min(took, interval)
	if late := now.Sub(was.failing); was.late && late < 2*maxTimeout {
		took = late
	}
	b.peak = b.peak.and(took)
}

func (b *Balancer) limits() limits {
	return limits{late: b.peak.late(), grace: b.pace.timeout() + beyond}
}

// record takes in a probe's result and says when to ask again.
func (b *Balancer) record(be *backend, h Health, why string, began time.Time) (pause time.Duration, done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !be.state.listed && len(be.flows) == 0 {
		b.forget(be)
		return 0, true
	}
	was, now := be.state, time.Now()
	be.state = be.state.observe(h, began, now)
	if h == Ready {
		b.answered(was, now.Sub(began), now)
	}
	if h != Ready && was.health == Ready {
		b.askStandbysLocked()
	}
	if h != was.health {
		b.logf("%s is %s%s", be.addr, h, why)
	}
	if be.state.ready != was.ready {
		// What failed while nobody served may do so no longer, as after an election.
		// What does after grace is given up.
		for _, o := range b.backends {
			if o != be && o.state.health != Ready {
				o.probeNow()
			}
		}
		b.giveUpAfter(b.limits().grace)
		b.giveUp(time.Now())
	}
	if h != Ready {
		b.giveUp(time.Now())
		if time.Since(be.state.failing) < 2*patience || be.state.first && !b.anyReady() {
			return retry, false // the own one is near, and a whole machine waits for it
		}
	}
	pause = b.untilNextTick(now)
	switch {
	case b.standsBy(be):
		pause += standby - interval
	case h == Ready:
		pause += b.lately.dear()
	case !b.anyReady():
		pause = max(pause, now.Sub(began)) // there is nobody to change to
	case !be.state.first && now.Sub(be.state.failing) > long:
		pause += standby - interval
	}
	return pause, false
}

// standsBy says whether nobody uses a backend that is ready, and others are in use
// and ready: most often members of etcd on other machines. Each question there
// costs a message to every member; b.mu is held.
func (b *Balancer) standsBy(be *backend) bool {
	return be.state.health == Ready && len(be.flows) == 0 && !be.state.first && slices.ContainsFunc(b.backends, func(o *backend) bool {
		return o != be && o.state.listed && o.state.health == Ready && (len(o.flows) > 0 || o.state.first)
	})
}

func (b *Balancer) askStandbys() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.askStandbysLocked()
}

func (b *Balancer) askStandbysLocked() {
	for _, be := range b.backends {
		if be.state.health == Ready && len(be.flows) == 0 && time.Since(be.state.answered) > interval {
			be.probeNow()
		}
	}
}

// anyReady: b.mu is held.
func (b *Balancer) anyReady() bool {
	return slices.ContainsFunc(b.backends, func(be *backend) bool { return be.state.health == Ready })
}

// untilNextTick is at most interval. All backends are asked at the same
// instants, because waking up costs more than asking; other nodes have others,
// or a master would be asked by all at once.
func (b *Balancer) untilNextTick(now time.Time) time.Duration {
	sum := sha256.Sum256([]byte(b.config.Seed))
	phase := time.Duration(binary.BigEndian.Uint32(sum[:])) % interval
	return interval - (time.Duration(now.UnixNano())+phase)%interval
}

// giveUpAfter looks again when what fails now had its time. A
// timer that comes late says that this machine stood still: the probes' own
// results count then.
func (b *Balancer) giveUpAfter(d time.Duration) {
	due := time.Now().Add(d)
	time.AfterFunc(d, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if now := time.Now(); !b.closed && now.Sub(due) < late {
			b.giveUp(now)
		}
	})
}

// giveUp closes the connections of backends that are given up; b.mu is held.
func (b *Balancer) giveUp(now time.Time) {
	states := b.states()
	for _, i := range givenUp(states, now, b.limits(), b.config.CutUnready) {
		be := b.backends[i]
		n := 0
		for f := range be.flows {
			if f.cut() {
				n++
			}
		}
		if n > 0 {
			b.logf("%s is %s: closed its connections, %d", be.addr, be.state.health, n)
		}
	}
}
