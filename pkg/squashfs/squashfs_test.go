package squashfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/tree"
)

const unixTime = 1700000000

// content is n bytes that compress to about half.
func content(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.UintN(16))
	}
	return b
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i, r := 0, rand.New(rand.NewPCG(7, 7)); i < n; i++ {
		b[i] = byte(r.Uint32())
	}
	return b
}

func opener(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func build(t *testing.T, entries ...tree.Entry) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for _, e := range entries {
		if err := tr.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func regular(p string, mode fs.FileMode, data []byte) tree.Entry {
	return tree.Entry{Path: p, Mode: mode, Size: int64(len(data)), Open: opener(data)}
}

func sample(t *testing.T) *tree.Tree {
	entries := []tree.Entry{
		regular("usr/bin/tool", 0o755, content(1, 3<<20+17)),
		regular("usr/bin/block", 0o755, content(2, blockSize)),
		regular("usr/bin/zeros", 0o644, append(make([]byte, 2<<20), 1)),
		regular("usr/bin/noise", fs.ModeSetuid|0o755, noise(blockSize+5)),
		regular("usr/owned", 0o640, nil),
		regular("usr/small", 0o600, []byte("small\n")),
		{Path: "usr/bin/link", Mode: fs.ModeSymlink | 0o777, Target: "tool"},
		{Path: "usr/empty", Mode: fs.ModeDir | fs.ModeSticky | 0o711},
	}
	// More inodes and names than a block of a table, a run of a listing, and a
	// small directory hold.
	for i := range 3000 {
		entries = append(entries, regular(fmt.Sprintf("usr/share/many/%s-%d", strings.Repeat("n", 30), i), 0o644, []byte(fmt.Sprint(i))))
	}
	return build(t, entries...)
}

func unsquash(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(need.Program(t, "unsquashfs", "squashfs-tools"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	return string(out)
}

// TestWrite: unsquashfs finds what was written, and nothing depends on the umask,
// on where the file system starts, or on what was packed beforehand.
func TestWrite(t *testing.T) {
	tr := sample(t)
	tool, _ := tr.Lookup("usr/bin/tool")
	in, err := tool.Open()
	if err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	blocks, err := Pack(t.Context(), &data, in, tool.Size)
	if err != nil {
		t.Fatal(err)
	}
	var images [][]byte
	for i, c := range []Config{{}, {OffsetBytes: 1 << 20}, {Packed: map[string]Packed{"usr/bin/tool": {Blocks: blocks, Open: opener(data.Bytes())}}}} {
		c.File, c.UnixTime = filepath.Join(t.TempDir(), "fs"), unixTime
		old := syscall.Umask([]int{0o022, 0o077, 0o002}[i])
		err := Write(t.Context(), tr, c)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		image, err := os.ReadFile(c.File)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, image[c.OffsetBytes:])
		if i > 0 {
			continue
		}
		list := unsquash(t, "-lln", "-UTC", c.File)
		// The root directory too is root's, 0755, of the fixed time.
		for _, want := range []string{"drwxr-xr-x 0/0", "2023-11-14 22:13 squashfs-root\n", "-rwsr-xr-x 0/0", "-rw-r----- 0/0", "drwx--x--t 0/0", "squashfs-root/usr/bin/link -> tool"} {
			if !strings.Contains(list, want) {
				t.Errorf("no %q in\n%.2000s", want, list)
			}
		}
		dir := filepath.Join(t.TempDir(), "out")
		unsquash(t, "-q", "-n", "-no-xattrs", "-d", dir, c.File)
		compare(t, tr, dir)
	}
	for i := range images {
		if !bytes.Equal(images[0], images[i]) {
			t.Errorf("image %d differs", i)
		}
	}
}

func compare(t *testing.T, tr *tree.Tree, dir string) {
	t.Helper()
	for _, e := range tr.Entries() {
		at := filepath.Join(dir, e.Path)
		fi, err := os.Lstat(at)
		if err != nil {
			t.Error(err)
			continue
		}
		if e.Path != "." && fi.Mode() != e.Mode && e.Mode.Type() != fs.ModeSymlink {
			t.Errorf("%s: mode %v, want %v", e.Path, fi.Mode(), e.Mode)
		}
		if !e.Mode.IsRegular() {
			continue
		}
		in, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(at); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d", e.Path, len(got), err, len(want))
		}
	}
}

func TestPackSkipsZerosAndKeepsNoise(t *testing.T) {
	var out bytes.Buffer
	b, err := Pack(t.Context(), &out, io.MultiReader(bytes.NewReader(make([]byte, blockSize)), bytes.NewReader(noise(blockSize)), strings.NewReader("tail")), 2*blockSize+4)
	if err != nil {
		t.Fatal(err)
	}
	if b.SizeBytes != 2*blockSize+4 || len(b.Stored) != 3 || b.Stored[0] != 0 || b.Stored[1] != blockSize|uncompressed || b.storedBytes() != int64(out.Len()) {
		t.Errorf("%+v, %d bytes", b, out.Len())
	}
	data, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	var read Blocks
	if err := json.Unmarshal(data, &read); err != nil || read.storedBytes() != b.storedBytes() {
		t.Errorf("read back: %+v, %v", read, err)
	}
}

// TestPackIsStable: what lies in caches must be what Pack makes today. Another
// digest needs another Version.
func TestPackIsStable(t *testing.T) {
	digest := sha256.New()
	if _, err := Pack(t.Context(), digest, bytes.NewReader(content(9, 2<<20)), 2<<20); err != nil {
		t.Fatal(err)
	}
	const want = "925d85b0116fb44bc923c369edcf174f48276a08ec7ebfbcf3375a2c91bb5bbe"
	if got := hex.EncodeToString(digest.Sum(nil)); Version != "1" || got != want {
		t.Errorf("version %s packs to %s", Version, got)
	}
}

func TestWriteRefuses(t *testing.T) {
	empty := opener(nil)
	for want, e := range map[string]tree.Entry{
		"usr/x belongs to 0:8":            {Path: "usr/x", Mode: fs.ModeDir | 0o755, GID: 8},
		"usr/x is of type p":              {Path: "usr/x", Mode: fs.ModeNamedPipe | 0o600},
		"usr/x has extended attributes":   {Path: "usr/x", Mode: 0o755, Open: empty, Xattrs: map[string]string{"security.capability": "x"}},
		"usr/x: it has 0 bytes":           {Path: "usr/x", Mode: 0o755, Size: 4, Open: empty},
		"usr/x: file does not exist":      {Path: "usr/x", Mode: 0o755, Size: 4, Open: func() (io.ReadCloser, error) { return nil, fs.ErrNotExist }},
		"usr/x: it broke":                 {Path: "usr/x", Mode: 0o755, Size: 4, Open: func() (io.ReadCloser, error) { return io.NopCloser(iotest.ErrReader(fmt.Errorf("it broke"))), nil }},
		"usr/" + strings.Repeat("n", 256): regular("usr/"+strings.Repeat("n", 256), 0o644, nil),
	} {
		if err := Write(t.Context(), build(t, e), Config{File: filepath.Join(t.TempDir(), "fs"), UnixTime: 1}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
	short := Packed{Blocks: Blocks{SizeBytes: 4, Stored: []uint32{9}}, Open: opener([]byte("packed"))}
	c := Config{File: filepath.Join(t.TempDir(), "fs"), Packed: map[string]Packed{"usr/x": short}}
	if err := Write(t.Context(), build(t, regular("usr/x", 0o755, []byte("four"))), c); err == nil || !strings.Contains(err.Error(), "6 bytes of blocks instead of 9") {
		t.Errorf("short blocks: %v", err)
	}
}

func BenchmarkPack(b *testing.B) {
	data := content(3, 64<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Pack(b.Context(), io.Discard, bytes.NewReader(data), int64(len(data))); err != nil {
			b.Fatal(err)
		}
	}
}
