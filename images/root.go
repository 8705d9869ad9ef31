package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/parttable"
)

// anySystem is the ID of an extension that fits every system.
const anySystem = "_any"

// rootTypes are the partition types under which systems keep an ext4 root.
var rootTypes = []string{typeRoot, typeLinux, "B921B045-1DF0-41C3-AF44-4C6F280D3FAE", "0x83"}

// findRoot finds the root partition of the disk in file.
func (b *Builder) findRoot(ctx context.Context, file string) (*parttable.Table, parttable.Partition, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, parttable.Partition{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, parttable.Partition{}, err
	}
	table, err := parttable.Read(f, fi.Size())
	if err != nil {
		return nil, parttable.Partition{}, fmt.Errorf("the base: %w: is it a disk image of %s, complete?", err, b.os.Title)
	}
	if p, ok := table.FindName(kimageName); ok {
		return nil, parttable.Partition{}, fmt.Errorf("the base is itself an image of kimage (partition %d is %s): bake onto what it was made from", p.Number, kimageName)
	}
	if len(table.Partitions) == table.Entries {
		return nil, parttable.Partition{}, fmt.Errorf("the base has an %s with %d partitions, which has no room for another: take an image of %s with a GPT", table.Scheme, table.Entries, b.os.Title)
	}
	if name := b.os.Disk.USR; name != "" {
		if _, ok := table.FindName(name); !ok {
			return nil, parttable.Partition{}, b.noRoot(table, "no partition "+name)
		}
	}
	is := b.isRoot
	if !b.os.editable() {
		is = b.isXFSRoot
	}
	// The last one: what a system has besides its root, as /boot, lies before it.
	for _, p := range slices.Backward(byOffset(table.Partitions)) {
		ok, err := is(ctx, f, p)
		if err != nil {
			return nil, parttable.Partition{}, fmt.Errorf("the base: %w", err)
		}
		if ok {
			return table, p, nil
		}
	}
	kind := "ext4"
	if !b.os.editable() {
		kind = b.os.Disk.Filesystem
	}
	return nil, parttable.Partition{}, b.noRoot(table, "no "+kind+" root partition that kimage knows")
}

func byOffset(all []parttable.Partition) []parttable.Partition {
	return slices.SortedFunc(slices.Values(all), func(a, b parttable.Partition) int { return int(a.OffsetBytes()>>20) - int(b.OffsetBytes()>>20) })
}

func (b *Builder) noRoot(table *parttable.Table, why string) error {
	var seen []string
	for _, p := range table.Partitions {
		seen = append(seen, fmt.Sprintf("%d %q", p.Number, p.Name))
	}
	return fmt.Errorf("the base has %s (found: %s): is it an image of %s?", why, strings.Join(seen, ", "), b.os.Title)
}

// isRoot recognises an ext4 root by its label, or else by its os-release, which has to be
// that of the system that is to be baked.
func (b *Builder) isRoot(ctx context.Context, disk *os.File, p parttable.Partition) (bool, error) {
	label := b.os.Disk.Root
	if label == "" && !slices.Contains(rootTypes, p.TypeGUID) {
		return false, nil
	}
	sb, err := ext4.ReadSuperblock(disk, p.OffsetBytes())
	if errors.Is(err, ext4.ErrNotExt4) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if label != "" {
		return sb.Label == label, nil
	}
	release, err := b.osRelease(ctx, ext4.Volume{File: disk.Name(), OffsetBytes: p.OffsetBytes()})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	is := b.os.Sysext
	if is.ID != anySystem && release["ID"] != is.ID || is.VersionID != "" && release["VERSION_ID"] != is.VersionID {
		return false, fmt.Errorf("it holds %s, not %s: choose another --os or another --base", release["PRETTY_NAME"], b.os.Title)
	}
	return true, nil
}

// isXFSRoot recognises an xfs file system, of the label if the system has one
// (XFS Algorithms & Data Structures, "Superblocks").
func (b *Builder) isXFSRoot(_ context.Context, disk *os.File, p parttable.Partition) (bool, error) {
	head := make([]byte, 120)
	if _, err := disk.ReadAt(head, p.OffsetBytes()); err != nil && err != io.EOF {
		return false, err
	}
	label := strings.TrimRight(string(head[108:]), "\x00")
	return string(head[:4]) == "XFSB" && (b.os.Disk.Root == "" || label == b.os.Disk.Root), nil
}

func (b *Builder) osRelease(ctx context.Context, v ext4.Volume) (map[string]string, error) {
	data, err := v.ReadFile(ctx, "usr/lib/os-release")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if k, val, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			out[k] = strings.Trim(val, `"'`)
		}
	}
	return out, nil
}
