package balancer

import (
	"slices"
	"testing"
	"time"
)

func TestOrder(t *testing.T) {
	b := func(h Health, conns int) state { return state{health: h, conns: conns, listed: true} }
	own := func(h Health, conns int) state { s := b(h, conns); s.first = true; return s }
	gone := func(h Health) state { return state{health: h} }
	for _, c := range []struct {
		name     string
		backends []state
		turn     int
		want     []int
	}{
		{"none", nil, 3, nil},
		{"fewest connections", []state{b(Ready, 2), b(Ready, 1), b(Ready, 3)}, 0, []int{1, 0, 2}},
		{"equals keep their order", []state{b(Ready, 1), b(Ready, 1)}, 1, []int{0, 1}},
		{"ready before all others", []state{b(Dead, 0), b(Unready, 0), b(Ready, 9)}, 0, []int{2, 1, 0}},
		{"own first though it has more", []state{b(Ready, 0), own(Ready, 7)}, 0, []int{1, 0}},
		{"own not when it is not ready", []state{b(Ready, 5), own(Unready, 0)}, 0, []int{0, 1}},
		{"none ready: turns", []state{b(Unready, 0), b(Unknown, 0), b(Unready, 0)}, 1, []int{1, 2, 0}},
		{"none ready: turns go round", []state{b(Unready, 0), b(Unknown, 0), b(Unready, 0)}, 5, []int{2, 0, 1}},
		{"none ready: the dead last", []state{b(Dead, 0), b(Unready, 0), b(Dead, 0)}, 1, []int{1, 2, 0}},
		{"all dead: all are tried", []state{b(Dead, 0), b(Dead, 0)}, 1, []int{1, 0}},
		{"not listed: never", []state{gone(Ready), b(Dead, 0)}, 0, []int{1}},
	} {
		if got := order(c.backends, c.turn); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestGivenUp(t *testing.T) {
	now := time.Unix(1000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	ready := func(d time.Duration) state {
		return state{health: Ready, listed: true, conns: 1, ready: ago(d), answered: ago(min(d, interval))}
	}
	unready := func(d time.Duration) state {
		return state{health: Unready, listed: true, conns: 1, failing: ago(d)}
	}
	dead := func(d time.Duration) state {
		return state{health: Dead, listed: true, conns: 1, failing: ago(d), dead: ago(d)}
	}
	late := func(d time.Duration) state {
		return state{health: Late, listed: true, conns: 1, failing: ago(d), mute: ago(d)}
	}
	unlisted := func(s state) state { s.listed = false; return s }
	idle := func(s state) state { s.conns = 0; return s }
	silent := ready(time.Hour) // its next answer is overdue
	silent.answered = ago(interval + beyond + 1)
	before := ready(time.Hour) // it answered, and then both may have been cut off
	before.answered = ago(interval)
	justDead := state{health: Dead, listed: true, conns: 1, failing: ago(time.Hour), dead: ago(0)}
	for _, c := range []struct {
		name      string
		backends  []state
		api, etcd []int // given up without and with cutUnready
	}{
		{"dead, another ready", []state{ready(time.Hour), dead(patience)}, []int{1}, []int{1}},
		{"dead for a moment", []state{ready(time.Hour), dead(patience - 1)}, nil, nil},
		{"dead, another only just ready", []state{ready(0), dead(time.Hour)}, []int{1}, []int{1}},
		{"dead, another silent of late", []state{silent, dead(time.Hour)}, nil, nil},
		{"dead, another answered before", []state{before, dead(interval - retry - 1)}, nil, nil},
		{"late, another ready", []state{ready(time.Hour), late(latest)}, []int{1}, []int{1}},
		{"late for less than others were", []state{ready(time.Hour), late(latest - 1)}, nil, nil},
		{"late, nobody ready", []state{late(time.Hour), late(time.Hour)}, nil, nil},
		{"all dead", []state{dead(time.Hour), dead(time.Hour)}, nil, nil},
		{"dead, another not ready", []state{unready(time.Hour), dead(time.Hour)}, nil, nil},
		{"not ready", []state{ready(time.Hour), unready(time.Hour)}, nil, []int{1}},
		{"not ready for a moment", []state{ready(time.Hour), unready(latest - 1)}, nil, nil},
		{"not ready, another ready for less than grace", []state{ready(grace - 1), unready(time.Hour)}, nil, nil},
		{"not ready, another ready for grace", []state{ready(grace), unready(time.Hour)}, nil, []int{1}},
		{"not ready, another silent of late", []state{silent, unready(time.Hour)}, nil, nil},
		{"not ready for long, dead for a moment", []state{ready(time.Hour), justDead}, nil, []int{1}},
		{"not listed and ready", []state{ready(time.Hour), unlisted(ready(time.Hour))}, nil, nil},
		{"not listed and not ready", []state{ready(time.Hour), unlisted(unready(latest))}, []int{1}, []int{1}},
		{"the ready one is not listed", []state{unlisted(ready(time.Hour)), dead(time.Hour)}, nil, nil},
		{"no connections", []state{ready(time.Hour), idle(dead(time.Hour))}, nil, nil},
		{"not asked yet", []state{ready(time.Hour), {listed: true, conns: 1}}, nil, nil},
		{"two dead", []state{dead(time.Hour), ready(time.Hour), dead(time.Hour)}, []int{0, 2}, []int{0, 2}},
	} {
		if got := givenUp(c.backends, now, limits{latest, grace}, false); !slices.Equal(got, c.api) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.api)
		}
		if got := givenUp(c.backends, now, limits{latest, grace}, true); !slices.Equal(got, c.etcd) {
			t.Errorf("%s, cutUnready: got %v, want %v", c.name, got, c.etcd)
		}
	}
}

func TestObserve(t *testing.T) {
	at := func(ms int64) time.Time { return time.UnixMilli(ms) }
	s := state{}
	for _, step := range []struct {
		h                          Health
		began, ended               int64
		ready, failing, dead, mute int64 // 0: zero
	}{
		{Unready, 100, 200, 0, 100, 0, 0},
		{Dead, 300, 400, 0, 100, 300, 300},
		{Dead, 500, 600, 0, 100, 300, 300},
		{Late, 610, 690, 0, 100, 0, 300},
		{Unready, 700, 800, 0, 100, 0, 0},
		{Ready, 900, 2000, 2000, 0, 0, 0}, // hung through an election
		{Ready, 2500, 2510, 2000, 0, 0, 0},
		{Dead, 3010, 4210, 2000, 3010, 3010, 3010},
		{Ready, 4300, 4310, 4310, 0, 0, 0},
		{Ready, 4810, 5210, 4310, 0, 0, 0},
		{Ready, 5810, 6320, 6320, 0, 0, 0}, // silent for more than patience
	} {
		s = s.observe(step.h, at(step.began), at(step.ended))
		for _, c := range []struct {
			name string
			got  time.Time
			want int64
		}{{"ready", s.ready, step.ready}, {"failing", s.failing, step.failing}, {"dead", s.dead, step.dead}, {"mute", s.mute, step.mute}} {
			if c.want == 0 != c.got.IsZero() || c.want != 0 && !c.got.Equal(at(c.want)) {
				t.Errorf("after %v at %d: %s is %v, want %d", step.h, step.began, c.name, c.got, c.want)
			}
		}
	}
}

// grace is what givenUp is given where answers are quick.
const (
	grace  = timeout + beyond
	latest = 3 * time.Second
)

// TestLeftWithinTwoSeconds: the sum of the times is the promise.
func TestLeftWithinTwoSeconds(t *testing.T) {
	const promise, margin = 2 * time.Second, 250 * time.Millisecond
	if worst := interval + timeout; worst > promise-margin {
		t.Errorf("a silent backend is left after %v", worst)
	}
	if worst := interval + patience + retry; worst > promise-margin {
		t.Errorf("a refusing backend is given up after %v", worst)
	}
}

func TestPace(t *testing.T) {
	const usual, slow = 5 * time.Millisecond, 700 * time.Millisecond
	p := pace(0)
	for range 50 {
		p = p.and(usual)
	}
	if got := p.timeout(); got != timeout {
		t.Errorf("answers after %s: %s", usual, got)
	}
	if got := p.and(timeout).timeout(); got > timeout+timeout/20 {
		t.Errorf("after one late answer: %s", got)
	}
	for range 50 {
		p = p.and(slow)
	}
	if got := p.timeout(); got < 5*slow || got > slower*slow {
		t.Errorf("answers after %s: %s", slow, got)
	}
	for range 50 {
		p = p.and(time.Minute)
	}
	if got := p.timeout(); got != maxTimeout {
		t.Errorf("answers after a minute: %s", got)
	}
	for range 50 {
		p = p.and(usual)
	}
	if got := p.timeout(); got != timeout {
		t.Errorf("after it was slow: %s", got)
	}
}

func TestPeak(t *testing.T) {
	const usual = 5 * time.Millisecond
	p := maxPeak
	if got := p.late(); got < maxTimeout-time.Millisecond || got > maxTimeout {
		t.Errorf("after the start: %s", got)
	}
	for range 4 * fade { // three minutes of three backends
		p = p.and(usual)
	}
	if got := p.late(); got != patience {
		t.Errorf("answers after %s: %s", usual, got)
	}
	if got := p.and(2 * time.Second).late(); got != slowest*2*time.Second {
		t.Errorf("after one late answer: %s", got)
	}
	if got := p.and(time.Hour).late(); got > maxTimeout {
		t.Errorf("after an hour: %s", got)
	}
}

// TestLateTeaches: what was closed too early, or nearly, is not the next time; but
// an election teaches nothing.
func TestLateTeaches(t *testing.T) {
	now := time.Unix(1000, 0)
	since := func(h Health, d time.Duration) state { return state{health: Ready}.observe(h, now.Add(-d), now) }
	const quick = time.Millisecond
	for _, c := range []struct {
		name       string
		was        state
		took, want time.Duration
	}{
		{"quick", state{health: Ready}, quick, patience},
		{"late by 2 s", since(Late, 2*time.Second), quick, slowest * 2 * time.Second},
		{"late by an hour", since(Late, time.Hour), quick, patience},
		{"without a leader for 2 s", since(Unready, 2*time.Second), quick, patience},
		{"away for 2 s", since(Dead, 2*time.Second), quick, patience},
		{"an answer that took a second", state{health: Ready}, time.Second, slowest * interval},
	} {
		b := &Balancer{}
		b.answered(c.was, c.took, now)
		if got := b.limits().late; got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestDearAnswers: a machine whose every answer costs much is asked less often,
// and one with a slow answer now and then as often as ever.
func TestDearAnswers(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		name string
		took []time.Duration
		want time.Duration
	}{
		{"none yet", nil, 0},
		{"few yet", []time.Duration{400 * ms, 400 * ms}, 0},
		{"quick", slices.Repeat([]time.Duration{3 * ms}, 8), 0},
		{"quick but for an election", append(slices.Repeat([]time.Duration{2 * time.Second}, 7), 3*ms), 0},
		{"dear", slices.Repeat([]time.Duration{150 * ms, 200 * ms}, 4), interval},
		{"dearest", slices.Repeat([]time.Duration{2 * time.Second}, 8), standby - interval},
		{"quick again", append(slices.Repeat([]time.Duration{2 * time.Second}, 8), 3*ms), 0},
	} {
		var l lately
		for _, took := range c.took {
			l.add(took)
		}
		if got := l.dear(); got != c.want {
			t.Errorf("%s: %s, not %s", c.name, got, c.want)
		}
	}
}
