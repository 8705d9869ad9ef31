package squashfs

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/tree"
)

// image writes a tree and returns the bytes.
func image(t *testing.T, tr *tree.Tree) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fs")
	if err := Write(t.Context(), tr, Config{File: file, UnixTime: unixTime}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func read(e tree.Entry) ([]byte, error) {
	r, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// TestRead: what was written is read again, to the last byte and mode.
func TestRead(t *testing.T) {
	want := sample(t)
	data := image(t, want)
	got, err := Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if g, w := len(got.Entries()), len(want.Entries()); g != w {
		t.Errorf("%d entries instead of %d", g, w)
	}
	for _, w := range want.Entries() {
		g, ok := got.Lookup(w.Path)
		if !ok || g.Mode.Type() != w.Mode.Type() || w.Mode.Type() != fs.ModeSymlink && g.Mode != w.Mode || g.Size != w.Size || g.Target != w.Target || g.UID != 0 || g.GID != 0 || g.ModTime.Unix() != unixTime {
			t.Errorf("%+v, want %+v", g, w)
		}
		if !w.Mode.IsRegular() {
			continue
		}
		a, err := read(g)
		if err != nil {
			t.Fatalf("%s: %v", w.Path, err)
		}
		if b, err := read(w); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: %d bytes, want %d, %v", w.Path, len(a), len(b), err)
		}
	}
}

// TestReadForeign: what mksquashfs makes with the same features is read, too, and
// other features are refused by name.
func TestReadForeign(t *testing.T) {
	mksquashfs := need.Program(t, "mksquashfs", "squashfs-tools")
	tr := sample(t)
	ours, dir := filepath.Join(t.TempDir(), "ours"), filepath.Join(t.TempDir(), "dir")
	if err := os.WriteFile(ours, image(t, tr), 0o600); err != nil {
		t.Fatal(err)
	}
	unsquash(t, "-q", "-n", "-no-xattrs", "-d", dir, ours)
	for _, tt := range []struct{ options, refused string }{
		{options: "-comp zstd -b 1M -no-fragments"},
		{options: "-comp zstd -b 128K -no-fragments"},
		{"-comp gzip -no-fragments", "only zstd"},
		{"-comp zstd", "has a fragment"},
	} {
		file := filepath.Join(t.TempDir(), "theirs")
		argv := append([]string{dir, file, "-quiet", "-no-progress", "-no-xattrs", "-all-root"}, strings.Fields(tt.options)...)
		if out, err := exec.Command(mksquashfs, argv...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(bytes.NewReader(data), int64(len(data)))
		if tt.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tt.refused) {
				t.Errorf("%s: error %v", tt.options, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if g, w := len(got.Entries()), len(tr.Entries()); g != w {
			t.Errorf("%d entries instead of %d", g, w)
		}
		compare(t, got, dir)
	}
}

func TestReadRefuses(t *testing.T) {
	good := image(t, build(t, regular("usr/x", 0o755, content(1, 100))))
	for want, change := range map[string]func(b []byte) []byte{
		"superblock":  func(b []byte) []byte { return b[:50] },
		"no squashfs": func(b []byte) []byte { return make([]byte, len(b)) },
		"truncated":   func(b []byte) []byte { return b[:100] },
		"only zstd":   func(b []byte) []byte { b[20] = 1; return b },
	} {
		b := change(bytes.Clone(good))
		if _, err := Read(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
}

// TestReadDamaged: whichever bit of a file system is flipped, reading all of it ends.
func TestReadDamaged(t *testing.T) {
	good := image(t, build(t, regular("usr/x", 0o755, content(1, 3000)), regular("usr/y/z", 0o644, nil), tree.Entry{Path: "usr/l", Mode: fs.ModeSymlink | 0o777, Target: "x"}))
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= bit
			tr, err := Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				continue
			}
			for _, e := range tr.Entries() {
				if !e.Mode.IsRegular() {
					continue
				}
				if r, err := e.Open(); err == nil {
					io.Copy(io.Discard, io.LimitReader(r, 1<<20))
				}
			}
		}
	}
}
