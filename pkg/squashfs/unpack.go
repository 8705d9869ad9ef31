package squashfs

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// decoder unpacks blocks and tables, of which none is longer than blockSize.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(blockSize))
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return d
})

// readFull reads p at off of a file system that has size bytes.
func readFull(r io.ReaderAt, p []byte, off, size int64) error {
	if off < 0 || off > size-int64(len(p)) {
		return fmt.Errorf("byte %d is beyond its end: it is damaged", off)
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return fmt.Errorf("reading at byte %d: %w", off, err)
}

// table is a table of inodes or directories that is read; see metadata.
type table struct {
	r          io.ReaderAt
	start, end int64
	blocks     map[uint32]unpacked // a table of a payload has a few
}

type unpacked struct {
	data []byte
	next uint32 // where the following block starts
}

// block returns the block at a place of the table, and where the next one is.
func (t *table) block(at uint32) ([]byte, uint32, error) {
	if b, ok := t.blocks[at]; ok {
		return b.data, b.next, nil
	}
	head := make([]byte, 2)
	if err := readFull(t.r, head, t.start+int64(at), t.end); err != nil {
		return nil, 0, err
	}
	length := le.Uint16(head)
	packed := make([]byte, length&^uncompressedMetadata)
	if len(packed) == 0 || len(packed) > metadataSize {
		return nil, 0, fmt.Errorf("a block of a table with %d bytes is not possible", len(packed))
	}
	if err := readFull(t.r, packed, t.start+int64(at)+2, t.end); err != nil {
		return nil, 0, err
	}
	b := unpacked{packed, at + 2 + uint32(len(packed))}
	if length&uncompressedMetadata == 0 {
		var err error
		if b.data, err = decoder().DecodeAll(packed, nil); err != nil {
			return nil, 0, fmt.Errorf("unpacking a table: %w", err)
		}
		if len(b.data) == 0 || len(b.data) > metadataSize {
			return nil, 0, fmt.Errorf("a block of a table with %d bytes is not possible", len(b.data))
		}
	}
	const keep = 4096 // blocks
	if t.blocks == nil || len(t.blocks) >= keep {
		t.blocks = map[uint32]unpacked{}
	}
	t.blocks[at] = b
	return b.data, b.next, nil
}

// cursor reads on in a table. It remembers its first error, after which it gives zeros.
type cursor struct {
	table *table
	at    reference
	err   error
}

func (c *cursor) take(n int) []byte {
	out := make([]byte, 0, n)
	for len(out) < n && c.err == nil {
		block, next, err := c.table.block(c.at.block)
		if err == nil && int(c.at.offset) > len(block) {
			err = errors.New("a place in a table does not exist: it is damaged")
		}
		if err != nil {
			c.err = err
			break
		}
		part := block[c.at.offset:]
		part = part[:min(len(part), n-len(out))]
		out = append(out, part...)
		c.at.offset += uint16(len(part))
		if int(c.at.offset) == len(block) && len(out) < n {
			c.at = reference{next, 0}
		}
	}
	return append(out, make([]byte, n-len(out))...)
}

// unpacking reads a file block by block.
type unpacking struct {
	in        *reader
	file      file
	left      int64 // bytes that were not unpacked yet
	packed    []byte
	unpacked  []byte
	remaining []byte // of unpacked
}

func (c *unpacking) Read(p []byte) (int, error) {
	if len(c.remaining) == 0 {
		if c.left == 0 {
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, fmt.Errorf("reading squashfs: %w", err)
		}
	}
	n := copy(p, c.remaining)
	c.remaining = c.remaining[n:]
	return n, nil
}

func (c *unpacking) next() error {
	want := int(min(c.left, c.in.blockSize))
	stored := c.file.Stored[0]
	n := int(stored &^ uncompressed)
	switch {
	case n > want || n == want && stored&uncompressed == 0:
		return fmt.Errorf("a block with %d bytes for %d is not possible", n, want)
	case n == 0:
		c.unpacked = append(c.unpacked[:0], make([]byte, want)...)
	default:
		if cap(c.packed) < n {
			c.packed = make([]byte, c.in.blockSize)
		}
		c.packed = c.packed[:n]
		if err := readFull(c.in.r, c.packed, c.file.start, c.in.size); err != nil {
			return err
		}
		if stored&uncompressed != 0 {
			c.unpacked = append(c.unpacked[:0], c.packed...)
			break
		}
		var err error
		if c.unpacked, err = decoder().DecodeAll(c.packed, c.unpacked[:0]); err != nil {
			return fmt.Errorf("unpacking the block at byte %d: %w", c.file.start, err)
		}
	}
	if len(c.unpacked) != want {
		return fmt.Errorf("the block at byte %d has %d bytes instead of %d", c.file.start, len(c.unpacked), want)
	}
	c.file.start, c.file.Stored, c.left, c.remaining = c.file.start+int64(n), c.file.Stored[1:], c.left-int64(want), c.unpacked
	return nil
}

func (c *unpacking) Close() error { return nil }
