package verity

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrTree says that a hash tree is not that of the data below it.
var ErrTree = errors.New("the hash tree is not that of the data")

// Check makes the tree over the first dataBytes of data again, with the salt and the
// UUID that the superblock in stored names, and compares it with what is stored. The root
// hash is that of the data, whatever is stored; it is also returned with ErrTree,
// which means: the data or the tree are damaged. Another error: there is no tree
// to compare with.
func Check(ctx context.Context, stored, data io.ReaderAt, dataBytes int64) (rootHash []byte, err error) {
	c, err := readSuperblock(stored)
	if err != nil {
		return nil, err
	}
	if dataBytes <= 0 || dataBytes%BlockBytes != 0 {
		return nil, fmt.Errorf("%d bytes of data are not whole blocks of %d", dataBytes, BlockBytes)
	}
	d := &difference{stored: stored, at: -1}
	rootHash, _, err = Write(ctx, d, 0, data, dataBytes, c)
	if err == nil && d.at >= 0 {
		err = fmt.Errorf("%w, from its byte %d on", ErrTree, d.at)
	}
	return rootHash, err
}

// readSuperblock reads what Write cannot know. The rest is compared when the tree is.
func readSuperblock(r io.ReaderAt) (Config, error) {
	b := make([]byte, superblockBytes)
	if _, err := r.ReadAt(b, 0); err != nil {
		return Config{}, fmt.Errorf("reading the superblock of the hash tree: %w", err)
	}
	n := int(binary.LittleEndian.Uint16(b[80:]))
	if string(b[:8]) != "verity\x00\x00" || n > 256 {
		return Config{}, fmt.Errorf("%w: it has no superblock", ErrTree)
	}
	return Config{Salt: bytes.Clone(b[88 : 88+n]), UUID: [16]byte(b[16:32])}, nil
}

// difference takes what should be stored, and finds where something else is.
type difference struct {
	stored io.ReaderAt
	at     int64 // the first byte that differs; -1: none
}

func (d *difference) WriteAt(p []byte, off int64) (int, error) {
	have := make([]byte, len(p))
	n, err := d.stored.ReadAt(have, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("reading the hash tree: %w", err)
	}
	for i := range p {
		if (i >= n || have[i] != p[i]) && (d.at < 0 || off+int64(i) < d.at) {
			d.at = off + int64(i)
			break
		}
	}
	return len(p), nil
}
