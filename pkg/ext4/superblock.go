// Package ext4 makes and edits ext4 filesystems inside image files, with the
// programs of e2fsprogs and without root, mounts or loop devices.
//
// A new filesystem is an empty one from mke2fs with every option spelled out;
// its content, like every edit of an existing filesystem, is a script for
// debugfs. Of large files, and of many, that allocates the blocks, and what is in
// them is written directly. debugfs exits with 0 whatever happens, so its messages are parsed
// and e2fsck -fn has the last word. Before the first write to a filesystem that
// somebody else made, its superblock is read: features that debugfs does not
// keep up to date are refused, and a pending journal is replayed by e2fsck.
//
// The package finds what is in a filesystem through debugfs alone; the content of a
// large file is read from the blocks that it names. It never resizes a filesystem
// (the node does that, online).
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// superblockOffset and the field offsets below are those of struct
// ext4_super_block in the kernel's Documentation/filesystems/ext4/super.rst.
const (
	superblockOffset = 1024
	superblockSize   = 1024
	magic            = 0xEF53
)

// Superblock is what kimage needs to know of a filesystem.
type Superblock struct {
	BlockSize   int64
	Blocks      int64
	FreeBlocks  int64
	FreeInodes  int64
	Label       string
	UUID        [16]byte
	State       uint16 // bit 0: cleanly unmounted; bit 1: errors detected
	Compat      uint32
	Incompat    uint32
	ROCompat    uint32
	LastOrphan  uint32
	InodesCount int64
}

// ErrNotExt4 says that there is no ext superblock.
var ErrNotExt4 = errors.New("no ext4 filesystem")

// Feature bits that decide what may be edited.
const (
	incompatRecover   = 0x0004
	incompatJournal   = 0x0008
	incompatExtents   = 0x0040
	roOrphanPresent   = 0x10000
	incompatKnown     = 0x0002 | 0x0004 | 0x0010 | 0x0040 | 0x0080 | 0x0200 | 0x0400 | 0x2000 | 0x4000
	roCompatKnown     = 0x0001 | 0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0020 | 0x0040 | 0x0400 | 0x10000
	stateClean        = 0x0001
	stateErrors       = 0x0002
	incompatEncrypt   = 0x10000
	incompatCasefold  = 0x20000
	roCompatQuota     = 0x0100
	roCompatBigalloc  = 0x0200
	roCompatProject   = 0x2000
	roCompatVerity    = 0x8000
	roCompatReadOnly  = 0x1000
	incompatInlineDat = 0x8000
)

// featureNames names the bits that are refused, as e2fsprogs does.
var featureNames = []struct {
	ro   bool
	bit  uint32
	name string
}{
	{false, incompatJournal, "journal_dev"},
	{false, incompatEncrypt, "encrypt"},
	{false, incompatCasefold, "casefold"},
	{false, incompatInlineDat, "inline_data"},
	{true, roCompatQuota, "quota"},
	{true, roCompatBigalloc, "bigalloc"},
	{true, roCompatProject, "project"},
	{true, roCompatVerity, "verity"},
	{true, roCompatReadOnly, "read-only"},
}

// ReadSuperblock reads the superblock of the filesystem that starts at offset.
func ReadSuperblock(r io.ReaderAt, offset int64) (Superblock, error) {
	b := make([]byte, superblockSize)
	if _, err := r.ReadAt(b, offset+superblockOffset); err != nil {
		return Superblock{}, fmt.Errorf("reading ext4 superblock at byte %d: %w", offset, err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != magic {
		return Superblock{}, ErrNotExt4
	}
	sb := Superblock{
		InodesCount: int64(le.Uint32(b[0x0:])),
		Blocks:      int64(le.Uint32(b[0x4:])),
		FreeBlocks:  int64(le.Uint32(b[0xC:])),
		FreeInodes:  int64(le.Uint32(b[0x10:])),
		State:       le.Uint16(b[0x3A:]),
		Compat:      le.Uint32(b[0x5C:]),
		Incompat:    le.Uint32(b[0x60:]),
		ROCompat:    le.Uint32(b[0x64:]),
		LastOrphan:  le.Uint32(b[0xE8:]),
		Label:       strings.TrimRight(string(b[0x78:0x88]), "\x00"),
	}
	copy(sb.UUID[:], b[0x68:])
	logSize := le.Uint32(b[0x18:])
	if logSize > 6 {
		return Superblock{}, fmt.Errorf("reading ext4 superblock at byte %d: block size 2^%d is not possible", offset, logSize+10)
	}
	sb.BlockSize = 1024 << logSize
	if sb.Incompat&0x80 != 0 {
		sb.Blocks |= int64(le.Uint32(b[0x150:])) << 32
		sb.FreeBlocks |= int64(le.Uint32(b[0x158:])) << 32
	}
	return sb, nil
}

// SizeBytes is the size of the filesystem.
func (sb Superblock) SizeBytes() int64 { return sb.Blocks * sb.BlockSize }

// NeedsRepair says whether e2fsck has to run before anything may be written:
// a journal that was not replayed, orphaned inodes, or errors found by the kernel.
func (sb Superblock) NeedsRepair() bool {
	return sb.Incompat&incompatRecover != 0 || sb.ROCompat&roOrphanPresent != 0 ||
		sb.LastOrphan != 0 || sb.State&stateErrors != 0 || sb.State&stateClean == 0
}

// Editable returns an error that names the features which debugfs does not maintain.
func (sb Superblock) Editable() error {
	var bad []string
	for _, f := range featureNames {
		set := sb.Incompat
		if f.ro {
			set = sb.ROCompat
		}
		if set&f.bit != 0 {
			bad = append(bad, f.name)
		}
	}
	unknownIn, unknownRO := sb.Incompat&^incompatKnown, sb.ROCompat&^roCompatKnown
	for _, f := range featureNames {
		if f.ro {
			unknownRO &^= f.bit
		} else {
			unknownIn &^= f.bit
		}
	}
	if unknownIn != 0 {
		bad = append(bad, fmt.Sprintf("incompatible feature 0x%x", unknownIn))
	}
	if unknownRO != 0 {
		bad = append(bad, fmt.Sprintf("read-only compatible feature 0x%x", unknownRO))
	}
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	return fmt.Errorf("the ext4 filesystem uses %s, which offline editing would damage; use a base image without it", strings.Join(bad, ", "))
}
