package ext4

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOpen: a file is read from its blocks as debugfs reads it, its holes and its
// unwritten blocks as zeros.
func TestOpen(t *testing.T) {
	for _, offset := range []int64{0, 1 << 20} {
		v := volume(t, offset)
		if err := v.Add(t.Context(), content(t), nil, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		holes := make([]byte, 100_000)
		for i := range holes {
			if block := i / 4096; block != 0 && block != 5 && block != 6 && block != 24 {
				holes[i] = byte(i%251) + 1
			}
		}
		host := filepath.Join(t.TempDir(), "holes")
		if err := os.WriteFile(host, holes, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := v.debugfs(t.Context(), []byte("write "+host+" holes\nwrite /dev/null unwritten\nfallocate unwritten 0 4\nsif unwritten size 20000\nwrite /dev/null empty\n")); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string][]byte{"holes": holes, "unwritten": make([]byte, 20000), "empty": {}, "dir/a file": []byte("spaces\n"), "big": nil} {
			if want == nil {
				var err error
				if want, err = v.ReadFile(t.Context(), path); err != nil || len(want) != 9<<20 {
					t.Fatalf("%d bytes, %v", len(want), err)
				}
			}
			f, err := v.Open(t.Context(), path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			defer f.Close()
			got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
			if err != nil || !bytes.Equal(got, want) || f.SizeBytes != int64(len(want)) {
				t.Errorf("%s: %d bytes, of %d, want %d, %v", path, len(got), f.SizeBytes, len(want), err)
			}
			for range 50 {
				if len(want) == 0 {
					break
				}
				off := mathrand.Int64N(int64(len(want)))
				part := make([]byte, min(mathrand.Int64N(20_000), int64(len(want))-off))
				if n, err := f.ReadAt(part, off); n != len(part) || err != nil || !bytes.Equal(part, want[off:off+int64(n)]) {
					t.Fatalf("%s: %d bytes at %d: %d, %v", path, len(part), off, n, err)
				}
			}
		}
	}
	v := volume(t, 0)
	if _, err := v.Open(t.Context(), "nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := v.Open(t.Context(), "lost+found"); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("a directory: %v", err)
	}
}

func TestInodes(t *testing.T) {
	v := volume(t, 0)
	if err := v.Add(t.Context(), content(t), nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	got, err := v.Inodes(t.Context(), []string{"dir/link", "long", "owned", "big", "dir", "nothing", "null", "/dir/a file"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]Inode{
		"dir/link":   {Mode: fs.ModeSymlink | 0o777, SizeBytes: 6, Target: "../big"},
		"long":       {Mode: fs.ModeSymlink | 0o777, SizeBytes: 160, Target: strings.Repeat("x/", 80)},
		"owned":      {Mode: 0o640, UID: 1000, GID: 70000},
		"big":        {Mode: 0o755, SizeBytes: 9 << 20},
		"dir":        {Mode: fs.ModeDir | 0o755, SizeBytes: 8192},
		"null":       {Mode: fs.ModeIrregular | 0o666},
		"dir/a file": {Mode: 0o644, SizeBytes: 7},
	} {
		if got[path] != want {
			t.Errorf("%s: %+v, want %+v", path, got[path], want)
		}
	}
	if len(got) != 7 {
		t.Errorf("%d were found: %v", len(got), got)
	}
}

func TestReadDirs(t *testing.T) {
	v := volume(t, 1<<20)
	if err := v.Add(t.Context(), content(t), nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	got, err := v.ReadDirs(t.Context(), []string{".", "dir", "sticky", "<dir>"})
	if err != nil {
		t.Fatal(err)
	}
	find := func(dir, name string) DirEntry {
		for _, e := range got[dir] {
			if e.Name == name {
				return e
			}
		}
		t.Errorf("%s/%s was not listed: %+v", dir, name, got[dir])
		return DirEntry{}
	}
	if e := find(".", "big"); e.SizeBytes != 9<<20 || e.Directory || e.Number != find(".", "hard").Number || e.Number != find("dir", "hard2").Number {
		t.Errorf("big: %+v", e)
	}
	if e := find(".", "dir"); !e.Directory || e.SizeBytes != 0 {
		t.Errorf("dir: %+v", e)
	}
	for name, size := range map[string]int64{"a file": 7, "quote\"d": 1, "<12>": 1, "link": 0} {
		if e := find("dir", name); e.SizeBytes != size || e.Directory {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if len(got["<dir>"]) != 1 || len(got["sticky"]) != 0 || len(got["dir"]) != 8 {
		t.Errorf("%+v", got)
	}
	if _, err := v.ReadDirs(t.Context(), []string{"dir", "nothing"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
}
