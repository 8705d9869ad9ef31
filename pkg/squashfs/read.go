package squashfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/tree"
)

const (
	maxEntries = 1 << 20
	maxDepth   = 64
	maxBlocks  = 1 << 20 // of one file
)

// Read reads the tree of a file system of up to sizeBytes that Write could have
// written; fragments, extended attributes, devices and other compressors are
// refused. Content is read when an entry is opened, and its reader says at the end
// whether it could be unpacked. Nothing in r is trusted: damage is an error.
func Read(r io.ReaderAt, sizeBytes int64) (*tree.Tree, error) {
	in, root, err := open(r, sizeBytes)
	if err != nil {
		return nil, fmt.Errorf("reading squashfs: %w", err)
	}
	e, err := in.inode(root)
	if err == nil && !e.Mode.IsDir() {
		err = errors.New("its root is not a directory")
	}
	if err == nil {
		err = in.add(".", e, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("reading squashfs: %w", err)
	}
	return in.tree, nil
}

// reader is a file system that is read.
type reader struct {
	r         io.ReaderAt
	size      int64
	blockSize int64
	inodes    table
	listings  table
	owners    []uint32
	left      int // entries that may still come
	tree      *tree.Tree
}

// node is an inode; of a directory, where its listing is.
type node struct {
	tree.Entry
	listing reference
	bytes   int64 // of the listing
}

func open(r io.ReaderAt, sizeBytes int64) (*reader, reference, error) {
	super := make([]byte, superblockSize)
	if _, err := r.ReadAt(super, 0); err != nil {
		return nil, reference{}, fmt.Errorf("reading the superblock: %w", err)
	}
	if le.Uint32(super) != magic || le.Uint16(super[28:]) != 4 || le.Uint16(super[30:]) != 0 {
		return nil, reference{}, errors.New("no squashfs 4.0")
	}
	if c := le.Uint16(super[20:]); c != compressorZstd {
		return nil, reference{}, fmt.Errorf("it is compressed by method %d, and only zstd (%d) is read", c, compressorZstd)
	}
	in := &reader{r: r, size: int64(le.Uint64(super[40:])), blockSize: int64(le.Uint32(super[12:])), left: int(le.Uint32(super[4:])), tree: tree.New()}
	if in.size < superblockSize || in.size > sizeBytes {
		return nil, reference{}, fmt.Errorf("it should have %d bytes, and there are %d: it is truncated or damaged", in.size, sizeBytes)
	}
	if in.blockSize < 4096 || in.blockSize > blockSize || in.left > maxEntries {
		return nil, reference{}, fmt.Errorf("blocks of %d bytes or %d entries are not possible", in.blockSize, in.left)
	}
	in.inodes, in.listings = in.table(super[64:]), in.table(super[72:])
	if err := in.readOwners(int(le.Uint16(super[26:])), int64(le.Uint64(super[48:]))); err != nil {
		return nil, reference{}, fmt.Errorf("reading the owners: %w", err)
	}
	return in, position(le.Uint64(super[32:])), nil
}

func position(at uint64) reference { return reference{uint32(at >> 16), uint16(at)} }

func (in *reader) table(at []byte) table {
	return table{r: in.r, start: int64(le.Uint64(at)), end: in.size}
}

// readOwners reads the table of user and group numbers, of which list names the blocks.
func (in *reader) readOwners(n int, list int64) error {
	const perBlock = metadataSize / 4
	for len(in.owners) < n {
		at := make([]byte, 8)
		if err := readFull(in.r, at, list+int64(len(in.owners)/perBlock)*8, in.size); err != nil {
			return err
		}
		t := in.table(at)
		block, _, err := t.block(0)
		if err != nil {
			return err
		}
		if len(block) < 4*min(n-len(in.owners), perBlock) {
			return errors.New("the table is too short")
		}
		for i := 0; i < len(block)/4 && len(in.owners) < n; i++ {
			in.owners = append(in.owners, le.Uint32(block[4*i:]))
		}
	}
	return nil
}

// inode reads the inode at a place of their table. The forms are those of inodes.go.
func (in *reader) inode(at reference) (node, error) {
	c := &cursor{table: &in.inodes, at: at}
	head := c.take(16)
	if c.err != nil {
		return node{}, c.err
	}
	kind, uid, gid := le.Uint16(head), int(le.Uint16(head[4:])), int(le.Uint16(head[6:]))
	if uid >= len(in.owners) || gid >= len(in.owners) {
		return node{}, errors.New("an inode names an owner that is not in the table")
	}
	n := node{Entry: tree.Entry{Mode: fileMode(le.Uint16(head[2:])), UID: int(in.owners[uid]), GID: int(in.owners[gid]), ModTime: time.Unix(int64(le.Uint32(head[8:])), 0)}}
	switch kind {
	case typeDirectory:
		b := c.take(16)
		n.Mode |= fs.ModeDir
		n.listing, n.bytes = reference{le.Uint32(b), le.Uint16(b[10:])}, int64(le.Uint16(b[8:]))-3
	case typeDirectory + extended:
		b := c.take(24)
		n.Mode |= fs.ModeDir
		n.listing, n.bytes = reference{le.Uint32(b[8:]), le.Uint16(b[18:])}, int64(le.Uint32(b[4:]))-3
	case typeSymlink, typeSymlink + extended:
		n.Mode |= fs.ModeSymlink
		size := le.Uint32(c.take(8)[4:])
		if size > math.MaxUint16 {
			return node{}, fmt.Errorf("a link of %d bytes is not possible", size)
		}
		n.Target = string(c.take(int(size)))
	case typeFile:
		b := c.take(16)
		return in.regular(n, c, int64(le.Uint32(b)), int64(le.Uint32(b[12:])), le.Uint32(b[4:]))
	case typeFile + extended:
		b := c.take(40)
		return in.regular(n, c, int64(le.Uint64(b)), int64(le.Uint64(b[8:])), le.Uint32(b[28:]))
	default:
		return node{}, fmt.Errorf("an inode of type %d is nothing that a payload has", kind)
	}
	return n, c.err
}

func (in *reader) regular(n node, c *cursor, start, size int64, fragment uint32) (node, error) {
	blocks := (size + in.blockSize - 1) / in.blockSize
	if c.err == nil && (size < 0 || blocks > maxBlocks || start < 0 || start > in.size) {
		return n, fmt.Errorf("a file of %d bytes at byte %d is not possible", size, start)
	}
	if c.err == nil && fragment != math.MaxUint32 {
		return n, errors.New("a file has a fragment, which a payload's has not")
	}
	f := file{start: start, Blocks: Blocks{SizeBytes: size}}
	for b := c.take(int(blocks) * 4); len(b) > 0; b = b[4:] {
		f.Stored = append(f.Stored, le.Uint32(b))
	}
	n.Size, n.Open = size, func() (io.ReadCloser, error) { return &unpacking{in: in, file: f, left: size}, nil }
	return n, c.err
}

// add puts n, and what is below it, into the tree.
func (in *reader) add(p string, n node, depth int) error {
	if in.left--; in.left < 0 || depth > maxDepth {
		return errors.New("it has more entries than it says")
	}
	n.Path = p
	if err := in.tree.Add(n.Entry); err != nil || !n.Mode.IsDir() {
		return err
	}
	c := &cursor{table: &in.listings, at: n.listing}
	for left := n.bytes; left > 0; {
		head := c.take(12)
		block, run := le.Uint32(head[4:]), int(le.Uint32(head))+1
		if left -= 12; run > 256 {
			return fmt.Errorf("the listing of /%s is damaged", p)
		}
		for range run {
			b := c.take(8)
			name := string(c.take(int(le.Uint16(b[6:])) + 1))
			left -= 8 + int64(len(name))
			if c.err != nil {
				return fmt.Errorf("reading the listing of /%s: %w", p, c.err)
			}
			if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				return fmt.Errorf("in /%s there is something called %q", p, name)
			}
			child, err := in.inode(reference{block, le.Uint16(b)})
			if err == nil {
				err = in.add(path.Join(p, name), child, depth+1)
			}
			if err != nil {
				return fmt.Errorf("/%s: %w", path.Join(p, name), err)
			}
		}
	}
	return nil
}

// fileMode is the inverse of tree.Perm.
func fileMode(unix uint16) fs.FileMode {
	m := fs.FileMode(unix) & fs.ModePerm
	for bit, mode := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if unix&bit != 0 {
			m |= mode
		}
	}
	return m
}
