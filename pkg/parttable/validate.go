package parttable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"time"
)

// header holds the fields of the GPT header (UEFI 2.10, table 5.5) that decide
// what else is read.
type header struct {
	size, crc                uint32
	currentLBA, otherLBA     uint64
	firstUsable, lastUsable  uint64
	arrayLBA                 uint64
	entries, entrySize, aCRC uint32
}

const (
	maxEntries = 1024
	entrySize  = 128
)

// validate checks the primary table, then the backup, and returns the number
// of entries of the first good one.
func validate(r io.ReaderAt, sizeBytes int64) (entries int, fromBackup bool, err error) {
	if sizeBytes < 68*SectorBytes {
		return 0, false, fmt.Errorf("a disk of %d bytes: %w", sizeBytes, ErrNone)
	}
	last := uint64(sizeBytes/SectorBytes) - 1
	n, primary := validateAt(r, 1, last)
	if primary == nil {
		return n, false, nil
	}
	if errors.Is(primary, ErrNone) && !hasProtective(r) { // what is at the end is of an older table
		return 0, false, ErrNone
	}
	n, backup := validateAt(r, last, last)
	if backup == nil {
		return n, true, nil
	}
	if errors.Is(primary, ErrNone) && errors.Is(backup, ErrNone) {
		return 0, false, ErrNone
	}
	return 0, false, fmt.Errorf("both copies of the partition table are damaged: %w", primary)
}

func validateAt(r io.ReaderAt, lba, last uint64) (int, error) {
	b := make([]byte, SectorBytes)
	if _, err := r.ReadAt(b, int64(lba)*SectorBytes); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("reading sector %d: %w", lba, err)
	}
	if string(b[:8]) != "EFI PART" {
		return 0, ErrNone
	}
	le := binary.LittleEndian
	h := header{size: le.Uint32(b[12:]), crc: le.Uint32(b[16:]), currentLBA: le.Uint64(b[24:]), otherLBA: le.Uint64(b[32:]),
		firstUsable: le.Uint64(b[40:]), lastUsable: le.Uint64(b[48:]), arrayLBA: le.Uint64(b[72:]),
		entries: le.Uint32(b[80:]), entrySize: le.Uint32(b[84:]), aCRC: le.Uint32(b[88:])}
	if h.size != 92 {
		return 0, fmt.Errorf("the header at sector %d has %d bytes instead of 92", lba, h.size)
	}
	clear(b[16:20])
	if crc32.ChecksumIEEE(b[:h.size]) != h.crc {
		return 0, fmt.Errorf("the header at sector %d does not match its checksum", lba)
	}
	if h.currentLBA != lba || h.otherLBA > last || h.firstUsable < 2 || h.lastUsable > last || h.firstUsable > h.lastUsable {
		return 0, fmt.Errorf("the header at sector %d names sectors that the disk of %d sectors does not have: the image is truncated or damaged", lba, last+1)
	}
	if h.entrySize != entrySize || h.entries == 0 || h.entries > maxEntries {
		return 0, fmt.Errorf("the table at sector %d has %d entries of %d bytes, which is not supported", lba, h.entries, h.entrySize)
	}
	arrayBytes := int64(h.entries) * entrySize
	if h.arrayLBA < 2 && lba == 1 || h.arrayLBA > last || int64(h.arrayLBA)*SectorBytes+arrayBytes > int64(last+1)*SectorBytes {
		return 0, fmt.Errorf("the table at sector %d lies outside the disk", lba)
	}
	array := make([]byte, arrayBytes)
	if _, err := r.ReadAt(array, int64(h.arrayLBA)*SectorBytes); err != nil {
		return 0, fmt.Errorf("reading the partition entries: %w", err)
	}
	if crc32.ChecksumIEEE(array) != h.aCRC {
		return 0, fmt.Errorf("the partition entries of the table at sector %d do not match their checksum", lba)
	}
	return int(h.entries), nil
}

// fixProtective makes the protective MBR entry cover the whole disk, as far as
// its 32 bits reach, and leaves a hybrid MBR's other entries alone.
func fixProtective(f ReaderWriterAt, sizeBytes int64) error {
	b := make([]byte, SectorBytes)
	if _, err := f.ReadAt(b, 0); err != nil {
		return fmt.Errorf("reading sector 0: %w", err)
	}
	hybrid := false
	for e := 446; e < 510; e += 16 {
		if b[e+4] != 0 && b[e+4] != 0xEE {
			hybrid = true
		}
	}
	for e := 446; e < 510; e += 16 {
		if b[e+4] == 0xEE && !hybrid {
			binary.LittleEndian.PutUint32(b[e+12:], uint32(min(sizeBytes/SectorBytes-1, 0xFFFFFFFF)))
		}
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("writing sector 0: %w", err)
	}
	return nil
}

// file shows go-diskfs a reader and writer of known size. It has no Sync, so
// that writing a table does not flush a whole image five times.
type file struct {
	r    io.ReaderAt
	w    io.WriterAt
	size int64
	pos  int64

	hidePrimary bool // sector 1 reads as zeros
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= f.size {
		return 0, io.EOF
	}
	n, err := f.r.ReadAt(p, off)
	if f.hidePrimary && off < 2*SectorBytes && off+int64(n) > SectorBytes {
		clear(p[max(0, SectorBytes-off):min(int64(n), 2*SectorBytes-off)])
	}
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if f.w == nil {
		return 0, fs.ErrPermission
	}
	return f.w.WriteAt(p, off)
}

func (f *file) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *file) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.size
	}
	if offset < 0 {
		return 0, fs.ErrInvalid
	}
	f.pos = offset
	return offset, nil
}

func (f *file) Close() error               { return nil }
func (f *file) Stat() (fs.FileInfo, error) { return fileInfo{f.size}, nil }

type fileInfo struct{ size int64 }

func (fileInfo) Name() string       { return "disk" }
func (i fileInfo) Size() int64      { return i.size }
func (fileInfo) Mode() fs.FileMode  { return 0o600 }
func (fileInfo) ModTime() time.Time { return time.Time{} }
func (fileInfo) IsDir() bool        { return false }
func (fileInfo) Sys() any           { return nil }
