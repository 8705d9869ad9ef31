package squashfs

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kimage-project/kimage/pkg/tree"
)

func sample(t *testing.T) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for _, err := range []error{
		tr.Bytes("usr/bin/tool", 0o755, bytes.Repeat([]byte("x"), 1<<20)),
		tr.Symlink("usr/bin/link", "tool"),
		tr.Add(tree.Entry{Path: "usr/owned", Mode: 0o640, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(nil)), nil }}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func TestWrite(t *testing.T) {
	var images [][]byte
	for _, umask := range []int{0o022, 0o077} {
		file := filepath.Join(t.TempDir(), "fs")
		old := syscall.Umask(umask)
		err := Write(t.Context(), sample(t), Config{File: file, UnixTime: 1700000000})
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("unsquashfs", "-lln", "-UTC", file).CombinedOutput()
		if err != nil {
			t.Fatalf("unsquashfs: %v\n%s", err, out)
		}
		// The root directory too is root's, 0755, of the fixed time.
		for _, want := range []string{"drwxr-xr-x 0/0", "2023-11-14 22:13 squashfs-root\n", "-rwxr-xr-x 0/0", "-rw-r----- 0/0", "squashfs-root/usr/bin/link -> tool"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, data)
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("the bytes depend on the umask")
	}
}

func TestWriteRefusesOwners(t *testing.T) {
	tr := tree.New()
	if err := tr.Add(tree.Entry{Path: "usr/owned", Mode: fs.ModeDir | 0o755, GID: 8}); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), tr, Config{File: filepath.Join(t.TempDir(), "fs"), UnixTime: 1}); err == nil || !strings.Contains(err.Error(), "usr/owned belongs to 0:8") {
		t.Errorf("error %v", err)
	}
}

func TestWriteFailsWithItsInput(t *testing.T) {
	tr := sample(t)
	if err := tr.Add(tree.Entry{Path: "usr/broken", Size: 10, Open: func() (io.ReadCloser, error) { return nil, fs.ErrNotExist }}); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), tr, Config{File: filepath.Join(t.TempDir(), "fs"), UnixTime: 1}); err == nil {
		t.Error("a tree with an unreadable file was written")
	}
}
