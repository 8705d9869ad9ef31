//go:build integration

package squashfs

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestKernelReads mounts what was written: the kernel checks more than unsquashfs.
// Needs root and a loop device.
func TestKernelReads(t *testing.T) {
	tr := sample(t)
	file, dir := filepath.Join(t.TempDir(), "fs"), t.TempDir()
	if err := Write(t.Context(), tr, Config{File: file, UnixTime: unixTime}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "squashfs", "-o", "loop,ro", file, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", dir).Run()
	compare(t, tr, dir)
}
