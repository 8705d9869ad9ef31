package install

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// maxChunkBytes bounds what a machine unpacks at once.
const maxChunkBytes = 64 << 20

// Encode is the Index as it is served, and its SHA-256 for Plan.
func (x Index) Encode() (data []byte, digest string, err error) {
	if data, err = json.Marshal(x); err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(data)
	return data, hex.EncodeToString(sum[:]), nil
}

// DecodeIndex reads what was served, if it has the digest of the plan.
func DecodeIndex(data []byte, digest string) (Index, error) {
	var x Index
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest {
		return x, fmt.Errorf("the index of the image has the SHA-256 %x, and the plan says %s", sum, digest)
	}
	if err := json.Unmarshal(data, &x); err != nil {
		return x, fmt.Errorf("reading the index of the image: %w", err)
	}
	return x, x.check()
}

// PackedBytes is the size of the file of frames.
func (x Index) PackedBytes() (n int64) {
	for _, c := range x.Chunks {
		n += c.Packed
	}
	return n
}

// size is that of chunk i of the disk.
func (x Index) size(i int) int64 {
	return min(x.ChunkBytes, x.DiskBytes-int64(i)*x.ChunkBytes)
}

// check finds an index that cannot be that of a disk.
func (x Index) check() error {
	if x.DiskBytes <= 0 || x.DiskBytes%sectorBytes != 0 || x.ChunkBytes < pageBytes || x.ChunkBytes%pageBytes != 0 || x.ChunkBytes > maxChunkBytes {
		return fmt.Errorf("an index of %d bytes of disk in chunks of %d is not one that kimage writes", x.DiskBytes, x.ChunkBytes)
	}
	if want := (x.DiskBytes + x.ChunkBytes - 1) / x.ChunkBytes; int64(len(x.Chunks)) != want {
		return fmt.Errorf("the index has %d chunks, and a disk of %d bytes has %d", len(x.Chunks), x.DiskBytes, want)
	}
	for i, c := range x.Chunks {
		if c.Packed == 0 && c.SHA256 == "" {
			continue
		}
		if sum, err := hex.DecodeString(c.SHA256); err != nil || len(sum) != sha256.Size || c.Packed <= 0 || c.Packed > 2*maxChunkBytes {
			return fmt.Errorf("chunk %d of the index has %d bytes and the SHA-256 %q", i, c.Packed, c.SHA256)
		}
	}
	return nil
}
