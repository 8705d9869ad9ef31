// Package blkpg tells the kernel of single partitions of a disk, while others of it are in
// use (BLKPG, linux/blkpg.h). It reads and writes no partition table.
package blkpg

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/parttable"
)

const (
	blkpg  = 0x1269
	add    = 1 // BLKPG_ADD_PARTITION
	resize = 3 // BLKPG_RESIZE_PARTITION
)

// Add makes the kernel show a partition.
func Add(disk *os.File, p parttable.Partition) error { return tell(disk, add, "showing", p) }

// Resize makes a partition as long as p is, also while it is in use.
func Resize(disk *os.File, p parttable.Partition) error { return tell(disk, resize, "resizing", p) }

func tell(disk *os.File, op int32, doing string, p parttable.Partition) error {
	type partition struct {
		start, length   int64
		number          int32
		devName, volume [64]byte
	}
	type argument struct {
		op, flags, length int32
		data              unsafe.Pointer
	}
	data := partition{start: p.OffsetBytes(), length: p.SizeBytes(), number: int32(p.Number)}
	arg := argument{op: op, length: int32(unsafe.Sizeof(data)), data: unsafe.Pointer(&data)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), blkpg, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return fmt.Errorf("%s partition %d in the kernel: %w", doing, p.Number, errno)
	}
	return nil
}
