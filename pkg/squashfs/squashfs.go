// Package squashfs writes a tree as a squashfs 4.0 file system, compressed by zstd,
// and reads it.
//
//	Pack: content -> blocks, once per content, on all processors
//	Write: tree + packed blocks -> file system
//	Read: file system -> tree
//
// It is no wrapper of mksquashfs for three reasons. Blocks of a file do not depend
// on what lies beside it, so what was packed once can be kept, and most of a
// payload is the same from one bake to the next. The bytes depend on this module
// alone, not on which squashfs-tools and libzstd a machine has. And nothing needs
// to be installed.
//
// What payloads do not have is refused: owners other than root, hard links,
// devices, extended attributes. Small files are blocks of their own, never
// fragments; there is no export table, as nobody serves a payload by NFS.
//
// The format is that of the kernel's fs/squashfs/squashfs_fs.h and
// https://dr-emann.github.io/squashfs/.
package squashfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/bits"
	"os"
	"path"

	"github.com/kimage-project/kimage/pkg/tree"
)

// blockSize is squashfs's largest: 7 % smaller than its default for Go binaries,
// at no cost in time.
const blockSize = 1 << 20

const (
	magic          = 0x73717368
	superblockSize = 96
	compressorZstd = 6
	noFragments    = 0x0010
	noXattrs       = 0x0200
	none           = math.MaxUint64 // a table that is not there
	padding        = 4096           // for readers of whole pages
)

var le = binary.LittleEndian

// Config says how a tree is written.
type Config struct {
	File        string // made anew; must not exist
	OffsetBytes int64  // where in File it starts; what is before stays a hole
	UnixTime    int64  // every timestamp, seconds
	Packed      map[string]Packed
}

// Packed is the content of a regular file, by its path in Config.
type Packed struct {
	Blocks
	Open func() (io.ReadCloser, error) // what Pack wrote
}

// Write writes t to c.File.
func Write(ctx context.Context, t *tree.Tree, c Config) (err error) {
	entries := t.Entries()
	for _, e := range entries {
		if err := suitable(e); err != nil {
			return fmt.Errorf("writing squashfs: %s %w", e.Path, err)
		}
	}
	if c.UnixTime < 0 || c.UnixTime > math.MaxUint32 {
		return fmt.Errorf("BUG: squashfs cannot hold the time %d", c.UnixTime)
	}
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := &writer{c: c, out: bufio.NewWriterSize(io.NewOffsetWriter(f, c.OffsetBytes+superblockSize), blockSize), size: superblockSize}
	files := map[string]file{}
	for _, e := range entries {
		if !e.Mode.IsRegular() {
			continue
		}
		if files[e.Path], err = w.data(ctx, e); err != nil {
			return fmt.Errorf("writing squashfs: %s: %w", e.Path, err)
		}
	}
	inodes := newInodes(entries, files, uint32(c.UnixTime))
	root := inodes.directory(entries[0], uint32(len(entries))+1) // as mksquashfs names the root's parent
	super := make([]byte, superblockSize)
	le.PutUint32(super[0:], magic)
	le.PutUint32(super[4:], uint32(len(entries)))
	le.PutUint32(super[8:], uint32(c.UnixTime))
	le.PutUint32(super[12:], blockSize)
	le.PutUint16(super[20:], compressorZstd)
	le.PutUint16(super[22:], uint16(bits.TrailingZeros(blockSize)))
	le.PutUint16(super[24:], noFragments|noXattrs)
	le.PutUint16(super[26:], 1) // owners
	le.PutUint16(super[28:], 4) // version
	le.PutUint64(super[32:], root.position())
	le.PutUint64(super[56:], none) // extended attributes
	le.PutUint64(super[64:], uint64(w.size))
	w.write(inodes.table.end())
	le.PutUint64(super[72:], uint64(w.size))
	w.write(inodes.listings.end())
	// Every owner is number 0 of this table, which a list of its blocks follows.
	var owners metadata
	owners.write(make([]byte, 4))
	at := w.size
	w.write(owners.end())
	le.PutUint64(super[48:], uint64(w.size))
	w.write(le.AppendUint64(nil, uint64(at)))
	le.PutUint64(super[40:], uint64(w.size))
	le.PutUint64(super[80:], none) // fragments
	le.PutUint64(super[88:], none) // export table
	if err := w.out.Flush(); err != nil {
		return err
	}
	if _, err := f.WriteAt(super, c.OffsetBytes); err != nil {
		return err
	}
	return f.Truncate(c.OffsetBytes + (w.size+padding-1)/padding*padding)
}

func suitable(e tree.Entry) error {
	switch {
	case e.UID != 0 || e.GID != 0:
		return fmt.Errorf("belongs to %d:%d, not to root", e.UID, e.GID)
	case e.Hard:
		return errors.New("is a hard link, which a payload cannot have")
	case len(e.Xattrs) > 0:
		return errors.New("has extended attributes, which a payload cannot have")
	case e.Mode.IsDir() || e.Mode.IsRegular() || e.Mode.Type() == fs.ModeSymlink:
	default:
		return fmt.Errorf("is of type %v, which a payload cannot have", e.Mode.Type())
	}
	if len(path.Base(e.Path)) > 255 || len(e.Target) > 65535 {
		return errors.New("has too long a name")
	}
	return nil
}

// writer writes from the superblock on.
type writer struct {
	c    Config
	out  *bufio.Writer // remembers its first error
	size int64         // from the file system's start
}

func (w *writer) write(p []byte) {
	w.out.Write(p)
	w.size += int64(len(p))
}

// file is where a regular file's blocks are.
type file struct {
	start int64
	Blocks
}

func (w *writer) data(ctx context.Context, e tree.Entry) (file, error) {
	f := file{start: w.size}
	if e.Size == 0 {
		return f, nil
	}
	packed, ok := w.c.Packed[e.Path]
	open := e.Open
	if ok {
		f.Blocks, open = packed.Blocks, packed.Open
	}
	r, err := open()
	if err != nil {
		return f, err
	}
	defer r.Close()
	if !ok {
		if f.Blocks, err = Pack(ctx, w.out, r, e.Size); err != nil {
			return f, err
		}
	} else if f.SizeBytes != e.Size {
		return f, fmt.Errorf("BUG: blocks of %d bytes for a file of %d", f.SizeBytes, e.Size)
	} else if n, err := io.Copy(w.out, r); err != nil {
		return f, err
	} else if n != f.storedBytes() {
		return f, fmt.Errorf("%d bytes of blocks instead of %d", n, f.storedBytes())
	}
	w.size += f.storedBytes()
	return f, nil
}
