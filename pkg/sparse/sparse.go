// Package sparse copies and hashes large files without touching their holes.
package sparse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// BlockBytes is the unit in which zeros become holes.
const BlockBytes = 64 << 10

const bufferBytes = 1 << 20

// Extent is a part of a file that is not a hole.
type Extent struct{ Offset, Length int64 }

// Extents lists where f has data, rounded out to blocks; file systems that
// cannot tell report one extent.
func Extents(f *os.File) ([]Extent, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := fi.Size()
	var out []Extent
	for pos := int64(0); pos < size; {
		start, err := unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return []Extent{{0, size}}, nil
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("finding holes of %s: %w", f.Name(), err)
		}
		start, end = start/BlockBytes*BlockBytes, min((end+BlockBytes-1)/BlockBytes*BlockBytes, size)
		if n := len(out); n > 0 && out[n-1].Offset+out[n-1].Length >= start {
			out[n-1].Length = end - out[n-1].Offset
		} else {
			out = append(out, Extent{start, end - start})
		}
		pos = end
	}
	return out, nil
}

var zeros [bufferBytes]byte

// Digest names the content of a sparse image: SHA-256 over offset (8 bytes,
// little-endian) and bytes of every block that is not all zero.
type Digest struct{ h hash.Hash }

// NewDigest returns the digest of an image of zeros.
func NewDigest() *Digest { return &Digest{sha256.New()} }

func (d *Digest) block(offset int64, b []byte) {
	var o [8]byte
	binary.LittleEndian.PutUint64(o[:], uint64(offset))
	d.h.Write(o[:])
	d.h.Write(b)
}

// Hex ends the digest.
func (d *Digest) Hex() string { return hex.EncodeToString(d.h.Sum(nil)) }

// Copy copies an image of sizeBytes, leaving blocks of zeros as holes, and
// returns its Digest. dst becomes longer if it has to, never shorter. extents (nil: everything) limits what is read. progress,
// if not nil, gets the bytes done.
func Copy(ctx context.Context, dst *os.File, src io.ReaderAt, sizeBytes int64, extents []Extent, progress func(int64)) (string, error) {
	if fi, err := dst.Stat(); err != nil {
		return "", err
	} else if fi.Size() < sizeBytes {
		if err := dst.Truncate(sizeBytes); err != nil {
			return "", err
		}
	}
	if extents == nil {
		extents = []Extent{{0, sizeBytes}}
	}
	d := NewDigest()
	err := pipeline(ctx, func(put func(int64, []byte) bool, free <-chan []byte) error {
		for _, e := range extents {
			for off := e.Offset; off < e.Offset+e.Length; {
				buf := <-free
				n := min(int64(len(buf)), e.Offset+e.Length-off)
				if m, err := src.ReadAt(buf[:n], off); err != nil && !(errors.Is(err, io.EOF) && int64(m) == n) {
					return fmt.Errorf("reading at byte %d: %w", off, err)
				}
				if !put(off, buf[:n]) {
					return ctx.Err()
				}
				off += n
			}
		}
		return nil
	}, d, dst, progress)
	return d.Hex(), err
}

