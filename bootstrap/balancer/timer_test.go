package balancer

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTimer: the kernel's, and Go's where no file descriptor is left.
func TestTimer(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, call func()) *timer
	}{
		{"kernel's", func(_ *testing.T, call func()) *timer { return newTimer(call) }},
		{"Go's", func(t *testing.T, call func()) *timer {
			var was unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
				t.Fatal(err)
			}
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
				t.Fatal(err)
			}
			defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
			return newTimer(call)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			called := make(chan time.Time, 9)
			tm := c.make(t, func() { called <- time.Now() })
			if soft := tm.soft != nil; soft != (c.name == "Go's") {
				t.Fatalf("Go's: %t", soft)
			}
			fires := func(after time.Duration) {
				t.Helper()
				began := time.Now()
				tm.reset(after)
				select {
				case at := <-called:
					if took := at.Sub(began); took < after {
						t.Errorf("after %s, not %s", took, after)
					}
				case <-time.After(5 * time.Second):
					t.Fatal("never")
				}
			}
			never := func(what string) {
				t.Helper()
				select {
				case <-called:
					t.Errorf("called, although %s", what)
				case <-time.After(60 * time.Millisecond):
				}
			}
			never("not armed")
			fires(20 * time.Millisecond)
			never("it was once")
			fires(-time.Second) // at once
			tm.reset(20 * time.Millisecond)
			tm.stop()
			never("stopped")
			tm.reset(20 * time.Millisecond)
			fires(40 * time.Millisecond) // not earlier, and once
			never("armed anew")
			tm.reset(20 * time.Millisecond)
			tm.close()
			never("closed")
			tm.reset(20 * time.Millisecond)
			tm.stop()
			if tm.soft == nil {
				never("closed before")
			}
		})
	}
}
