package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestWrite: veritysetup accepts trees of no, one, two and three levels, with
// full and with half-filled blocks, and refuses other data.
func TestWrite(t *testing.T) {
	for _, blocks := range []int64{1, 2, 127, 128, 129, 300, 128 * 128, 128*128 + 1} {
		dir := t.TempDir()
		content := make([]byte, blocks*BlockBytes)
		r := rand.NewChaCha8([32]byte{byte(blocks)})
		if _, err := r.Read(content); err != nil {
			t.Fatal(err)
		}
		data, tree := filepath.Join(dir, "data"), filepath.Join(dir, "tree")
		if err := os.WriteFile(data, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(tree)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		hash, size, err := Write(t.Context(), out, 0, bytesAt(content), int64(len(content)), Config{Salt: []byte("salt"), UUID: [16]byte{1}})
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := out.Stat(); err != nil || fi.Size() != size {
			t.Errorf("%d blocks: %d bytes were written (%v), not %d", blocks, fi.Size(), err, size)
		}
		root := hex.EncodeToString(hash)
		if out, err := exec.Command("veritysetup", "verify", data, tree, root).CombinedOutput(); err != nil {
			t.Errorf("%d blocks: veritysetup: %v\n%s", blocks, err, out)
		}
		content[len(content)/2] ^= 1
		if err := os.WriteFile(data, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("veritysetup", "verify", data, tree, root).CombinedOutput(); err == nil {
			t.Errorf("%d blocks: veritysetup accepts other data: %s", blocks, out)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, size := range []int64{0, 1, BlockBytes + 1} {
		if _, _, err := Write(t.Context(), nil, 0, bytesAt(make([]byte, size)), size, Config{}); err == nil {
			t.Errorf("%d bytes", size)
		}
	}
}

// TestCheck: the root hash is that of the data, and a byte that differs is noticed,
// in the data as in every part of the tree.
func TestCheck(t *testing.T) {
	for _, blocks := range []int64{1, 2, 129, 128*128 + 1} {
		content := make([]byte, blocks*BlockBytes)
		r := rand.NewChaCha8([32]byte{byte(blocks)})
		if _, err := r.Read(content); err != nil {
			t.Fatal(err)
		}
		file, err := os.Create(filepath.Join(t.TempDir(), "tree"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		want, size, err := Write(t.Context(), file, 0, bytesAt(content), int64(len(content)), Config{Salt: []byte("salt"), UUID: [16]byte{1}})
		if err != nil {
			t.Fatal(err)
		}
		tree, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Check(t.Context(), bytesAt(tree), bytesAt(content), int64(len(content))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d blocks: %x, want %x, %v", blocks, got, want, err)
		}
		for _, at := range []int64{0, 33, 72, 80, 89, 400, size/2 + 7, size - 1} {
			if blocks == 1 && at > superblockBytes {
				continue // all of the tree is its superblock
			}
			tree[at] ^= 0x40
			got, err := Check(t.Context(), bytesAt(tree), bytesAt(content), int64(len(content)))
			if salt := at == 80 || at == 89; !errors.Is(err, ErrTree) && !salt || bytes.Equal(got, want) && salt {
				t.Errorf("%d blocks, byte %d of the tree: %x, %v", blocks, at, got, err)
			}
			tree[at] ^= 0x40
		}
		content[len(content)-5] ^= 1
		if got, err := Check(t.Context(), bytesAt(tree), bytesAt(content), int64(len(content))); bytes.Equal(got, want) || blocks > 1 && !errors.Is(err, ErrTree) {
			t.Errorf("%d blocks, other data: %x, %v", blocks, got, err)
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, 4096)} {
		if got, err := Check(t.Context(), bytesAt(bad), bytesAt(make([]byte, BlockBytes)), BlockBytes); err == nil || got != nil {
			t.Errorf("no superblock: %x, %v", got, err)
		}
	}
}
