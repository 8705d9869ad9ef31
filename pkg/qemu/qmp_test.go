package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestMonitor: a machine is paused, copied and resumed. It has no operating
// system: its firmware looks for one for ever.
func TestMonitor(t *testing.T) {
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	dir := t.TempDir()
	image := filepath.Join(dir, "image.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := New(t.Context(), Config{Dir: filepath.Join(dir, "node"), Image: image, Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = m.Pause(t.Context()); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err) // the socket is not there yet
		}
	}
	copied := filepath.Join(dir, "copy.qcow2")
	if err := m.CopyDisk(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "check", copied).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if stopped, err := allStopped(m.cmd.Process.Pid); stopped || err != nil {
		t.Errorf("after the copy it stands still: %t, %v", stopped, err)
	}
	if err := m.SetNice(7); err != nil {
		t.Error(err)
	}
	if nice, err := syscall.Getpriority(syscall.PRIO_PROCESS, m.cmd.Process.Pid); err != nil || nice != 20-7 { // as the system call counts
		t.Errorf("nice %d, %v", nice, err)
	}
	if err := m.monitor(t.Context(), "no-such-command"); err == nil {
		t.Error("an error of the monitor is lost")
	}
}
