// Package ddi writes and reads discoverable disk images: a GPT with a root partition and
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
	"io"
	"os"

	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/verity"
)

const (
	sector = 512
	align  = 1 << 20
)

// types are the partition types of the root file system and its hash tree.
var types = map[string]struct{ root, verity string }{
	"amd64": {"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5"},
	"arm64": {"B921B045-1DF0-41C3-AF44-4C6F280D3FAE", "DF3300CE-D69F-4C92-978C-9BFB0F38D820"},
}

// FilesystemOffset is where in File the file system starts.
const FilesystemOffset = align

// Config describes an image.
type Config struct {
	File string // holds the file system, from FilesystemOffset to its end; becomes the image
	Arch string // amd64 or arm64
	Seed string // GUIDs that are not part of the hash, and the salt, derive from it
}

// Wrap makes an image of the file system in c.File and returns the root hash in
// lower-case hex.
func Wrap(ctx context.Context, c Config) (rootHash string, err error) {
	t, ok := types[c.Arch]
	if !ok {
		return "", fmt.Errorf("making image %s: no partition type for architecture %q", c.File, c.Arch)
	}
	out, err := os.OpenFile(c.File, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer out.Close()
	fi, err := out.Stat()
	if err != nil {
		return "", err
	}
	dataBytes := roundUp(fi.Size()-FilesystemOffset, verity.BlockBytes) // whole blocks only
	if dataBytes <= 0 {
		return "", fmt.Errorf("BUG: %s holds no file system", c.File)
	}
	hashStart := roundUp(FilesystemOffset+dataBytes, align)
	if err := out.Truncate(hashStart); err != nil {
		return "", err
	}
	data := io.NewSectionReader(out, FilesystemOffset, dataBytes)
	hash, hashBytes, err := verity.Write(ctx, out, hashStart, data, dataBytes, verity.Config{
		Salt: []byte(parttable.DeriveGUID("salt", c.Seed))[:32], UUID: [16]byte(mustGUIDBytes(parttable.DeriveGUID("verity", c.Seed)))})
	if err != nil {
		return "", fmt.Errorf("making the hash tree of %s: %w", c.File, err)
	}
	total := roundUp(hashStart+hashBytes, align) + align // room for the backup table
	if err := out.Truncate(total); err != nil {
		return "", err
	}
	table := parttable.New(parttable.DeriveGUID("ddi", c.Seed))
	for _, p := range []parttable.Partition{
		{Number: 1, Name: "root", TypeGUID: t.root, GUID: guid(hash[:16]), FirstLBA: FilesystemOffset / sector, LastLBA: uint64((FilesystemOffset+dataBytes)/sector - 1)},
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
