package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/blkpg"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/parttable"
)

const (
	ext4ResizeFS     = 0x40086610 // EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64)
	growthWorthBytes = 8 << 20    // less is not worth a new table
)

// Growth is what Grow found and did.
type Growth struct {
	PartitionBytes, FilesystemBytes int64
	Grown                           bool
}

// Grow grows the data partition and its file system, both in use, to the end
// of the disk. The second copy of a GPT moves there too.
func Grow(ctx context.Context) (Growth, error) {
	d, err := findData()
	if err != nil {
		return Growth{}, err
	}
	disk, err := os.OpenFile("/dev/"+d.disk, os.O_RDWR, 0)
	if err != nil {
		return Growth{}, err
	}
	defer disk.Close()
	// The kernel's own partition tools and systemd take this lock as well.
	if err := unix.Flock(int(disk.Fd()), unix.LOCK_EX); err != nil {
		return Growth{}, fmt.Errorf("locking /dev/%s: %w", d.disk, err)
	}
	size, err := diskBytes(d.disk)
	if err != nil {
		return Growth{}, err
	}
	table, err := parttable.Read(disk, size)
	if err != nil {
		return Growth{}, fmt.Errorf("/dev/%s: %w", d.disk, err)
	}
	part, ok := table.FindName(partition)
	if !ok || part.Number != d.number {
		return Growth{}, fmt.Errorf("/dev/%s: the partition table does not have %s as partition %d", d.disk, partition, d.number)
	}
	var g Growth
	// A whole mebibyte, as every partition begins on one.
	last := (table.LastUsableLBA(size)+1)/2048*2048 - 1
	if last > part.LastLBA && int64(last-part.LastLBA)*parttable.SectorBytes >= growthWorthBytes {
		if err := table.Grow(part.Number, last); err != nil {
			return g, err
		}
		if err := table.Write(disk, size); err != nil {
			return g, err
		}
		if err := disk.Sync(); err != nil {
			return g, err
		}
		part.LastLBA = last
		g.Grown = true
	}
	g.PartitionBytes = part.SizeBytes()
	if err := blkpg.Resize(disk, part); err != nil {
		return g, err
	}
	if err := ctx.Err(); err != nil {
		return g, err
	}
	resized, err := growFilesystem(d, part)
	if err != nil {
		return g, err
	}
	g.Grown = g.Grown || resized
	g.FilesystemBytes, err = filesystemBytes(d)
	return g, err
}

// growFilesystem grows the mounted ext4 to its partition.
func growFilesystem(d dataDevice, p parttable.Partition) (bool, error) {
	dev, err := os.Open("/dev/" + d.partition)
	if err != nil {
		return false, err
	}
	defer dev.Close()
	sb, err := ext4.ReadSuperblock(dev, 0)
	if err != nil {
		return false, fmt.Errorf("/dev/%s: %w", d.partition, err)
	}
	blocks := uint64(p.SizeBytes() / sb.BlockSize)
	// The superblock on disk lags behind; the kernel's answer counts.
	var st unix.Statfs_t
	if err := unix.Statfs(Data, &st); err != nil {
		return false, err
	}
	before := st.Blocks
	dir, err := os.Open(Data)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
	// EINVAL: it has this size already.
	if errno != 0 && !errors.Is(errno, unix.EINVAL) {
		return false, fmt.Errorf("growing the file system on /dev/%s: %w", d.partition, errno)
	}
	if err := unix.Statfs(Data, &st); err != nil {
		return false, err
	}
	return st.Blocks > before, nil
}

func filesystemBytes(dataDevice) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(Data, &st)
	return int64(st.Blocks) * st.Bsize, err
}

// diskBytes is the size of a whole disk, from sysfs, in 512-byte units there.
func diskBytes(name string) (int64, error) {
	data, err := os.ReadFile("/sys/class/block/" + name + "/size")
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n * 512, err
}
