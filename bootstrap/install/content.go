package install

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/parttable"
)

// dataPartition is kimage's, by its name.
const dataPartition = "KIMAGE"

// signature is what something starts with, by which blkid knows it as well. A negative
// offset counts from the disk's end.
type signature struct {
	what   string
	offset int64
	magic  string
}

var signatures = []signature{
	{"ext2, ext3 or ext4", 0x438, "\x53\xef"},
	{"XFS", 0, "XFSB"},
	{"Btrfs", 0x10040, "_BHRfS_M"},
	{"F2FS", 0x400, "\x10\x20\xf5\xf2"},
	{"JFS", 0x8000, "JFS1"},
	{"ReiserFS", 0x10034, "ReIsEr"},
	{"GFS2", 0x10000, "\x01\x16\x19\x70"},
	{"bcache or bcachefs", 0x1018, "\xc6\x85\x73\xf6"},
	{"LUKS", 0, "LUKS\xba\xbe"}, {"LUKS", 0x4000, "SKUL\xba\xbe"},
	{"LVM", 0, "LABELONE"}, {"LVM", 0x200, "LABELONE"}, {"LVM", 0x400, "LABELONE"}, {"LVM", 0x600, "LABELONE"},
	{"Linux RAID", 0, "\xfc\x4e\x2b\xa9"}, {"Linux RAID", 0x1000, "\xfc\x4e\x2b\xa9"},
	{"Intel RAID", -0x400, "Intel Raid ISM"},
	{"DDF RAID", -0x200, "\xde\x11\xde\x11"},
	{"Ceph BlueStore", 0, "bluestore block device"},
	{"Stratis", 0x204, "!Stra0tis"}, {"Stratis", 0x1204, "!Stra0tis"},
	{"VMFS", 0x100000, "\x0d\xd0\x01\xc0"},
	{"FAT", 0x52, "FAT32   "}, {"FAT", 0x36, "FAT12   "}, {"FAT", 0x36, "FAT16   "},
	{"exFAT", 3, "EXFAT   "},
	{"NTFS", 3, "NTFS    "}, {"BitLocker", 3, "-FVE-FS-"},
	{"Oracle ASM", 0x20, "ORCLDISK"}, {"OCFS2", 0x800, "OCFSV2"}, {"NILFS2", 0x406, "\x34\x34"}, {"HFS+", 0x400, "H+"},
	{"ISO 9660", 0x8001, "CD001"},
	{"APFS", 0x20, "NXSB"},
	{"swap", 0xff6, "SWAPSPACE2"}, {"swap", 0x1ff6, "SWAPSPACE2"}, {"swap", 0x3ff6, "SWAPSPACE2"}, {"swap", 0xfff6, "SWAPSPACE2"},
	{"swap", 0xff6, "SWAP-SPACE"},
	{"hibernated memory", 0xff6, "S1SUSPEND"}, {"hibernated memory", 0xff6, "ULSUSPEND"},
	{"a GPT of sectors of 4096 bytes", 0x1000, "EFI PART"},
}

// content says what a disk holds, for people as well, without changing anything. table is
// nil where there is none that can be read.
func content(disk io.ReaderAt, sizeBytes int64) (content, what string, table *parttable.Table, err error) {
	marked, err := install.Marked(disk)
	if err != nil {
		return "", "", nil, err
	}
	if marked {
		return install.Kimage, "an installation that did not end", nil, nil
	}
	table, err = parttable.Read(disk, sizeBytes)
	switch {
	case errors.Is(err, parttable.ErrNone):
		table = nil
	case err != nil:
		return install.Other, "a partition table that is damaged: " + err.Error(), nil, nil
	default:
		if _, ok := table.FindName(dataPartition); ok {
			return install.Kimage, "", table, nil
		}
		if len(table.Partitions) > 0 {
			return install.Other, tableText(table), table, nil
		}
	}
	if what, err = superblock(disk, sizeBytes); err != nil || what != "" {
		return install.Other, what, table, err
	}
	if table == nil {
		what, err = remains(disk, sizeBytes)
	}
	if err == nil && what == "" {
		what, err = unknown(disk, sizeBytes, table)
	}
	if err != nil || what != "" {
		return install.Other, what, table, err
	}
	return install.Empty, "", table, nil
}

