package ext4

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/kimage-project/kimage/pkg/tree"
)

const unixTime = 1700000000

func volume(t *testing.T, offset int64) Volume {
	t.Helper()
	const size = 64 << 20
	v := Volume{File: filepath.Join(t.TempDir(), "fs"), OffsetBytes: offset, UnixTime: unixTime}
	if err := os.WriteFile(v.File, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(v.File, offset+size); err != nil {
		t.Fatal(err)
	}
	err := Make(t.Context(), MakeConfig{File: v.File, OffsetBytes: offset, SizeBytes: size, Label: "TEST", UUID: "11111111-2222-8333-8444-555555555555",
		JournalMiB: 4, ReservedPercent: 5, ReservedUID: 64999, UnixTime: unixTime, ScratchDirectory: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func debugfs(t *testing.T, v Volume, command string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", command, v.device()).CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func content(t *testing.T) *tree.Tree {
	t.Helper()
	tr := tree.New()
	big := make([]byte, 9<<20)
	if _, err := rand.Read(big); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		tr.Bytes("dir/a file", 0o644, []byte("spaces\n")),
		tr.Bytes("dir/quote\"d", 0o600, []byte("q")),
		tr.Bytes("dir/<12>", 0o600, []byte("<")),
		tr.Symlink("dir/<13>", "<12>"),
		tr.Bytes("dir/-big", 0o600, big[:1<<20]),
		tr.Add(tree.Entry{Path: "dir/-x", Mode: 0o755, Open: emptyFile, Xattrs: map[string]string{"user.test": "dash"}}),
		tr.Bytes("<dir>/file", 0o644, []byte("x")),
		tr.Bytes("big", 0o755, big),
		tr.Symlink("dir/link", "../big"),
		tr.Symlink("long", strings.Repeat("x/", 80)),
		tr.Add(tree.Entry{Path: "owned", Mode: 0o640, UID: 1000, GID: 70000, Open: emptyFile}),
		tr.Add(tree.Entry{Path: "setuid", Mode: 0o755 | fs.ModeSetuid, Open: emptyFile}),
		tr.Add(tree.Entry{Path: "sticky", Mode: 0o777 | fs.ModeDir | fs.ModeSticky}),
		tr.Add(tree.Entry{Path: "hard", Hard: true, Target: "big"}),
		tr.Add(tree.Entry{Path: "dir/hard2", Hard: true, Target: "big"}),
		tr.Add(tree.Entry{Path: "null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3}),
		tr.Add(tree.Entry{Path: "capable", Mode: 0o755, Open: emptyFile, Xattrs: map[string]string{"user.test": "value"}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func emptyFile() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(nil)), nil }

func TestAdd(t *testing.T) {
	for _, offset := range []int64{0, 1 << 20} {
		v := volume(t, offset)
		if err := v.Add(t.Context(), content(t), nil, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		if err := v.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{
			"setuid": "04755", "sticky": "01777", "owned": "Group: 70000", "big": "Links: 3", "dir/link": `Fast link dest: "../big"`, "dir/<13>": `Fast link dest: "<12>"`, "<dir>/file": "Size: 1\n", "dir/<12>": "Mode:  0600", "dir/-big": "Size: 1048576", "dir/-x": `user.test (4) = "dash"`, "capable": `user.test (5) = "value"`,
		} {
			if out := debugfs(t, v, "stat /"+path); !strings.Contains(out, want) {
				t.Errorf("/%s: no %q in\n%s", path, want, out)
			}
		}
		got, err := v.ReadFile(t.Context(), "dir/a file")
		if err != nil || string(got) != "spaces\n" {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := v.ReadFile(t.Context(), "nothing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a missing file: %v", err)
		}
		listing, err := v.Stat(t.Context(), []string{"dir", "long", "nothing", "big"})
		if err != nil || len(listing) != 3 || !listing["dir"].IsDir() || listing["long"]&fs.ModeSymlink == 0 || !listing["big"].IsRegular() {
			t.Errorf("%v, %v", listing, err)
		}
	}
}

func TestAddReplacesFilesAndKeepsDirectories(t *testing.T) {
	v := volume(t, 0)
	old := tree.New()
	if err := errors.Join(old.Bytes("etc/hostname", 0o644, []byte("before")), old.Add(tree.Entry{Path: "etc", Mode: fs.ModeDir | 0o700, UID: 5})); err != nil {
		t.Fatal(err)
	}
	if err := v.Add(t.Context(), old, nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	edit := tree.New()
	if err := errors.Join(edit.Bytes("etc/hostname", 0o600, []byte("after")), edit.Bytes("etc/new", 0o644, nil)); err != nil {
		t.Fatal(err)
	}
	have, err := v.Stat(t.Context(), []string{".", "etc", "etc/hostname", "etc/new"})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Add(t.Context(), edit, have, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := v.ReadFile(t.Context(), "etc/hostname"); err != nil || string(got) != "after" {
		t.Errorf("%q, %v", got, err)
	}
	if out := debugfs(t, v, "stat /etc"); !strings.Contains(out, "0700") || !strings.Contains(out, "User:     5") {
		t.Errorf("the directory changed:\n%s", out)
	}
}

func TestAddReportsWhatDebugfsHides(t *testing.T) {
	v := volume(t, 0)
	tr := tree.New()
	if err := tr.Bytes("huge", 0o644, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := v.Add(t.Context(), tr, nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	// debugfs refuses to write over a name, and exits with 0.
	if err := v.Add(t.Context(), tr, nil, t.TempDir()); err == nil || !strings.Contains(err.Error(), "debugfs") {
		t.Errorf("error %v", err)
	}
}

func TestManyHardLinksNeedALongerDirectory(t *testing.T) {
	v := volume(t, 0)
	tr := tree.New()
	if err := tr.Bytes("file", 0o644, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if err := tr.Add(tree.Entry{Path: "links/" + strings.Repeat("n", 100) + string(rune('a'+i%26)) + string(rune('a'+i/26)), Hard: true, Target: "file"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Add(t.Context(), tr, nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPrepare(t *testing.T) {
	for name, c := range map[string]struct {
		command, refused string
		repaired         bool
	}{
		"clean":         {command: "stat /"},
		"journal":       {command: "feature +needs_recovery", repaired: true},
		"transaction":   {command: "jo;jw -b 9000 /etc/hosts;jc", repaired: true},
		"errors":        {command: "ssv state 3", repaired: true},
		"not unmounted": {command: "ssv state 0", repaired: true},
		"casefold":      {command: "feature +casefold", refused: "casefold"},
		"verity":        {command: "feature +verity", refused: "verity"},
		"unknown":       {command: "ssv feature_incompat 0x800002c2", refused: "0x80000000"},
	} {
		t.Run(name, func(t *testing.T) {
			v := volume(t, 1<<20)
			cmd := exec.Command("debugfs", "-w", "-f", "-", v.device())
			cmd.Stdin = strings.NewReader(strings.ReplaceAll(c.command, ";", "\n") + "\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			repaired, err := v.Prepare(t.Context(), t.TempDir())
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("error %v, want one that names %s", err, c.refused)
				}
				return
			}
			if err != nil || repaired != c.repaired {
				t.Errorf("repaired %t, %v", repaired, err)
			}
			if err := v.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckFindsDamage(t *testing.T) {
	v := volume(t, 0)
	f, err := os.OpenFile(v.File, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, 4096), 4096); err != nil { // group descriptors
		t.Fatal(err)
	}
	if err := v.Check(t.Context()); err == nil {
		t.Error("damaged group descriptors passed")
	}
}

func TestReadSuperblockOfSomethingElse(t *testing.T) {
	if _, err := ReadSuperblock(bytes.NewReader(make([]byte, 8192)), 0); !errors.Is(err, ErrNotExt4) {
		t.Errorf("zeros: %v", err)
	}
	if _, err := ReadSuperblock(bytes.NewReader(make([]byte, 100)), 0); err == nil {
		t.Error("a short file was read")
	}
}

func TestReservedBlocksBelongToNobody(t *testing.T) {
	out := debugfs(t, volume(t, 0), "show_super_stats -h")
	if !strings.Contains(out, "Reserved blocks uid:      64999") {
		t.Errorf("%s", out)
	}
}

// TestAddLarge: a file that debugfs does not carry arrives whole, in a directory
// that exists, in several extents, and a reader that fails at its end is heard.
func TestAddLarge(t *testing.T) {
	const size, tail = 700 << 20, 300<<20 + 4711
	v := Volume{File: filepath.Join(t.TempDir(), "fs"), OffsetBytes: 1 << 20, UnixTime: unixTime}
	f, err := os.Create(v.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(v.OffsetBytes + size); err != nil {
		t.Fatal(err)
	}
	mk := MakeConfig{File: v.File, OffsetBytes: v.OffsetBytes, SizeBytes: size, Label: "TEST", UUID: "11111111-2222-8333-8444-555555555555", JournalMiB: 4, UnixTime: unixTime, ScratchDirectory: t.TempDir()}
	if err := Make(t.Context(), mk); err != nil {
		t.Fatal(err)
	}
	content := func() io.Reader { return io.LimitReader(mathrand.NewChaCha8([32]byte{1}), tail) }
	tr := tree.New()
	err = errors.Join(tr.Bytes("dir/a file", 0o644, []byte("small")), tr.Add(tree.Entry{Path: "dir/large one", Mode: 0o640, UID: 7, Size: tail,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(content()), nil }}))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Add(t.Context(), tr, nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if err := v.Rename(t.Context(), "dir/large one", "large"); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := debugfs(t, v, "stat /large"); !strings.Contains(out, "Links: 1") || !strings.Contains(out, "User:     7") || strings.Contains(out, "[u]") {
		t.Error(out)
	}
	dumped := filepath.Join(t.TempDir(), "dumped")
	if err := v.Dump(t.Context(), "large", dumped); err != nil {
		t.Fatal(err)
	}
	got, err := os.Open(dumped)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	a, b := sha256.New(), sha256.New()
	if _, err := io.Copy(a, got); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(b, content()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Sum(nil), b.Sum(nil)) {
		t.Error("other content")
	}

	for name, r := range map[string]io.Reader{
		"short":   io.LimitReader(content(), largeBytes-1),
		"long":    io.LimitReader(content(), largeBytes+1),
		"damaged": io.MultiReader(io.LimitReader(content(), largeBytes), iotest.ErrReader(errors.New("damaged"))),
	} {
		bad := tree.New()
		if err := bad.Add(tree.Entry{Path: name, Mode: 0o644, Size: largeBytes, Open: func() (io.ReadCloser, error) { return io.NopCloser(r), nil }}); err != nil {
			t.Fatal(err)
		}
		if err := v.Add(t.Context(), bad, nil, t.TempDir()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
