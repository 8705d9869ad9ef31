package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestMountFile: a squashfs that another program made is mounted from its file, and the loop
// device is free again when it is not needed any more.
func TestMountFile(t *testing.T) {
	need.Root(t, "a mount namespace and a loop device")
	mksquashfs := need.Program(t, "mksquashfs", "squashfs-tools")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		need.Missing(t, "no loop devices: "+err.Error())
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		need.Missing(t, "no mount namespaces: "+err.Error())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in, point, file := filepath.Join(dir, "in"), filepath.Join(dir, "usr"), filepath.Join(dir, "usr.squashfs")
	for _, d := range []string{in + "/lib/modules/1.2.3", point} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(mksquashfs, in, file, "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := mountFile(file, point, "squashfs"); err != nil {
		t.Fatal(err)
	}
	var is unix.Statfs_t
	if err := unix.Statfs(point, &is); err != nil || is.Type != unix.SQUASHFS_MAGIC {
		t.Errorf("type %x, %v", is.Type, err)
	}
	if err := fitsKernel(point); err == nil || !strings.Contains(err.Error(), "1.2.3") {
		t.Errorf("drivers for another kernel: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := mountFile(damaged, point, "squashfs"); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged one: %v", err)
	}
	for _, f := range []string{file, damaged} {
		if out, err := exec.Command("losetup", "--associated", f).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("a loop device is left: %s, %v", out, err)
		}
	}
	if err := mountLive(t.Context()); err != nil { // here is no live system
		t.Error(err)
	}
}

func TestFitsKernel(t *testing.T) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	usr := t.TempDir()
	if err := os.MkdirAll(filepath.Join(usr, "lib/modules", strings.TrimSpace(string(release))), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := fitsKernel(usr); err != nil {
		t.Error(err)
	}
}
