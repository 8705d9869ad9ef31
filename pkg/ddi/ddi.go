// Package ddi writes discoverable disk images: a GPT with a root partition and
// its dm-verity hash tree, as systemd-repart --make-ddi=sysext makes them and
// systemd-sysext, systemd-dissect and veritysetup read them.
//
// https://uapi-group.org/specifications/specs/discoverable_partitions_specification/
// gives the partition types, and the rule that the two partition GUIDs are the
// two halves of the root hash. Images are not signed.
package ddi

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/containerd/go-dmverity/pkg/verity"

	"github.com/kimage-project/kimage/pkg/gpt"
)

const (
	sector    = 512
	blockSize = 4096
	align     = 1 << 20
)

// types are the partition types of the root file system and its hash tree.
var types = map[string]struct{ root, verity string }{
	"amd64": {"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5"},
	"arm64": {"B921B045-1DF0-41C3-AF44-4C6F280D3FAE", "DF3300CE-D69F-4C92-978C-9BFB0F38D820"},
}

// Config describes an image.
type Config struct {
	File       string // written; must not exist
	Filesystem string // read-only file system that becomes the root partition
	Arch       string // amd64 or arm64
	Seed       string // GUIDs that are not part of the hash, and the salt, derive from it
}

// Write makes the image and returns the root hash in lower-case hex.
func Write(ctx context.Context, c Config) (rootHash string, err error) {
	t, ok := types[c.Arch]
	if !ok {
		return "", fmt.Errorf("making image %s: no partition type for architecture %q", c.File, c.Arch)
	}
	out, err := os.OpenFile(c.File, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer out.Close()
	dataBytes, err := appendAt(out, c.Filesystem, align)
	if err != nil {
		return "", err
	}
	hashFile := c.File + ".verity"
	defer os.Remove(hashFile)
	hash, err := hashTree(c, dataBytes, hashFile)
	if err != nil {
		return "", err
	}
	hashStart := roundUp(align+dataBytes, align)
	hashBytes, err := appendAt(out, hashFile, hashStart)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	total := roundUp(hashStart+hashBytes, align) + align // room for the backup table
	if err := out.Truncate(total); err != nil {
		return "", err
	}
	table := gpt.New(gpt.DeriveGUID("ddi", c.Seed))
	for _, p := range []gpt.Partition{
		{Number: 1, Name: "root", TypeGUID: t.root, GUID: guid(hash[:16]), FirstLBA: align / sector, LastLBA: uint64((align+dataBytes)/sector - 1)},
		{Number: 2, Name: "root-verity", TypeGUID: t.verity, GUID: guid(hash[16:]), FirstLBA: uint64(hashStart / sector), LastLBA: uint64((hashStart+hashBytes)/sector - 1)},
	} {
		// Read-only (bit 60): nothing may write below a verified tree.
		p.Attributes = 1 << 60
		if _, err := table.Add(p); err != nil {
			return "", err
		}
	}
	if err := table.Write(out, total); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash), out.Close()
}

// appendAt copies file to out at offset and returns its length, padded to blockSize.
func appendAt(out *os.File, file string, offset int64) (int64, error) {
	in, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if _, err := out.Seek(offset, 0); err != nil {
		return 0, err
	}
	n, err := out.ReadFrom(in)
	if err != nil {
		return 0, fmt.Errorf("copying %s: %w", file, err)
	}
	padded := roundUp(n, blockSize)
	if padded > n {
		if _, err := out.Write(make([]byte, padded-n)); err != nil {
			return 0, err
		}
	}
	return padded, nil
}

func hashTree(c Config, dataBytes int64, hashFile string) ([]byte, error) {
	if err := os.Truncate(c.Filesystem, dataBytes); err != nil { // whole blocks only
		return nil, err
	}
	f, err := os.OpenFile(hashFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	f.Close()
	salt := gpt.DeriveGUID("salt", c.Seed)
	p := verity.DefaultParams()
	p.HashName, p.HashType, p.DataBlockSize, p.HashBlockSize = "sha256", 1, blockSize, blockSize
	p.DataBlocks = uint64(dataBytes / blockSize)
	p.Salt = []byte(salt)[:32]
	p.SaltSize = 32
	p.HashAreaOffset = blockSize // behind the superblock
	copy(p.UUID[:], mustGUIDBytes(gpt.DeriveGUID("verity", c.Seed)))
	hash, err := verity.Create(&p, c.Filesystem, hashFile)
	if err != nil {
		return nil, fmt.Errorf("making the hash tree of %s: %w", c.Filesystem, err)
	}
	if len(hash) != 32 {
		return nil, fmt.Errorf("BUG: root hash of %d bytes", len(hash))
	}
	return hash, nil
}

// guid writes 16 bytes of a root hash as the GUID that stands for them.
func guid(b []byte) string {
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func mustGUIDBytes(s string) []byte {
	b := make([]byte, 0, 16)
	hexOnly := make([]byte, 0, 32)
	for i := range len(s) {
		if s[i] != '-' {
			hexOnly = append(hexOnly, s[i])
		}
	}
	b, err := hex.AppendDecode(b, hexOnly)
	if err != nil || len(b) != 16 {
		panic("BUG: derived GUID " + s)
	}
	return b
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