// unknown is what lies at the ends of a disk without being anything that is known; empty:
// zeros, as on a disk that was never used or was wiped. A table without partitions does not
// count.
func unknown(disk io.ReaderAt, sizeBytes int64, table *parttable.Table) (string, error) {
	const end, gpt = 1 << 20, 34 * 512
	skip := int64(0)
	if table != nil {
		skip = gpt
	}
	for _, part := range []struct {
		what string
		at   int64
	}{{"unknown data in its first MiB", skip}, {"unknown data in its last MiB", max(sizeBytes-end, 0)}} {
		b := make([]byte, min(end-skip, sizeBytes))
		if _, err := disk.ReadAt(b, part.at); err != nil && err != io.EOF {
			return "", fmt.Errorf("reading byte %d: %w", part.at, err)
		}
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			return part.what, nil
		}
	}
	return "", nil
}

// remains are what is left of a table or a system that nothing can be read of; empty: nothing.
func remains(disk io.ReaderAt, sizeBytes int64) (string, error) {
	for _, s := range []signature{{"the second copy of a GPT", sizeBytes - 512, "EFI PART"}, {"a boot sector, and nothing behind it that is known", 510, "\x55\xaa"}} {
		b := make([]byte, len(s.magic))
		if _, err := disk.ReadAt(b, s.offset); err != nil && err != io.EOF {
			return "", fmt.Errorf("reading byte %d: %w", s.offset, err)
		}
		if string(b) == s.magic {
			return s.what, nil
		}
	}
	return "", nil
}

func tableText(t *parttable.Table) string {
	var names []string
	for _, p := range t.Partitions {
		name := fmt.Sprint(p.Number)
		if p.Name != "" {
			name += " " + p.Name
		}
		names = append(names, fmt.Sprintf("%s, %d MiB", name, p.SizeBytes()>>20))
	}
	return fmt.Sprintf("%s with partitions: %s", t.Scheme, strings.Join(names, "; "))
}

// superblock is what the disk holds as a whole; empty: nothing that is known.
func superblock(disk io.ReaderAt, sizeBytes int64) (string, error) {
	has := func(offset int64, magic string) (bool, error) {
		if offset < 0 || offset+int64(len(magic)) > sizeBytes {
			return false, nil
		}
		b := make([]byte, len(magic))
		if _, err := disk.ReadAt(b, offset); err != nil && err != io.EOF {
			return false, fmt.Errorf("reading byte %d: %w", offset, err)
		}
		return string(b) == magic, nil
	}
	all := signatures
	// Linux RAID keeps its superblock near the end: version 1.0, and 0.90.
	all = append(all[:len(all):len(all)], signature{"Linux RAID", (sizeBytes - 8<<10) &^ 4095, "\xfc\x4e\x2b\xa9"},
		signature{"Linux RAID", sizeBytes&^(64<<10-1) - 64<<10, "\xfc\x4e\x2b\xa9"})
	for _, s := range all {
		offset := s.offset
		if offset < 0 {
			offset += sizeBytes
		}
		if found, err := has(offset, s.magic); err != nil || found {
			return s.what, err
		}
	}
	if found, err := zfs(disk, sizeBytes); err != nil || found {
		return "ZFS", err
	}
	return "", nil
}

// zfs looks for an uberblock in the four labels, two at each end, where 128 KiB of them
// follow 128 KiB of names.
func zfs(disk io.ReaderAt, sizeBytes int64) (bool, error) {
	const label, ring, step, magic = 256 << 10, 128 << 10, 1 << 10, 0x00bab10c
	end := sizeBytes &^ (label - 1)
	for _, at := range []int64{0, label, end - 2*label, end - label} {
		if at < 0 || at+label > sizeBytes {
			continue
		}
		b := make([]byte, ring)
		if _, err := disk.ReadAt(b, at+ring); err != nil && err != io.EOF {
			return false, fmt.Errorf("reading byte %d: %w", at+ring, err)
		}
		for u := b; len(u) >= step; u = u[step:] {
			if binary.LittleEndian.Uint64(u) == magic || binary.BigEndian.Uint64(u) == magic {
				return true, nil
			}
		}
	}
	return false, nil
}
