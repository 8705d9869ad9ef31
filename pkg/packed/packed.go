// Package packed compresses disk images with holes, on all processors at once. What comes
// out is one stream as any unpacker reads it, and the same bytes however many processors
// there are.
package packed

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"slices"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/kimage-project/kimage/pkg/sparse"
)

// ChunkBytes are compressed by themselves: less packs worse, more takes memory.
const ChunkBytes = 4 << 20

// Chunk is a piece of a disk on its way.
type Chunk struct {
	Data      []byte // nil: zeros
	SizeBytes int64
	out       chan []byte
}

// Zstd writes size bytes of a disk, of which what lies behind its end is zero, as a series
// of zstd frames (RFC 8878, 3.1: what they hold follows one another). progress is told how
// much is done.
func Zstd(ctx context.Context, out io.Writer, disk *os.File, size int64, progress func(int64)) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(runtime.NumCPU()), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(true))
	if err != nil {
		return err
	}
	defer enc.Close()
	pack := func(data []byte) ([]byte, error) { return enc.EncodeAll(data, nil), nil }
	return InOrder(ctx, disk, size, pack, func(c Chunk, packed []byte) error {
		progress(c.SizeBytes)
		_, err := out.Write(packed)
		return err
	})
}

// Gzip writes head, then size bytes of a disk, of which what lies behind its end is zero,
// then tail, as one gzip member (RFC 1952): pieces that end on a byte are one deflate stream
// when they follow one another.
func Gzip(ctx context.Context, out io.Writer, head []byte, disk *os.File, size int64, tail []byte, progress func(int64)) error {
	// No name, no time, an unknown system.
	if _, err := out.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}); err != nil {
		return err
	}
	var sum uint32
	var total int64
	put := func(plain, packed []byte) error {
		sum = crc32.Update(sum, crc32.IEEETable, plain)
		total += int64(len(plain))
		_, err := out.Write(packed)
		return err
	}
	small := func(plain []byte) error {
		packed, err := deflate(plain)
		if err != nil {
			return err
		}
		return put(plain, packed)
	}
	if err := small(head); err != nil {
		return err
	}
	zeros := make([]byte, ChunkBytes)
	err := InOrder(ctx, disk, size, deflate, func(c Chunk, packed []byte) error {
		progress(c.SizeBytes)
		plain := c.Data
		if plain == nil {
			plain = zeros[:c.SizeBytes]
		}
		return put(plain, packed)
	})
	if err != nil {
		return err
	}
	if err := small(tail); err != nil {
		return err
	}
	// The last block of the deflate stream, an empty one, then what gzip ends with.
	end := binary.LittleEndian.AppendUint32([]byte{0x03, 0x00}, sum)
	_, err = out.Write(binary.LittleEndian.AppendUint32(end, uint32(total)))
	return err
}

// deflate packs to a whole number of bytes without an end.
func deflate(plain []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.DefaultCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	err = w.Flush()
	return b.Bytes(), err
}

// InOrder packs a disk of size bytes, of which what lies behind its end is zero, in chunks of
// ChunkBytes side by side, and gives them to put one after the other. Chunks of zeros, which
// most are, are neither read nor packed more than once.
func InOrder(ctx context.Context, disk *os.File, size int64, pack func([]byte) ([]byte, error), put func(Chunk, []byte) error) error {
	extents, err := sparse.Extents(disk)
	if err != nil {
		return err
	}
	fi, err := disk.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > size {
		return fmt.Errorf("BUG: %d bytes of %s, which has %d", size, disk.Name(), fi.Size())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan Chunk, 2*runtime.NumCPU())
	go func() {
		defer close(queue)
		zeros := map[int64][]byte{}
		for offset := int64(0); offset < size; offset += ChunkBytes {
			c := Chunk{SizeBytes: min(ChunkBytes, size-offset), out: make(chan []byte, 1)}
			if slices.ContainsFunc(extents, func(e sparse.Extent) bool { return e.Offset < offset+c.SizeBytes && offset < e.Offset+e.Length }) {
				c.Data = make([]byte, c.SizeBytes)
				if n, err := disk.ReadAt(c.Data, offset); err != nil && (err != io.EOF || offset+int64(n) != fi.Size()) {
					cancel(fmt.Errorf("reading %s: %w", disk.Name(), err))
					return
				}
			}
			select {
			case queue <- c: // no more at once than there is room for
			case <-ctx.Done():
				return
			}
			if packed, ok := zeros[c.SizeBytes]; c.Data == nil && ok {
				c.out <- packed
				continue
			}
			work := func() []byte {
				plain := c.Data
				if plain == nil {
					plain = make([]byte, c.SizeBytes)
				}
				packed, err := pack(plain)
				if err != nil {
					cancel(err)
				}
				return packed
			}
			if c.Data == nil {
				zeros[c.SizeBytes] = work()
				c.out <- zeros[c.SizeBytes]
				continue
			}
			go func() { c.out <- work() }()
		}
	}()
	for c := range queue {
		packed := <-c.out
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := put(c, packed); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}
