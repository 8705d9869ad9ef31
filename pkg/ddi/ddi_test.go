package ddi

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/squashfs"
	"github.com/kimage-project/kimage/pkg/tree"
	"github.com/kimage-project/kimage/pkg/verity"
)

func make1(t *testing.T) (file, rootHash string) {
	t.Helper()
	dir := t.TempDir()
	tr := tree.New()
	if err := tr.Bytes("usr/lib/extension-release.d/extension-release.test", 0o644, []byte("ID=_any\n")); err != nil {
		t.Fatal(err)
	}
	if err := tr.Bytes("usr/bin/x", 0o755, make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "test.raw")
	if err := squashfs.Write(t.Context(), tr, squashfs.Config{File: file, OffsetBytes: FilesystemOffset, UnixTime: 1700000000}); err != nil {
		t.Fatal(err)
	}
	rootHash, err := Wrap(t.Context(), Config{File: file, Arch: "amd64", Seed: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return file, rootHash
}

// partition copies one partition into a file of its own, as veritysetup
// without loop devices needs.
func partition(t *testing.T, file, name string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := parttable.Read(f, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	p, ok := table.FindName(name)
	if !ok {
		t.Fatalf("no partition %s", name)
	}
	out := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(out, data[p.OffsetBytes():p.OffsetBytes()+p.SizeBytes()], 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestForeignJudges(t *testing.T) {
	file, hash := make1(t)
	root, verity := partition(t, file, "root"), partition(t, file, "root-verity")
	if out, err := exec.Command("veritysetup", "verify", root, verity, hash).CombinedOutput(); err != nil {
		t.Errorf("veritysetup verify: %v\n%s", err, out)
	}
	if out, err := exec.Command("unsquashfs", "-l", root).CombinedOutput(); err != nil || !strings.Contains(string(out), "usr/bin/x") {
		t.Errorf("unsquashfs: %v\n%s", err, out)
	}
	if out, err := exec.Command("sgdisk", "-v", file).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
	// One flipped byte of the content.
	data, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	data[200] ^= 1
	if err := os.WriteFile(root, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("veritysetup", "verify", root, verity, hash).CombinedOutput(); err == nil {
		t.Errorf("veritysetup accepts damaged content:\n%s", out)
	}
}

func TestSameBytes(t *testing.T) {
	a, hashA := make1(t)
	b, hashB := make1(t)
	da, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if hashA != hashB || string(da) != string(db) {
		t.Error("two images of the same content differ")
	}
}

// TestOpen: what was wrapped is found again, and its GUIDs say the root hash.
func TestOpen(t *testing.T) {
	file, hash := make1(t)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := Open(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := verity.Check(t.Context(), im.Tree, im.Data, im.Data.Size()); err != nil || hex.EncodeToString(got) != hash || im.RootHash != hash {
		t.Errorf("root hash %x, and by the GUIDs %s, want %s, %v", got, im.RootHash, hash, err)
	}
	if tr, err := squashfs.Read(im.Data, im.Data.Size()); err != nil {
		t.Error(err)
	} else if e, ok := tr.Lookup("usr/bin/x"); !ok || e.Size != 3<<20 {
		t.Errorf("usr/bin/x: %+v", e)
	}
	for _, bad := range []int64{0, 100, 2 << 20} {
		if _, err := Open(f, bad); err == nil {
			t.Errorf("%d bytes of it", bad)
		}
	}
}
