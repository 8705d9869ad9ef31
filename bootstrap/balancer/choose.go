package balancer

import (
	"cmp"
	"slices"
	"time"
)

// Health is what the last probe of a backend found.
type Health int

const (
	Unknown Health = iota // not asked yet
	Ready                 // answered 200
	Unready               // spoke TLS, and answered something else or nothing
	Late                  // accepted the connection, and spoke no TLS in time
	Dead                  // no connection: refused, silent, or the certificate of somebody else
)

func (h Health) String() string {
	return [...]string{"unknown", "ready", "not ready", "late", "dead"}[h]
}

// state is what counts of one backend when a connection is placed or given up.
type state struct {
	health Health
	listed bool // false: no longer a backend, it only keeps the connections that it has
	first  bool // preferred whenever it is ready
	conns  int  // connections placed on it, also those still being dialled
	// answered is the end of the last probe that was answered with 200; ready that
	// of the first since which all were, and none took long.
	answered, ready time.Time
	failing         time.Time // start of the first of the failed probes in a row
	late            bool      // one of them found it late
	dead            time.Time // start of the first of the probes in a row that found it dead
	mute            time.Time // start of the first of the probes in a row that found it late or dead
}

// order lists the backends that a new connection tries, best first. Without a
// ready one all are tried, those that speak TLS before the others, and turn
// moves on who begins: a probe can be wrong, and a refusal helps nobody.
func order(backends []state, turn int) []int {
	var ready, unready, dead []int
	for i, b := range backends {
		switch {
		case !b.listed:
		case b.health == Ready:
			ready = append(ready, i)
		case b.health == Dead, b.health == Late:
			dead = append(dead, i)
		default:
			unready = append(unready, i)
		}
	}
	slices.SortStableFunc(ready, func(i, j int) int {
		a, b := backends[i], backends[j]
		if a.first != b.first {
			if a.first {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.conns, b.conns)
	})
	return slices.Concat(ready, rotate(unready, turn), rotate(dead, turn))
}

func rotate(list []int, turn int) []int {
	if len(list) == 0 {
		return nil
	}
	n := turn % len(list)
	return slices.Concat(list[n:], list[:n])
}

// limits is how long what fails may do so before its connections are closed.
type limits struct {
	late time.Duration // what may still answer, only later than in time
	// grace is how long another must have served before what is not ready is left.
	grace time.Duration
}

// givenUp lists the backends whose connections are closed now: those that are
// dead for patience while another serves, which has answered since they failed.
// Without such another, closing gains nothing: it may be this machine that is cut
// off, or stood still.
//
// One that accepts connections and does not answer may be frozen, or have more to
// do than it can. It is given three times the longest delay of handshakes lately,
// because whoever is sent away comes back with handshakes, and makes it slower.
//
// An API server that merely is not ready keeps its connections, because it
// ends them itself; a member of etcd without a leader (cutUnready) does not,
// because its watches would be silent for as long as it is cut off. But while
// a leader is elected no member serves, and after it not all begin at once:
// therefore another must have served for grace.
func givenUp(backends []state, now time.Time, limit limits, cutUnready bool) (out []int) {
	over := func(since time.Time, d time.Duration) bool { return !since.IsZero() && now.Sub(since) >= d }
	for i, b := range backends {
		serving, steady := false, false
		for _, o := range backends {
			// An answer from before it failed may be one from before this machine was cut off.
			if o.listed && o.health == Ready && now.Sub(o.answered) <= interval+beyond && !o.answered.Before(b.failing.Add(-retry)) {
				serving = true
				steady = steady || now.Sub(o.ready) >= limit.grace
			}
		}
		leaderless := steady && (cutUnready || !b.listed) && over(b.failing, limit.late)
		silent := over(b.dead, patience) || over(b.mute, limit.late)
		if b.conns > 0 && (serving && silent || leaderless) {
			out = append(out, i)
		}
	}
	return out
}

// observe is the state after one more probe. A failure counts from its
// beginning and a success from its end: a probe that hung through an election
// says nothing about the time before its answer.
func (s state) observe(h Health, began, ended time.Time) state {
	if h == Ready {
		if s.health != Ready || ended.Sub(began) > patience/2 {
			s.ready = ended
		}
		s.answered = ended
		s.late = false
		s.failing = time.Time{}
	} else if s.failing.IsZero() {
		s.failing = began
	}
	s.late = s.late || h == Late
	s.dead = since(s.dead, h == Dead, began)
	s.mute = since(s.mute, h == Dead || h == Late, began)
	s.health = h
	return s
}

// since is when something began that is so from began on, if it was not so before.
func since(before time.Time, is bool, began time.Time) time.Time {
	switch {
	case !is:
		return time.Time{}
	case before.IsZero():
		return began
	}
	return before
}
