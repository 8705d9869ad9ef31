package bootstrap

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/need"
)

// TestWatch: what is wrong with the machine is in its phase, before any part
// has said what it waits for, and goes with its cause.
func TestWatch(t *testing.T) {
	need.Root(t, "a machine without a network")
	// Never unlocked: the thread ends with the test, and its namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	a := &Agent{shows: make(chan struct{}, 1), logf: t.Logf, conf: nodeconf.Config{Node: nodeconf.Node{Roles: []string{nodeconf.RoleWorker}, Addresses: []string{"192.0.2.1"}}},
		phase: &phases{now: time.Now, file: filepath.Join(t.TempDir(), "phase.json"), logf: t.Logf}}
	a.seen.noteRefusal("m1", "it refuses")
	heard := a.phase.listen()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		select {
		case <-heard:
			cancel()
		case <-ctx.Done():
		}
	}()
	a.watch(ctx)
	got := a.phase.current()
	if got.Phase != PhaseWaiting || !strings.HasPrefix(got.Why, "this machine has no network card") ||
		!strings.Contains(got.Why, "the container runtime does not answer") || !strings.HasSuffix(got.Why, "; m1: it refuses") {
		t.Errorf("got %+v", got)
	}
}
