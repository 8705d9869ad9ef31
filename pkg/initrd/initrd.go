// Package initrd makes what a machine without a system boots from the network: the kernel
// and the initramfs of a node image itself, so that there is nothing else to fetch or to
// trust, with the agent as the initramfs' /init. The initramfs' own drivers and modprobe
// are what that runs on; what else its own scripts would do is not done. The live system of a
// vendor becomes the same, with what Behind makes.
package initrd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/parttable"
)

// Boot is what is booted.
type Boot struct {
	Version string // of the kernel: 6.12.117+deb13-amd64
	Kernel  []byte // a Linux boot image, which is an EFI program as well
	Initrd  []byte
}

// Make takes the newest kernel of a raw disk image and its initramfs, with agent as /init.
// The same image and agent give the same bytes.
func Make(ctx context.Context, image string, agent []byte) (Boot, error) {
	volume, dir, version, err := find(ctx, image)
	if err != nil {
		return Boot{}, err
	}
	b := Boot{Version: version}
	if b.Kernel, err = read(ctx, volume, path.Join(dir, kernelPrefix+version)); err != nil {
		return b, err
	}
	if b.Initrd, err = read(ctx, volume, path.Join(dir, initrdPrefix+version)); err != nil {
		return b, err
	}
	b.Initrd = append(b.Initrd, Behind(int64(len(b.Initrd)), agent)...)
	return b, nil
}

// Debian's and Ubuntu's names.
const (
	kernelPrefix = "vmlinuz-"
	initrdPrefix = "initrd.img-"
)

// find looks for kernels in /boot of a root, and at the top of a /boot of its own.
func find(ctx context.Context, image string) (v ext4.Volume, dir, version string, err error) {
	f, err := os.Open(image)
	if err != nil {
		return v, "", "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return v, "", "", err
	}
	table, err := parttable.Read(f, fi.Size())
	if err != nil {
		return v, "", "", fmt.Errorf("%s: %w: is it a raw disk image?", image, err)
	}
	for _, p := range table.Partitions {
		if _, err := ext4.ReadSuperblock(f, p.OffsetBytes()); err != nil {
			continue // another file system, or none
		}
		volume := ext4.Volume{File: image, OffsetBytes: p.OffsetBytes()}
		for _, dir := range []string{"boot", "."} {
			listed, err := volume.ReadDirs(ctx, []string{dir})
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return v, "", "", fmt.Errorf("%s: %w", image, err)
			}
			if version := newest(listed[dir]); version != "" {
				return volume, dir, version, nil
			}
		}
	}
	return v, "", "", fmt.Errorf("%s has no %sVERSION with its %sVERSION in an ext4 file system: only Debian and Ubuntu images can be booted from the network to be installed", image, kernelPrefix, initrdPrefix)
}

// newest is the highest version of a kernel that has its initramfs.
func newest(entries []ext4.DirEntry) string {
	has := map[string]bool{}
	for _, e := range entries {
		has[e.Name] = !e.Directory && e.SizeBytes > 0
	}
	best := ""
	for _, e := range entries {
		version, ok := strings.CutPrefix(e.Name, kernelPrefix)
		if ok && has[e.Name] && has[initrdPrefix+version] && (best == "" || compare(version, best) > 0) {
			best = version
		}
	}
	return best
}

// compare orders versions as people do: 6.12.9 comes before 6.12.10.
func compare(a, b string) int {
	x, y := pieces(a), pieces(b)
	for i := range min(len(x), len(y)) {
		n, err1 := strconv.Atoi(x[i])
		m, err2 := strconv.Atoi(y[i])
		c := cmp.Compare(x[i], y[i])
		if err1 == nil && err2 == nil {
			c = cmp.Compare(n, m)
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(x), len(y))
}

// pieces are runs of digits and of anything else.
func pieces(s string) (out []string) {
	digit := func(i int) bool { return s[i] >= '0' && s[i] <= '9' }
	for start, i := 0, 1; i <= len(s); i++ {
		if i == len(s) || digit(i) != digit(start) {
			out = append(out, s[start:i])
			start = i
		}
	}
	return slices.Clip(out)
}

func read(ctx context.Context, v ext4.Volume, p string) ([]byte, error) {
	f, err := v.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, f.SizeBytes))
	if err != nil {
		return nil, fmt.Errorf("reading %s from %s: %w", p, v.File, err)
	}
	return data, nil
}
