// Package vmdk writes stream-optimized VMDKs, the disks that OVF takes: grains of 64 KiB,
// each compressed by itself, on all processors at once (VMware, "Virtual Disk Format 5.0",
// "Stream-Optimized Compressed Sparse Extents"). The same disk becomes the same bytes.
package vmdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/kimage-project/kimage/pkg/packed"
)

const (
	sectorBytes  = 512
	grainSectors = 128
	grainBytes   = grainSectors * sectorBytes
	tableGrains  = 512 // that one grain table leads to
	tableBytes   = tableGrains * grainBytes

	descriptorSectors = 20
	overheadSectors   = 128 // before the first grain
	markerBytes       = 12  // of a grain: its place and its size
)

// Kinds of markers that are not a grain's.
const (
	markerEnd = iota
	markerTable
	markerDirectory
	markerFooter
)

// header is SparseExtentHeader; the rest of its sector is zero.
type header struct {
	Magic, Version, Flags                         uint32
	Capacity, Grain, Descriptor, DescriptorLength uint64
	TableEntries                                  uint32
	Redundant, Directory, Overhead                uint64
	Unclean                                       uint8
	LineEnds                                      [4]byte
	Compression                                   uint16
}

const (
	magic        = 0x564d444b        // "KDMV"
	flags        = 1 | 1<<16 | 1<<17 // line ends can be checked; grains are compressed; there are markers
	deflated     = 1
	directoryEnd = 1<<64 - 1 // the directory stands at the end: see the footer
)

// descriptor is the text that names the extent. Content IDs tell one version of a disk from
// another; images are never written to, so that all may have the same.
const descriptor = `# Disk DescriptorFile
version=1
CID=6b696d67
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
`

// writer counts what was written.
type writer struct {
	out     io.Writer
	bytes   int64
	table   [tableGrains]uint32 // of the grains since the last table; sectors
	grains  int                 // in table
	used    bool                // table has a grain that is there
	tables  []uint32            // the directory; sectors
	grainAt uint64              // of the next grain; sectors of the disk
}

// Write writes a disk of capacityBytes, of which what lies behind the end of the file is
// zero, to out, which will be called name. progress is told how much of the disk is done.
func Write(ctx context.Context, out io.Writer, disk *os.File, capacityBytes int64, name string, progress func(int64)) error {
	if capacityBytes%sectorBytes != 0 {
		return fmt.Errorf("a disk of %d bytes has no whole sectors", capacityBytes)
	}
	sectors := capacityBytes / sectorBytes
	h := header{Magic: magic, Version: 3, Flags: flags, Capacity: uint64(sectors), Grain: grainSectors, Descriptor: 1, DescriptorLength: descriptorSectors,
		TableEntries: tableGrains, Directory: directoryEnd, Overhead: overheadSectors, LineEnds: [4]byte{'\n', ' ', '\r', '\n'}, Compression: deflated}
	text := fmt.Sprintf(descriptor, sectors, name, sectors/(255*63))
	if len(text) > descriptorSectors*sectorBytes {
		return fmt.Errorf("the name %.40s... is too long for a VMDK", name)
	}
	w := &writer{out: out}
	head := h.sector()
	head = append(head, text...)
	if err := w.put(append(head, make([]byte, overheadSectors*sectorBytes-len(head))...)); err != nil {
		return err
	}
	err := packed.InOrder(ctx, disk, capacityBytes, pack, func(c packed.Chunk, records []byte) error {
		progress(c.SizeBytes)
		return w.chunk(records, int((c.SizeBytes+grainBytes-1)/grainBytes))
	})
	if err != nil {
		return err
	}
	return w.finish(h)
}

func (h header) sector() []byte {
	b, err := binary.Append(nil, binary.LittleEndian, h)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return append(b, make([]byte, sectorBytes-len(b))...)
}

var deflaters = sync.Pool{New: func() any { return zlib.NewWriter(nil) }}

