package qemu

import (
	"testing"

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
