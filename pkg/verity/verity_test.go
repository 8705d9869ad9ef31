package verity

import (
	"encoding/hex"
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
