// Package verity writes dm-verity hash trees as veritysetup format does, and makes
// them again to compare: a superblock, then the levels of the tree, the top one
// first. SHA-256, hash type 1 (salt before data), blocks of 4096 bytes.
//
// https://docs.kernel.org/admin-guide/device-mapper/verity.html; the superblock
// is struct verity_sb of cryptsetup's lib/verity/verity.c.
package verity

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// BlockBytes is the size of a data block and of a hash block.
const BlockBytes = 4096

const (
	superblockBytes = 512
	perBlock        = BlockBytes / sha256.Size
)

// Config describes a tree.
type Config struct {
	Salt []byte // up to 256 bytes
	UUID [16]byte
}

// Write writes the tree over the first dataBytes (whole blocks) of data to out
// at offset, and returns the root hash and the length of what was written.
func Write(ctx context.Context, out io.WriterAt, offset int64, data io.ReaderAt, dataBytes int64, c Config) (rootHash []byte, sizeBytes int64, err error) {
	if dataBytes <= 0 || dataBytes%BlockBytes != 0 || len(c.Salt) > 256 {
		return nil, 0, fmt.Errorf("BUG: hash tree over %d bytes with a salt of %d", dataBytes, len(c.Salt))
	}
	var levels [][]byte // leaves first
	below, size := data, dataBytes
	for blocks := dataBytes / BlockBytes; blocks > 1; blocks = (blocks + perBlock - 1) / perBlock {
		level := make([]byte, (blocks+perBlock-1)/perBlock*BlockBytes)
		if err := hashLevel(ctx, level, below, size, c.Salt); err != nil {
			return nil, 0, err
		}
		levels = append(levels, level)
		below, size = bytesAt(level), int64(len(level))
	}
	top := make([]byte, BlockBytes)
	if _, err := below.ReadAt(top, 0); err != nil && err != io.EOF {
		return nil, 0, fmt.Errorf("reading what is to be hashed: %w", err)
	}
	root := hashBlock(c.Salt, top)

	head := make([]byte, BlockBytes)
	superblock(head, dataBytes/BlockBytes, c)
	if _, err := out.WriteAt(head, offset); err != nil {
		return nil, 0, err
	}
	sizeBytes = BlockBytes
	for i := len(levels) - 1; i >= 0; i-- {
		if _, err := out.WriteAt(levels[i], offset+sizeBytes); err != nil {
			return nil, 0, err
		}
		sizeBytes += int64(len(levels[i]))
	}
	return root, sizeBytes, nil
}

func superblock(b []byte, dataBlocks int64, c Config) {
	le := binary.LittleEndian
	copy(b[0:], "verity\x00\x00")
	le.PutUint32(b[8:], 1)  // version
	le.PutUint32(b[12:], 1) // hash type
	copy(b[16:], c.UUID[:])
	copy(b[32:64], "sha256")
	le.PutUint32(b[64:], BlockBytes) // data
	le.PutUint32(b[68:], BlockBytes) // hash
	le.PutUint64(b[72:], uint64(dataBlocks))
	le.PutUint16(b[80:], uint16(len(c.Salt)))
	copy(b[88:superblockBytes-168], c.Salt)
}

// hashLevel fills level with the hashes of the blocks below, on all processors.
func hashLevel(ctx context.Context, level []byte, below io.ReaderAt, size int64, salt []byte) error {
	const span = perBlock * BlockBytes // what one hash block covers
	group, ctx := errgroup.WithContext(ctx)
	workers := int64(runtime.GOMAXPROCS(0))
	for w := range workers {
		group.Go(func() error {
			buf := make([]byte, span)
			for i := w; i*span < size; i += workers {
				n := min(span, size-i*span)
				if _, err := below.ReadAt(buf[:n], i*span); err != nil && err != io.EOF {
					return fmt.Errorf("reading what is to be hashed: %w", err)
				}
				for b := int64(0); b < n; b += BlockBytes {
					copy(level[i*BlockBytes+b/BlockBytes*sha256.Size:], hashBlock(salt, buf[b:b+BlockBytes]))
				}
				if err := ctx.Err(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func hashBlock(salt, block []byte) []byte {
	h := sha256.New()
	h.Write(salt)
	h.Write(block)
	return h.Sum(nil)
}

type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, b[min(off, int64(len(b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
