package ext4

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// File is the content of a regular file in a filesystem, read from its blocks: for
// what is too large to go through debugfs, or is not read from its beginning.
type File struct {
	SizeBytes int64

	image   *os.File
	offset  int64 // of the filesystem in image
	block   int64 // bytes
	extents []extent
}

// Open opens a file; a missing one is fs.ErrNotExist.
func (v Volume) Open(ctx context.Context, p string) (*File, error) {
	found, err := v.inodes(ctx, []string{p})
	if err != nil {
		return nil, err
	}
	n, ok := found[relative(p)]
	if !ok {
		return nil, fmt.Errorf("reading %s from ext4: %w", p, fs.ErrNotExist)
	}
	if !n.Mode.IsRegular() {
		return nil, fmt.Errorf("reading %s from ext4: it is a %s", p, kind(n.Mode))
	}
	return v.open(ctx, p, n.SizeBytes)
}

func (v Volume) open(ctx context.Context, p string, sizeBytes int64) (*File, error) {
	sb, err := v.superblock()
	if err != nil {
		return nil, err
	}
	all, err := v.extents(ctx, []string{p})
	if err != nil {
		return nil, err
	}
	image, err := os.Open(v.File)
	if err != nil {
		return nil, err
	}
	return &File{SizeBytes: sizeBytes, image: image, offset: v.OffsetBytes, block: sb.BlockSize, extents: all[0]}, nil
}

// ReadAt reads from the file; what has no blocks is zeros.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	for n < len(p) && off < f.SizeBytes {
		part := p[n:min(int64(len(p)), int64(n)+f.SizeBytes-off)]
		logical := off / f.block
		i, _ := slices.BinarySearchFunc(f.extents, logical, func(e extent, at int64) int { return cmp.Compare(e.logical+e.length-1, at) })
		switch {
		case i == len(f.extents):
			clear(part)
		case f.extents[i].logical > logical: // a hole before the next extent
			part = part[:min(int64(len(part)), f.extents[i].logical*f.block-off)]
			clear(part)
		default:
			e := f.extents[i]
			part = part[:min(int64(len(part)), (e.logical+e.length)*f.block-off)]
			if e.unwritten {
				clear(part)
				break
			}
			if m, err := f.image.ReadAt(part, f.offset+(e.physical-e.logical)*f.block+off); m < len(part) {
				return n + m, fmt.Errorf("reading ext4: block %d of the filesystem: %w", e.physical, err)
			}
		}
		n, off = n+len(part), off+int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close ends reading.
func (f *File) Close() error { return f.image.Close() }
