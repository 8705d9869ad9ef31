package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kimage-project/kimage/pkg/run"
)

// bootSector ends qemu by its device isa-debug-exit: mov dx, 0xf4; mov al, 0x10;
// out dx, al; then it halts.
var bootSector = [512]byte{0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd, 510: 0x55, 511: 0xaa}

// exitByGuest is qemu's status then: the value that was written, doubled, and 1.
const exitByGuest = 0x10<<1 | 1

// kvmBudget is for a guest that only has to start: it takes half a second.
const kvmBudget = 15 * time.Second

// KVM says why machines cannot run on this computer's own processor; nil: one has
// just done it. That /dev/kvm can be opened does not mean that guests run.
func KVM(ctx context.Context) error {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	dev.Close()
	return guestRuns(ctx, "kvm")
}

// guestRuns has a guest end qemu, by its own processor.
func guestRuns(ctx context.Context, accel string) error {
	path, err := run.Find("qemu-system-x86_64")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "kimage-kvm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, bootSector[:], 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kvmBudget)
	defer cancel()
	err = exec.CommandContext(ctx, path, "-accel", accel, "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-drive", "if=ide,format=raw,file="+disk).Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitByGuest {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("a guest that was started with %s did not get to run", accel)
	}
	return fmt.Errorf("qemu does not run guests with %s: %v", accel, err)
}
