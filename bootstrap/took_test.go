package bootstrap

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestStopwatch: what lies between two looks that both find a wait is that
// wait's; all else is the agent's own.
func TestStopwatch(t *testing.T) {
	clock := time.Unix(1000, 0)
	pass := func(d time.Duration) { clock = clock.Add(d) }
	w := newStopwatch(func() time.Time { return clock })
	pass(100 * time.Millisecond) // own
	w.looked("etcd")
	pass(2 * time.Second)
	w.looked("etcd")
	pass(3 * time.Second)
	w.looked("images") // until now etcd, from now on images
	pass(4 * time.Second)
	w.looked("images")
	pass(200 * time.Millisecond) // own: it may have ended at once
	w.looked("")
	pass(300 * time.Millisecond) // own
	if err := w.during("kubeadm", func() error { pass(time.Minute); return errors.New("no") }); err == nil {
		t.Error("during loses the error")
	}
	pass(10 * time.Millisecond) // own
	w.looked("network")         // once: how long is not known
	pass(40 * time.Millisecond) // own
	got, first := w.ready(t.Context())
	if !first {
		t.Error("it was ready before")
	}
	got.AfterMultiUser = nil // of the machine that runs the test
	want := Took{Seconds: 69.65, Waited: map[string]float64{"etcd": 5, "images": 4, "kubeadm": 60}, Own: 0.65}
	if d := cmp.Diff(want, got, cmpopts.EquateApprox(0, 1e-9)); d != "" {
		t.Error(d)
	}
	after := 1.0
	got.AfterMultiUser = &after
	if s := got.String(); s != "69.7s after the agent's start, 1.0s after multi-user: kubeadm 60.0s, etcd 5.0s, images 4.0s, own 0.7s" && !strings.Contains(s, "own 0.6s") {
		t.Error(s)
	}
	pass(time.Hour)
	if again, first := w.ready(t.Context()); first || again.Seconds > 70 {
		t.Errorf("asked again, %t: %+v", first, again)
	}
}
