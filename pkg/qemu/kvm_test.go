package qemu

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestGuestRuns: the guest that KVM starts does what it is asked to where guests run
// for certain, in emulation; and a computer without /dev/kvm is told from one.
func TestGuestRuns(t *testing.T) {
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	if err := guestRuns(t.Context(), "tcg"); err != nil {
		t.Error(err)
	}
	if err := guestRuns(t.Context(), "no-such-accelerator"); err == nil {
		t.Error("a guest ran without an accelerator")
	}
}

// TestGuestHangs: where guests start and do not get to run, KVM is said not to work. The
// stand-in for qemu is a program that does nothing and never ends.
func TestGuestHangs(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte("#!/bin/sh\nexec /bin/sleep 600\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // kvmBudget would do as well
	defer cancel()
	started := time.Now()
	if err := guestRuns(ctx, "kvm"); err == nil || !strings.Contains(err.Error(), "started with kvm did not get to run") {
		t.Errorf("%v", err)
	}
	if took := time.Since(started); took > kvmBudget {
		t.Errorf("it took %s to say so", took)
	}
}
