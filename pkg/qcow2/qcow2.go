// Package qcow2 reads and writes QEMU's disk image format.
//
// Reading is go-qcow2reader's, behind a check of everything in the header
// that would make it allocate without bound or open other files: images with a
// backing file, encryption or an external data file are refused. Writing is
// this package's own: version 3, 64 KiB clusters, no compression, the same
// bytes for the same content. The format is QEMU's docs/interop/qcow2.txt.
package qcow2

import (
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
)

const (
	magic        = 0x514649fb
	maxSizeBytes = 16 << 40
)

// incompatible features (header byte 72): what a reader must know.
const (
	featureCorrupt      = 1 << 1
	featureExternalData = 1 << 2
	featuresKnown       = 1<<0 | 1<<3 // dirty refcounts do not matter to a reader; compression type
)

// Detect says whether f begins as a qcow2 image.
func Detect(r io.ReaderAt) bool {
	b := make([]byte, 4)
	_, err := r.ReadAt(b, 0)
	return err == nil && binary.BigEndian.Uint32(b) == magic
}

// Reader reads the disk inside an image.
type Reader struct{ img *qcow2.Qcow2 }

// Open checks the header and opens the image; f stays open as long as the
// Reader is used.
func Open(f *os.File) (*Reader, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return OpenReader(f, fi.Size())
}

// OpenReader is Open for an image of fileBytes in r.
func OpenReader(r io.ReaderAt, fileBytes int64) (rd *Reader, err error) {
	if err := check(r, fileBytes); err != nil {
		return nil, fmt.Errorf("reading qcow2: %w", err)
	}
	defer damaged(&err)
	registerDecompressors()
	img, err := qcow2.Open(r, nil)
	if err != nil {
		return nil, fmt.Errorf("reading qcow2: %w", err)
	}
	if err := img.Readable(); err != nil {
		return nil, fmt.Errorf("reading qcow2: %w", err)
	}
	return &Reader{img}, nil
}

// registerDecompressors teaches the library, which has a global list, the second
// compression that the format knows, and to read the first one in full.
var registerDecompressors = sync.OnceFunc(func() {
	qcow2.SetDecompressor(qcow2.CompressionTypeZlib, func(r io.Reader) (io.ReadCloser, error) { return full{flate.NewReader(r)}, nil })
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		return full{z.IOReadCloser()}, nil
	})
})

// full reads as much as was asked for, and tells of the end only when nothing is
// left: the library takes the first answer of Read for all, and an end that
// comes with the last bytes, as it does in small clusters, for damage.
type full struct{ io.ReadCloser }

func (f full) Read(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = f.ReadCloser.Read(p[n:])
		n += m
	}
	if n > 0 {
		err = nil // comes again
	}
	return n, err
}

// damaged turns a panic of the reading library, which trusts its tables, into
// the error that a damaged image deserves.
func damaged(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("reading qcow2: the image is damaged (%v)", r)
	}
}

func check(r io.ReaderAt, fileBytes int64) error {
	b := make([]byte, 104)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) || n < 72 {
		return errors.New("the file is too short")
	}
	be := binary.BigEndian
	version, clusterBits := be.Uint32(b[4:]), be.Uint32(b[20:])
	size, l1Entries, l1Offset := be.Uint64(b[24:]), be.Uint32(b[36:]), be.Uint64(b[40:])
	if be.Uint32(b) != magic || version != 2 && version != 3 {
		return errors.New("not version 2 or 3")
	}
	if be.Uint64(b[8:]) != 0 {
		return errors.New("the image has a backing file: convert it with qemu-img convert first")
	}
	if be.Uint32(b[32:]) != 0 {
		return errors.New("the image is encrypted: convert it with qemu-img convert first")
	}
	if clusterBits < 9 || clusterBits > 21 {
		return fmt.Errorf("clusters of 2^%d bytes are not possible", clusterBits)
	}
	if size > maxSizeBytes {
		return fmt.Errorf("the disk has %d bytes, more than 16 TiB", size)
	}
	if version == 3 {
		features := be.Uint64(b[72:])
		switch {
		case features&featureCorrupt != 0:
			return errors.New("the image is marked corrupt: repair it with qemu-img check -r all")
		case features&featureExternalData != 0:
			return errors.New("the data is in another file: convert it with qemu-img convert first")
		case features&^uint64(featuresKnown) != 0:
			return fmt.Errorf("unknown features 0x%x: convert it with qemu-img convert -o compat=1.1 first", features&^uint64(featuresKnown))
		}
		if length := be.Uint32(b[100:]); length < 104 || int64(length) > min(fileBytes, 1<<clusterBits) {
			return fmt.Errorf("a header of %d bytes is not possible", length)
		}
	}
	// One L2 table maps clusterSize/8 clusters.
	perL1 := uint64(1) << (2*clusterBits - 3)
	if need := (size + perL1 - 1) / perL1; uint64(l1Entries) < need || uint64(l1Entries) > need+1<<16 {
		return fmt.Errorf("a first-level table of %d entries does not fit a disk of %d bytes", l1Entries, size)
	}
	if end := l1Offset + uint64(l1Entries)*8; l1Offset > uint64(fileBytes) || end > uint64(fileBytes) {
		return errors.New("the image is truncated")
	}
	return nil
}

// SizeBytes is the size of the disk.
func (r *Reader) SizeBytes() int64 { return r.img.Size() }

// ReadAt reads from the disk, io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	defer damaged(&err)
	// The library reads to the end of a cluster, also of the disk's last one.
	left := r.SizeBytes() - off
	if off < 0 || left <= 0 {
		return 0, io.EOF
	}
	end := int64(len(p)) > left
	n, err = r.img.ReadAt(p[:min(int64(len(p)), left)], off)
	if errors.Is(err, io.EOF) && int64(n) == min(int64(len(p)), left) {
		err = nil
	}
	if err == nil && end {
		err = io.EOF
	}
	return n, err
}
