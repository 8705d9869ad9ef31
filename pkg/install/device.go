package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sectorBytes = 512
	pageBytes   = 4096
	headBytes   = 1 << 20 // before the first partition
	// tailBytes hold the second GPT, and what RAID, LVM and ZFS keep at the end of a disk or
	// of a partition that ended where the data partition will: found there, it would make
	// two things of one partition.
	tailBytes    = 4 << 20
	discardBytes = 64 << 30 // between two looks at the context
)

// blkZeroOut is BLKZEROOUT of linux/fs.h, _IO(0x12, 127).
const blkZeroOut = 0x127f

// device is a block device, or a file in its place.
type device struct {
	file      *os.File
	sizeBytes int64
	block     bool
}

func openDevice(f *os.File) (*device, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &device{file: f, block: fi.Mode()&os.ModeDevice != 0}
	if d.sizeBytes, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	if !d.block {
		return d, nil
	}
	sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return nil, fmt.Errorf("asking %s for its sectors: %w", f.Name(), err)
	}
	if sector != sectorBytes {
		return nil, fmt.Errorf("%s has sectors of %d bytes, and the image's partition table and file systems are made for %d: take another disk, or set this one to sectors of %d bytes (nvme format, sg_format)",
			f.Name(), sector, sectorBytes, sectorBytes)
	}
	return d, nil
}

// wipe marks the disk, then takes away what could be taken for a file system, a RAID or
// partitions. What lies behind the image is given back to the storage.
func (d *device) wipe(ctx context.Context, imageBytes int64) error {
	sector := make([]byte, sectorBytes)
	copy(sector, mark)
	if _, err := d.file.WriteAt(sector, 0); err != nil {
		return err
	}
	// All else is taken away only when the mark is there for good.
	if err := d.file.Sync(); err != nil {
		return fmt.Errorf("writing %s: %w", d.file.Name(), err)
	}
	if err := d.zero(sectorBytes, min(headBytes, d.sizeBytes)-sectorBytes); err != nil {
		return err
	}
	if err := d.reread(ctx); err != nil {
		return err
	}
	tail := max(imageBytes, d.sizeBytes-tailBytes) / sectorBytes * sectorBytes
	for at := imageBytes; at < tail && d.block; at += discardBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.ioctl(unix.BLKDISCARD, at, min(discardBytes, tail-at)) != nil {
			break // it cannot, which harms nobody
		}
	}
	if err := d.zero(tail, d.sizeBytes-tail); err != nil {
		return err
	}
	return d.file.Sync()
}

// zero writes zeros, on a device by the storage itself where it can.
func (d *device) zero(at, n int64) error {
	if n <= 0 {
		return nil
	}
	var err error
	if d.block {
		err = d.ioctl(blkZeroOut, at, n)
	} else {
		err = unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		err = d.zeroByHand(at, n)
	}
	if err != nil {
		return fmt.Errorf("writing %d zeros to %s: %w", n, d.file.Name(), err)
	}
	return nil
}

func (d *device) zeroByHand(at, n int64) error {
	b := make([]byte, min(n, 1<<20))
	for n > 0 {
		m, err := d.file.WriteAt(b[:min(n, int64(len(b)))], at)
		if err != nil {
			return err
		}
		at, n = at+int64(m), n-int64(m)
	}
	return nil
}

func (d *device) ioctl(request uint, at, n int64) error {
	span := [2]uint64{uint64(at), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), uintptr(request), uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}

// reread has the kernel look for partitions: it knows those that were there.
func (d *device) reread(ctx context.Context) error {
	if !d.block {
		return nil
	}
	var err error
	for range 10 {
		// A device that never has partitions, as a loop device without them: EINVAL.
		if _, err = unix.IoctlRetInt(int(d.file.Fd()), unix.BLKRRPART); err == nil || errors.Is(err, unix.EINVAL) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second): // somebody looks at it
		}
	}
	return fmt.Errorf("the partitions of %s are in use: %w", d.file.Name(), err)
}