var zeros [grainBytes]byte

// pack makes records of a chunk's grains: the number of the grain in the chunk, the size of
// what follows, and that. Grains of zeros have none.
func pack(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w := deflaters.Get().(*zlib.Writer)
	defer deflaters.Put(w)
	for i := 0; i*grainBytes < len(plain); i++ {
		grain := plain[i*grainBytes : min((i+1)*grainBytes, len(plain))]
		if bytes.Equal(grain, zeros[:len(grain)]) {
			continue
		}
		at := out.Len()
		out.Write(make([]byte, markerBytes))
		w.Reset(&out)
		_, err := w.Write(grain)
		if err == nil {
			_, err = w.Write(zeros[len(grain):]) // every grain is whole
		}
		if err := errors.Join(err, w.Close()); err != nil {
			return nil, err
		}
		marker := out.Bytes()[at:]
		binary.LittleEndian.PutUint64(marker, uint64(i))
		binary.LittleEndian.PutUint32(marker[8:], uint32(len(marker)-markerBytes))
		out.Write(make([]byte, padding(len(marker))))
	}
	return out.Bytes(), nil
}

// padding is what is missing to whole sectors.
func padding(n int) int { return (sectorBytes - n%sectorBytes) % sectorBytes }

// chunk writes the records of a chunk of so many grains.
func (w *writer) chunk(records []byte, grains int) error {
	le := binary.LittleEndian
	for b := records; len(b) > 0; {
		i := le.Uint64(b)
		n := markerBytes + int(le.Uint32(b[8:]))
		n += padding(n)
		w.table[w.grains+int(i)] = w.sector() + uint32((len(records)-len(b))/sectorBytes)
		w.used = true
		le.PutUint64(b, w.grainAt+i*grainSectors)
		b = b[n:]
	}
	w.grains += grains
	w.grainAt += uint64(grains) * grainSectors
	if err := w.put(records); err != nil {
		return err
	}
	if w.grains < tableGrains {
		return nil
	}
	return w.endTable()
}

// endTable writes the grain table that is full.
func (w *writer) endTable() error {
	at := uint32(0)
	if w.used {
		b, err := binary.Append(nil, binary.LittleEndian, w.table[:])
		if err != nil {
			return err
		}
		at = w.sector() + 1
		if err := w.metadata(markerTable, b); err != nil {
			return err
		}
	}
	w.tables = append(w.tables, at)
	w.table, w.grains, w.used = [tableGrains]uint32{}, 0, false
	return nil
}

// finish writes the directory of grain tables, and at last where it is.
func (w *writer) finish(h header) error {
	if w.grains > 0 {
		if err := w.endTable(); err != nil {
			return err
		}
	}
	directory, err := binary.Append(nil, binary.LittleEndian, w.tables)
	if err != nil {
		return err
	}
	h.Directory = uint64(w.sector()) + 1
	if err := w.metadata(markerDirectory, append(directory, make([]byte, padding(len(directory)))...)); err != nil {
		return err
	}
	if err := w.metadata(markerFooter, h.sector()); err != nil {
		return err
	}
	return w.metadata(markerEnd, nil)
}

// metadata writes a marker and whole sectors.
func (w *writer) metadata(kind uint32, sectors []byte) error {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(sectors)/sectorBytes))
	b = binary.LittleEndian.AppendUint32(b, 0) // the size of a grain, which it is not
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = append(b, make([]byte, sectorBytes-len(b))...)
	return w.put(append(b, sectors...))
}

// sector is where the next write goes.
func (w *writer) sector() uint32 { return uint32(w.bytes / sectorBytes) }

func (w *writer) put(b []byte) error {
	n, err := w.out.Write(b)
	w.bytes += int64(n)
	if err == nil && w.bytes/sectorBytes > 1<<32-1 {
		return errors.New("a VMDK has no more than 2 TiB")
	}
	return err
}