// CopyFile copies the first sizeBytes of src to dst, an empty file; holes stay holes.
// progress, which may be nil, is told of the bytes that were copied.
func CopyFile(ctx context.Context, dst, src *os.File, sizeBytes int64, progress func(int64)) error {
	all, err := Extents(src)
	if err != nil {
		return err
	}
	if err := dst.Truncate(sizeBytes); err != nil {
		return err
	}
	for _, e := range all {
		for off, end := e.Offset, min(e.Offset+e.Length, sizeBytes); off < end; {
			n, err := copyRange(dst, src, off, int(min(end-off, copyBytes)))
			if err != nil {
				return fmt.Errorf("copying %s at byte %d: %w", src.Name(), off, err)
			}
			if off += int64(n); progress != nil {
				progress(int64(n))
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyBytes are copied between two looks at the context.
const copyBytes = 8 << 20

// copyRange copies up to n bytes at an offset, by the kernel where it can.
func copyRange(dst, src *os.File, offset int64, n int) (int, error) {
	from, to := offset, offset
	copied, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, n, 0)
	if err == nil && copied > 0 || errors.Is(err, unix.ENOSPC) {
		return copied, err
	}
	m, err := io.Copy(io.NewOffsetWriter(dst, offset), io.NewSectionReader(src, offset, int64(n)))
	if err == nil && m == 0 {
		err = io.ErrUnexpectedEOF
	}
	return int(m), err
}

// CopyStream is Copy for a stream of unknown length.
func CopyStream(ctx context.Context, dst *os.File, r io.Reader, progress func(int64)) (sizeBytes int64, digest string, err error) {
	d := NewDigest()
	err = pipeline(ctx, func(put func(int64, []byte) bool, free <-chan []byte) error {
		for {
			buf := <-free
			n, err := io.ReadFull(r, buf)
			if n > 0 {
				if !put(sizeBytes, buf[:n]) {
					return ctx.Err()
				}
				sizeBytes += int64(n)
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}, d, dst, progress)
	if err == nil {
		err = dst.Truncate(sizeBytes)
	}
	return sizeBytes, d.Hex(), err
}

// pipeline overlaps reading (produce) with hashing and writing.
func pipeline(ctx context.Context, produce func(put func(int64, []byte) bool, free <-chan []byte) error, d *Digest, dst *os.File, progress func(int64)) error {
	type piece struct {
		offset int64
		b      []byte
	}
	const depth = 4
	free, full, stop := make(chan []byte, depth), make(chan piece, depth), make(chan struct{})
	for range depth {
		free <- make([]byte, bufferBytes)
	}
	readErr := make(chan error, 1)
	go func() {
		defer close(full)
		readErr <- produce(func(off int64, b []byte) bool {
			select {
			case full <- piece{off, b}:
				return ctx.Err() == nil
			case <-stop:
				return false
			}
		}, free)
	}()
	var writeErr error
	for p := range full {
		if writeErr == nil {
			if writeErr = writePiece(dst, d, p.offset, p.b); writeErr != nil {
				close(stop)
			}
			if progress != nil {
				progress(int64(len(p.b)))
			}
		}
		free <- p.b[:bufferBytes]
	}
	return errors.Join(writeErr, <-readErr, ctx.Err())
}

func writePiece(dst *os.File, d *Digest, offset int64, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), BlockBytes)
		if block := b[:n]; !bytes.Equal(block, zeros[:n]) {
			d.block(offset, block)
			if _, err := dst.WriteAt(block, offset); err != nil {
				return err
			}
		}
		offset, b = offset+int64(n), b[n:]
	}
	return nil
}

// SHA256 is the SHA-256 of the whole content, as sha256sum prints it, without
// reading the holes.
func SHA256(ctx context.Context, f *os.File, progress func(int64)) (string, int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	extents, err := Extents(f)
	if err != nil {
		return "", 0, err
	}
	h, pos, buf := sha256.New(), int64(0), make([]byte, bufferBytes)
	skip := func(to int64) error {
		for pos < to {
			n := min(to-pos, bufferBytes)
			h.Write(zeros[:n])
			pos += n
			if progress != nil {
				progress(n)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	}
	for _, e := range extents {
		if err := skip(e.Offset); err != nil {
			return "", 0, err
		}
		for pos < e.Offset+e.Length {
			n := min(e.Offset+e.Length-pos, bufferBytes)
			if _, err := io.ReadFull(io.NewSectionReader(f, pos, n), buf[:n]); err != nil {
				return "", 0, fmt.Errorf("reading %s: %w", f.Name(), err)
			}
			h.Write(buf[:n])
			pos += n
			if progress != nil {
				progress(n)
			}
			if ctx.Err() != nil {
				return "", 0, ctx.Err()
			}
		}
	}
	if err := skip(fi.Size()); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), fi.Size(), nil
}

// DigestFile is the Digest of a file, which Copy would return.
func DigestFile(ctx context.Context, f *os.File) (string, error) {
	extents, err := Extents(f)
	if err != nil {
		return "", err
	}
	d, buf := NewDigest(), make([]byte, bufferBytes)
	for _, e := range extents {
		for off := e.Offset; off < e.Offset+e.Length; {
			n := min(e.Offset+e.Length-off, bufferBytes)
			if _, err := io.ReadFull(io.NewSectionReader(f, off, n), buf[:n]); err != nil {
				return "", fmt.Errorf("reading %s: %w", f.Name(), err)
			}
			for b, pos := buf[:n], off; len(b) > 0; {
				m := min(len(b), BlockBytes)
				if !bytes.Equal(b[:m], zeros[:m]) {
					d.block(pos, b[:m])
				}
				b, pos = b[m:], pos+int64(m)
			}
			off += n
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
		}
	}
	return d.Hex(), nil
}
