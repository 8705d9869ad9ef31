package run

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestScrubbedEnvironment(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	t.Setenv("MKE2FS_CONFIG", "/x")
	out, err := Output(t.Context(), Cmd{Argv: []string{"env"}, Env: []string{"GIVEN=1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"SOURCE_DATE_EPOCH", "MKE2FS_CONFIG", "de_DE"} {
		if strings.Contains(string(out), bad) {
			t.Errorf("%s reached the program", bad)
		}
	}
	for _, want := range []string{"GIVEN=1", "LC_ALL=C", "TZ=UTC"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestErrors(t *testing.T) {
	err := Run(t.Context(), Cmd{Argv: []string{"sh", "-c", "echo reason >&2; exit 3"}})
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Status != 3 || !strings.Contains(err.Error(), "reason") {
		t.Errorf("%v", err)
	}
	// A person reads the message: neither a long command line nor a long log is in it.
	err = Run(t.Context(), Cmd{Argv: []string{"sh", "-c", "seq 1 9 >&2; exit 3", strings.Repeat("x", 4000)}})
	if m := err.Error(); len(m) > 300 || !strings.HasSuffix(m, "6\n7\n8\n9") {
		t.Errorf("%d bytes: %s", len(m), m)
	}
	if err := Run(t.Context(), Cmd{Argv: []string{"no-such-program"}}); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestCancelKillsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	started := time.Now()
	err := Run(ctx, Cmd{Argv: []string{"sh", "-c", "sleep 60 & sleep 60"}})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(started) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(started))
	}
}
