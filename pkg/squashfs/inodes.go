package squashfs

import (
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/tree"
)

// metadata is a table of inodes or directories: blocks of up to 8 KiB, each
// compressed, behind its length. What is in it is named by where its block starts
// in the table and where it starts in the block.
type metadata struct {
	out   []byte
	block []byte
}

const (
	metadataSize         = 8192
	uncompressedMetadata = 1 << 15
)

// at is where the next byte will be.
func (m *metadata) at() reference { return reference{uint32(len(m.out)), uint16(len(m.block))} }

func (m *metadata) write(p []byte) {
	for len(p) > 0 {
		n := min(len(p), metadataSize-len(m.block))
		m.block, p = append(m.block, p[:n]...), p[n:]
		if len(m.block) == metadataSize {
			m.flush()
		}
	}
}

func (m *metadata) flush() {
	data, head := encoder().EncodeAll(m.block, nil), 0
	if len(data) >= len(m.block) {
		data, head = m.block, uncompressedMetadata
	}
	m.out = le.AppendUint16(m.out, uint16(len(data)|head))
	m.out, m.block = append(m.out, data...), m.block[:0]
}

// end is the whole table.
func (m *metadata) end() []byte {
	if len(m.block) > 0 {
		m.flush()
	}
	return m.out
}

// reference is a place in a table.
type reference struct {
	block  uint32 // bytes from the table's start
	offset uint16 // in the unpacked block
}

func (r reference) position() uint64 { return uint64(r.block)<<16 | uint64(r.offset) }

// Types of inodes, as directories name them too; the larger form is 7 more.
const (
	typeDirectory = 1 + iota
	typeFile
	typeSymlink

	extended = 7
)

// inodes are the inodes and directories under construction.
type inodes struct {
	files    map[string]file
	children map[string][]tree.Entry // by directory, sorted by name
	number   map[string]uint32       // by path, from 1
	time     uint32

	table    metadata
	listings metadata
}

func newInodes(entries []tree.Entry, files map[string]file, time uint32) *inodes {
	n := &inodes{files: files, children: map[string][]tree.Entry{}, number: map[string]uint32{}, time: time}
	for i, e := range entries {
		n.number[e.Path] = uint32(i) + 1
		if e.Path != "." {
			dir := path.Dir(e.Path)
			n.children[dir] = append(n.children[dir], e)
		}
	}
	for _, c := range n.children {
		slices.SortFunc(c, func(a, b tree.Entry) int { return strings.Compare(path.Base(a.Path), path.Base(b.Path)) })
	}
	return n
}

// head starts an inode. The only owner is number 0 of the owners.
func (n *inodes) head(e tree.Entry, kind uint16) []byte {
	b := le.AppendUint16(nil, kind)
	b = le.AppendUint16(b, uint16(tree.Perm(e.Mode)))
	b = le.AppendUint32(b, 0) // user and group
	b = le.AppendUint32(b, n.time)
	return le.AppendUint32(b, n.number[e.Path])
}

func (n *inodes) put(inode []byte) reference {
	at := n.table.at()
	n.table.write(inode)
	return at
}

func (n *inodes) regular(e tree.Entry) reference {
	f := n.files[e.Path]
	var b []byte
	if f.start <= math.MaxUint32 && f.SizeBytes <= math.MaxUint32 {
		b = le.AppendUint32(n.head(e, typeFile), uint32(f.start))
		b = le.AppendUint32(b, math.MaxUint32) // no fragment
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, uint32(f.SizeBytes))
	} else {
		b = le.AppendUint64(n.head(e, typeFile+extended), uint64(f.start))
		b = le.AppendUint64(b, uint64(f.SizeBytes))
		b = le.AppendUint64(b, 0) // bytes saved by holes, which only st_blocks shows
		b = le.AppendUint32(b, 1) // names
		b = le.AppendUint32(b, math.MaxUint32)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, math.MaxUint32) // no extended attributes
	}
	for _, s := range f.Stored {
		b = le.AppendUint32(b, s)
	}
	return n.put(b)
}

func (n *inodes) symlink(e tree.Entry) reference {
	b := le.AppendUint32(n.head(e, typeSymlink), 1)
	b = le.AppendUint32(b, uint32(len(e.Target)))
	return n.put(append(b, e.Target...))
}

// child is an entry of a directory.
type child struct {
	name   string
	kind   uint16
	number uint32
	at     reference
}

// directory writes everything below e, then e itself; parent is an inode's number.
func (n *inodes) directory(e tree.Entry, parent uint32) reference {
	var children []child
	links := uint32(2)
	for _, in := range n.children[e.Path] {
		c := child{name: path.Base(in.Path), number: n.number[in.Path]}
		switch {
		case in.Mode.IsDir():
			links++
			c.kind, c.at = typeDirectory, n.directory(in, n.number[e.Path])
		case in.Mode.Type() == fs.ModeSymlink:
			c.kind, c.at = typeSymlink, n.symlink(in)
		default:
			c.kind, c.at = typeFile, n.regular(in)
		}
		children = append(children, c)
	}
	at := n.listings.at()
	list := listing(children)
	n.listings.write(list)
	size := len(list) + 3 // readers count "." and ".." as that
	if size <= math.MaxUint16 {
		b := le.AppendUint32(n.head(e, typeDirectory), at.block)
		b = le.AppendUint32(b, links)
		b = le.AppendUint16(b, uint16(size))
		b = le.AppendUint16(b, at.offset)
		return n.put(le.AppendUint32(b, parent))
	}
	b := le.AppendUint32(n.head(e, typeDirectory+extended), links)
	b = le.AppendUint32(b, uint32(size))
	b = le.AppendUint32(b, at.block)
	b = le.AppendUint32(b, parent)
	b = le.AppendUint16(b, 0) // entries of an index
	b = le.AppendUint16(b, at.offset)
	return n.put(le.AppendUint32(b, math.MaxUint32))
}

// listing is a directory's content: runs of up to 256 names whose inodes are in
// one block and have near numbers.
func listing(children []child) (list []byte) {
	for len(children) > 0 {
		first := children[0]
		run := 1
		for run < len(children) && run < 256 && children[run].at.block == first.at.block && near(children[run].number, first.number) {
			run++
		}
		list = le.AppendUint32(list, uint32(run-1))
		list = le.AppendUint32(list, first.at.block)
		list = le.AppendUint32(list, first.number)
		for _, c := range children[:run] {
			list = le.AppendUint16(list, c.at.offset)
			list = le.AppendUint16(list, uint16(int16(int64(c.number)-int64(first.number))))
			list = le.AppendUint16(list, c.kind)
			list = le.AppendUint16(list, uint16(len(c.name)-1))
			list = append(list, c.name...)
		}
		children = children[run:]
	}
	return list
}

func near(a, b uint32) bool {
	d := int64(a) - int64(b)
	return d >= math.MinInt16 && d <= math.MaxInt16
}
