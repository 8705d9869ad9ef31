package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/run"
)

// stateDirs are the places of Kubernetes' state, and where each lives on the
// data partition.
var stateDirs = []struct {
	point, below string
	mode         os.FileMode
}{
	{"/var/lib/containerd", "containerd", 0o711},
	{"/var/lib/kubelet", "kubelet", 0o755},
	{"/var/lib/etcd", "etcd", 0o700},
	{"/var/log/pods", "pods", 0o755},
	{"/etc/cni/net.d", "cni-net.d", 0o755},
	{"/opt/cni/bin", "cni-bin", 0o755},
	{"/var/lib/cni", "cni", 0o755},
}

// Prepare makes the node ready for the units of the payload. It is run at
// every boot, after the payload was merged and verified.
func Prepare(ctx context.Context) error {
	for _, d := range stateDirs {
		if err := bindState(d.point, filepath.Join(Data, "state", d.below), d.mode); err != nil {
			return fmt.Errorf("putting %s on the data partition: %w", d.point, err)
		}
	}
	// What systemd applied before the payload was there. Users first: tmpfiles
	// may name them.
	for _, argv := range [][]string{
		{"systemd-sysusers"},
		{"/lib/systemd/systemd-modules-load", "/usr/lib/modules-load.d/kimage.conf"},
		{"/lib/systemd/systemd-sysctl"}, // all files: the administrator's come after the payload's
		{"systemd-tmpfiles", "--create", "--prefix=/etc", "--prefix=/var/lib/kubelet", "/usr/lib/tmpfiles.d/kimage.conf"},
		{"udevadm", "control", "--reload"},
	} {
		err := run.Run(ctx, run.Cmd{Argv: argv})
		if errors.Is(err, exec.ErrNotFound) && argv[0] == "systemd-sysusers" {
			continue // no system has it removed, but containers of it do
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bindState mounts state on point, shared, so that what pods mount below it is
// seen by all. What lay below point before is moved in.
func bindState(point, state string, mode os.FileMode) error {
	if err := os.MkdirAll(state, mode); err != nil {
		return err
	}
	if err := os.MkdirAll(point, mode); err != nil {
		return err
	}
	all, err := mounts()
	if err != nil {
		return err
	}
	data, ok := mountAt(all, Data)
	if !ok {
		return fmt.Errorf("%s is not mounted", Data)
	}
	if m, ok := mountAt(all, point); ok && m.device == data.device {
		return nil
	}
	if err := moveIn(point, state); err != nil {
		return err
	}
	if err := unix.Mount(state, point, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	// A new peer group of its own; the data partition itself stays private.
	if err := unix.Mount("", point, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	return unix.Mount("", point, "", unix.MS_SHARED, "")
}

// moveIn copies what from has and to lacks, then removes it from from. A crash
// in between repeats it: a file appears under its name only when it is whole.
func moveIn(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil || len(entries) == 0 {
		return err
	}
	err = filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == from {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		return moveOne(p, filepath.Join(to, rel), d)
	})
	if err != nil {
		return fmt.Errorf("moving what the first boot wrote: %w", err)
	}
	unix.Sync()
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(from, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func moveOne(from, to string, d fs.DirEntry) error {
	if exists(to) {
		return nil
	}
	fi, err := d.Info()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	tmp := to + ".kimage-moving"
	os.RemoveAll(tmp)
	switch {
	case d.IsDir():
		if err := os.Mkdir(to, fi.Mode().Perm()); err != nil {
			return err
		}
		return os.Chown(to, int(st.Uid), int(st.Gid))
	case d.Type()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case d.Type().IsRegular():
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(tmp, content, fi.Mode().Perm()); err != nil {
			return err
		}
		if err := os.Chown(tmp, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		if err := os.Chmod(tmp, fi.Mode()); err != nil {
			return err
		}
		return os.Rename(tmp, to)
	}
	return nil // sockets and pipes are made again by their programs
}
