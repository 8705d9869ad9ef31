package qcow2

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/kimage-project/kimage/pkg/sparse"
)

const (
	clusterBits  = 16
	clusterBytes = 1 << clusterBits
	headerBytes  = 104
	copied       = uint64(1) << 63 // refcount is exactly one
	perTable     = clusterBytes / 8
	perRefBlock  = clusterBytes / 2 // 16-bit refcounts
)

// Write writes the disk in raw as a qcow2 image to out, an empty file. Data
// clusters come first, in the disk's order, then the tables.
func Write(ctx context.Context, out *os.File, raw *os.File, progress func(int64)) error {
	fi, err := raw.Stat()
	if err != nil {
		return err
	}
	extents, err := sparse.Extents(raw)
	if err != nil {
		return err
	}
	size := fi.Size()
	w := &writer{out: out, size: size, tables: map[int64][]uint64{}}
	l1Clusters := clusters(w.l1Entries() * 8)
	w.next = 1 + l1Clusters // header and first-level table are written last
	if _, err := out.Seek(w.next*clusterBytes, io.SeekStart); err != nil {
		return err
	}
	w.buf = bufio.NewWriterSize(out, 1<<20)
	if err := w.data(ctx, raw, extents, progress); err != nil {
		return err
	}
	return w.metadata(l1Clusters)
}

type writer struct {
	out    *os.File
	buf    *bufio.Writer
	size   int64
	next   int64              // cluster that is written next
	tables map[int64][]uint64 // index in the first-level table to second-level table
}

func (w *writer) l1Entries() int64 { return (clusters(w.size) + perTable - 1) / perTable }

func clusters(bytes int64) int64 { return (bytes + clusterBytes - 1) / clusterBytes }

// data copies the clusters that are not all zero.
func (w *writer) data(ctx context.Context, raw io.ReaderAt, extents []sparse.Extent, progress func(int64)) error {
	buf, zero := make([]byte, clusterBytes), make([]byte, clusterBytes)
	for _, e := range extents {
		for off := e.Offset / clusterBytes * clusterBytes; off < e.Offset+e.Length; off += clusterBytes {
			if err := ctx.Err(); err != nil {
				return err
			}
			clear(buf)
			if _, err := raw.ReadAt(buf[:min(clusterBytes, w.size-off)], off); err != nil {
				return fmt.Errorf("reading the disk at byte %d: %w", off, err)
			}
			if progress != nil {
				progress(clusterBytes)
			}
			if bytes.Equal(buf, zero) {
				continue
			}
			i := off / clusterBytes
			table := w.tables[i/perTable]
			if table == nil {
				table = make([]uint64, perTable)
				w.tables[i/perTable] = table
			}
			table[i%perTable] = uint64(w.next)*clusterBytes | copied
			w.next++
			if _, err := w.buf.Write(buf); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) metadata(l1Clusters int64) error {
	l1 := make([]uint64, w.l1Entries())
	for i := range l1 {
		if table := w.tables[int64(i)]; table != nil {
			l1[i] = uint64(w.next)*clusterBytes | copied
			w.next++
			if err := w.put(table); err != nil {
				return err
			}
		}
	}
	// The refcounts count their own clusters too.
	blocks, table := int64(0), int64(0)
	for {
		b := (w.next + blocks + table + perRefBlock - 1) / perRefBlock
		t := clusters(b * 8)
		if b == blocks && t == table {
			break
		}
		blocks, table = b, t
	}
	total := w.next + blocks + table
	refTable := make([]uint64, table*perTable)
	for b := range blocks {
		refTable[b] = uint64(w.next+b) * clusterBytes
		block := make([]byte, clusterBytes)
		for i := range min(int64(perRefBlock), total-b*perRefBlock) {
			binary.BigEndian.PutUint16(block[i*2:], 1)
		}
		if _, err := w.buf.Write(block); err != nil {
			return err
		}
	}
	refTableAt := w.next + blocks
	if err := w.put(refTable); err != nil {
		return err
	}
	if err := w.buf.Flush(); err != nil {
		return err
	}
	head := make([]byte, (1+l1Clusters)*clusterBytes)
	be := binary.BigEndian
	be.PutUint32(head[0:], magic)
	be.PutUint32(head[4:], 3)
	be.PutUint32(head[20:], clusterBits)
	be.PutUint64(head[24:], uint64(w.size))
	be.PutUint32(head[36:], uint32(len(l1)))
	be.PutUint64(head[40:], clusterBytes)
	be.PutUint64(head[48:], uint64(refTableAt)*clusterBytes)
	be.PutUint32(head[56:], uint32(table))
	be.PutUint32(head[96:], 4) // refcounts of 2^4 bits
	be.PutUint32(head[100:], headerBytes)
	for i, v := range l1 {
		be.PutUint64(head[clusterBytes+i*8:], v)
	}
	_, err := w.out.WriteAt(head, 0)
	return err
}

func (w *writer) put(table []uint64) error {
	b := make([]byte, len(table)*8)
	for i, v := range table {
		binary.BigEndian.PutUint64(b[i*8:], v)
	}
	_, err := w.buf.Write(b)
	return err
}
