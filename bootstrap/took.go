package bootstrap

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/run"
)

// What a machine waits for besides what package kube knows.
const (
	awaitsAddress = "address" // of its own
	awaitsImages  = "images"  // their import
	awaitsKubeadm = "kubeadm"
	awaitsNetwork = "network" // the kubelet, and what it waits for: the network plugin, after a boot the API server
)

// Took says what the time from the agent's start to the first Ready went into.
type Took struct {
	Seconds float64 `json:"seconds"`
	// AfterMultiUser is the part of it after systemd had reached multi-user.target;
	// null: that came later.
	AfterMultiUser *float64           `json:"afterMultiUserSeconds"`
	Waited         map[string]float64 `json:"waitedSeconds"` // for what
	// Own is the rest: what the agent did itself, and how late it noticed that a
	// wait was over.
	Own float64 `json:"ownSeconds"`
}

func (t Took) String() string {
	var b strings.Builder
	short := func(s float64) string { return strconv.FormatFloat(s, 'f', 1, 64) + "s" }
	fmt.Fprintf(&b, "%s after the agent's start", short(t.Seconds))
	if t.AfterMultiUser != nil {
		fmt.Fprintf(&b, ", %s after multi-user", short(*t.AfterMultiUser))
	}
	b.WriteString(": ")
	// The longest first.
	for _, what := range slices.SortedFunc(maps.Keys(t.Waited), func(x, y string) int {
		return cmp.Or(cmp.Compare(t.Waited[y], t.Waited[x]), cmp.Compare(x, y))
	}) {
		fmt.Fprintf(&b, "%s %s, ", what, short(t.Waited[what]))
	}
	return b.String() + "own " + short(t.Own)
}

// stopwatch tells waits from work, up to the first Ready.
//
// A wait lasts from the first look that finds it on to the last one that does.
// The pause after that, and the look that finds it over, are the agent's own:
// it may have been over all that time.
type stopwatch struct {
	now func() time.Time

	mu     sync.Mutex
	began  time.Time
	on     string // what the last look found is being waited for; empty: nothing
	since  time.Time
	waited map[string]time.Duration
	took   *Took
}

func newStopwatch(now func() time.Time) *stopwatch {
	return &stopwatch{now: now, began: now(), waited: map[string]time.Duration{}}
}

// looked takes in that what is being waited for, now; empty: nothing.
func (w *stopwatch) looked(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if w.on != "" && what != "" {
		w.waited[w.on] += now.Sub(w.since)
	}
	w.on, w.since = what, now
}

// during is a wait with a known end.
func (w *stopwatch) during(what string, do func() error) error {
	w.looked(what)
	defer w.looked("")
	defer w.looked(what)
	return do()
}

// ready ends the measurement, once.
func (w *stopwatch) ready(ctx context.Context) (t Took, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.took != nil {
		return *w.took, false
	}
	now := w.now()
	t = Took{Seconds: now.Sub(w.began).Seconds(), Waited: map[string]float64{}}
	t.Own = t.Seconds
	for what, d := range w.waited {
		t.Waited[what] = d.Seconds()
		t.Own -= d.Seconds()
	}
	if after, ok := afterMultiUser(ctx); ok && after >= 0 {
		s := after.Seconds()
		t.AfterMultiUser = &s
	}
	w.took = &t
	return t, true
}

// afterMultiUser is how long ago systemd reached multi-user.target in this boot.
func afterMultiUser(ctx context.Context) (time.Duration, bool) {
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"systemctl", "show", "--property=ActiveEnterTimestampMonotonic", "--value", "multi-user.target"}})
	if err != nil {
		return 0, false
	}
	us, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || us == 0 {
		return 0, false
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()) - time.Duration(us)*time.Microsecond, true
}
