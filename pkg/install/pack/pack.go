// Package pack makes of a disk image what a machine installs itself from: the file of
// frames and its Index (see package install). It is the server's half, which the agent
// does without.
package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/packed"
)

var zeros [64 << 10]byte

// Image writes the frames of a disk to out, on all processors, and returns their index. The
// same disk becomes the same bytes. progress is told how much of the disk is done.
func Image(ctx context.Context, out io.Writer, disk *os.File, progress func(int64)) (install.Index, error) {
	fi, err := disk.Stat()
	if err != nil {
		return install.Index{}, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(runtime.NumCPU()), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false))
	if err != nil {
		return install.Index{}, err
	}
	defer enc.Close()
	// What comes out of one chunk: its digest, then its frame; nothing of zeros.
	pack := func(plain []byte) ([]byte, error) {
		if isZero(plain) {
			return []byte{}, nil // not nil, so that InOrder asks once
		}
		sum := sha256.Sum256(plain)
		return enc.EncodeAll(plain, sum[:]), nil
	}
	index := install.Index{DiskBytes: fi.Size(), ChunkBytes: packed.ChunkBytes}
	err = packed.InOrder(ctx, disk, fi.Size(), pack, func(c packed.Chunk, b []byte) error {
		progress(c.SizeBytes)
		if len(b) == 0 {
			index.Chunks = append(index.Chunks, install.Chunk{})
			return nil
		}
		sum, frame := b[:sha256.Size], b[sha256.Size:]
		index.Chunks = append(index.Chunks, install.Chunk{Packed: int64(len(frame)), SHA256: hex.EncodeToString(sum)})
		_, err := out.Write(frame)
		return err
	})
	return index, err
}

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
