package initrd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/tree"
)

// disk is an image with a root of these files.
func disk(t *testing.T, files map[string]string) string {
	t.Helper()
	const size, first, sectors = 64 << 20, 2048, 96 << 10
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	table := parttable.New(parttable.DeriveGUID("disk"))
	p, err := table.Add(parttable.Partition{Name: "root", TypeGUID: table.LinuxType(), GUID: parttable.DeriveGUID("root"), FirstLBA: first, LastLBA: first + sectors - 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(f, size); err != nil {
		t.Fatal(err)
	}
	err = ext4.Make(t.Context(), ext4.MakeConfig{File: file, OffsetBytes: p.OffsetBytes(), SizeBytes: p.SizeBytes(), Label: "root", UUID: "11111111-2222-8333-8444-555555555555", JournalMiB: 4, UnixTime: 1700000000, ScratchDirectory: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	tr := tree.New()
	for name, content := range files {
		if err := tr.Bytes(name, 0o644, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	v := ext4.Volume{File: file, OffsetBytes: p.OffsetBytes(), UnixTime: 1700000000}
	if err := v.Add(t.Context(), tr, nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestMake(t *testing.T) {
	for name, dir := range map[string]string{"in the root": "boot/", "a partition of its own": ""} {
		t.Run(name, func(t *testing.T) {
			image := disk(t, map[string]string{
				dir + "vmlinuz-6.12.9+deb13-amd64": "old", dir + "initrd.img-6.12.9+deb13-amd64": "old",
				dir + "vmlinuz-6.12.10+deb13-amd64": "kernel", dir + "initrd.img-6.12.10+deb13-amd64": "initrd",
				dir + "vmlinuz-6.13": "without initrd", dir + "config-7": "",
			})
			b, err := Make(t.Context(), image, []byte("agent"))
			if err != nil {
				t.Fatal(err)
			}
			if b.Version != "6.12.10+deb13-amd64" || string(b.Kernel) != "kernel" || !bytes.HasPrefix(b.Initrd, []byte("initrd\x00\x00070701")) {
				t.Errorf("%s, %s, %.20q", b.Version, b.Kernel, b.Initrd)
			}
			again, err := Make(t.Context(), image, []byte("agent"))
			if err != nil || !bytes.Equal(b.Initrd, again.Initrd) {
				t.Errorf("other bytes the second time (%v)", err)
			}
		})
	}
	if _, err := Make(t.Context(), disk(t, map[string]string{"boot/vmlinuz-1": "x"}), nil); err == nil || !strings.Contains(err.Error(), "Debian and Ubuntu") {
		t.Errorf("an image without an initramfs: %v", err)
	}
}

// TestForeign: cpio unpacks what was appended.
func TestForeign(t *testing.T) {
	cpio := need.Program(t, "cpio", "cpio")
	for _, size := range []int{0, 1, 2, 3, 4, 70_001} {
		agent := bytes.Repeat([]byte{'a'}, size)
		dir := t.TempDir()
		cmd := exec.Command(cpio, "--extract", "--quiet")
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(Behind(0, agent))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got, err := os.ReadFile(filepath.Join(dir, "init"))
		if err != nil || !bytes.Equal(got, agent) {
			t.Errorf("%d bytes of %d, %v", len(got), size, err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "init")); err != nil || fi.Mode() != 0o755 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "proc")); err != nil || !fi.IsDir() {
			t.Errorf("proc: %v", err)
		}
	}
}

// TestBehind: the archive begins at a multiple of four bytes, whatever it lies behind.
func TestBehind(t *testing.T) {
	for size, zeros := range map[int64]int{0: 0, 1: 3, 2: 2, 3: 1, 4: 0, 392_114_179: 1} {
		b := Behind(size, []byte("agent"))
		if got := bytes.Index(b, []byte("070701")); got != zeros || (size+int64(len(b)))%4 != 0 {
			t.Errorf("behind %d bytes there are %d zeros, and %d bytes in all", size, got, len(b))
		}
	}
}

func TestCompare(t *testing.T) {
	sorted := []string{"5.10.0-9", "5.10.0-10", "6.1", "6.1.1", "6.12.9+deb13-amd64", "6.12.10+deb13-amd64", "6.12.10+deb13-cloud"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := compare(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare(%s, %s) = %d", a, b, got)
			}
		}
	}
}
