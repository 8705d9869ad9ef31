package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A vendor's live system (Flatcar's for PXE) has in its initramfs what mounts disks, and
// drivers of cards, firmware and all else in a squashfs beside it:
//
//	/sbin/modprobe, /usr/lib/modules  inside the kernel: loop, squashfs, disks
//	/usr.squashfs                     the system's /usr
//
// Its own first process would mount that, and start a system that looks at every disk: RAIDs
// would be assembled, which writes to other people's data before anybody is asked. So none
// of it is started; its /usr is put over the initramfs', and drivers come from there.
const (
	liveUSR = "/usr.squashfs"
	usr     = "/usr"
)

// mountLive makes the drivers of a vendor's live system those of this one. Without such a
// system, or when it is done already, it does nothing.
func mountLive(ctx context.Context) error {
	if _, err := os.Stat(liveUSR); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var now unix.Statfs_t
	if err := unix.Statfs(usr, &now); err != nil {
		return fmt.Errorf("%s: %w", usr, err)
	}
	if now.Type == unix.SQUASHFS_MAGIC {
		return nil
	}
	if err := probe(ctx, "loop", "squashfs"); err != nil {
		return err
	}
	if err := mountFile(liveUSR, usr, "squashfs"); err != nil {
		return err
	}
	return fitsKernel(usr)
}

// mountFile mounts the file system in a file, which stays as it is.
func mountFile(file, point, kind string) error {
	f, err := os.OpenFile(file, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("the kernel has no loop devices: %w", err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return fmt.Errorf("finding a free loop device: %w", err)
	}
	name := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(f.Fd())); err != nil {
		return fmt.Errorf("putting %s on %s: %w", file, name, err)
	}
	// Let go of when it is unmounted, or at once if it cannot be mounted.
	if err := unix.IoctlLoopSetStatus64(int(loop.Fd()), &unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_READ_ONLY}); err != nil {
		return errors.Join(fmt.Errorf("setting up %s: %w", name, err), unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0))
	}
	if err := unix.Mount(name, point, kind, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mounting %s as %s: %w", file, kind, err)
	}
	return nil
}

// fitsKernel makes sure that a system's drivers are for the kernel that runs: they are of no
// use to another.
func fitsKernel(usr string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := os.Stat(filepath.Join(usr, "lib/modules", release)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all, _ := filepath.Glob(filepath.Join(usr, "lib/modules/*"))
	for i := range all {
		all[i] = filepath.Base(all[i])
	}
	return fmt.Errorf("it has drivers for the kernel %s, and %s runs: its kernel and initramfs have to be of one version", strings.Join(all, ", "), release)
}
