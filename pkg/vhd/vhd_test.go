package vhd

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestForeign: qemu-img sees a disk of the very size, whatever geometry can say, and
// itself writes the same of it.
func TestForeign(t *testing.T) {
	need.Program(t, "qemu-img", "qemu-utils")
	for _, size := range []int64{1 << 20, 3 << 20, 504 << 20, 8 << 30, 9<<30 + Align, 130 << 30, 1 << 40} {
		dir := t.TempDir()
		ours, theirs := filepath.Join(dir, "ours.vhd"), filepath.Join(dir, "theirs.vhd")
		f, err := os.Create(ours)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(Footer(size, "test"), size); err != nil {
			t.Fatal(err)
		}
		if got, isVHD, err := DiskBytes(f, size+FooterBytes); err != nil || !isVHD || got != size {
			t.Errorf("%d bytes: the footer is not known again: %d, %v, %v", size, got, isVHD, err)
		}
		if got, isVHD, err := DiskBytes(f, size); err != nil || isVHD || got != size {
			t.Errorf("%d bytes without a footer: %d, %v, %v", size, got, isVHD, err)
		}
		f.Close()
		out, err := exec.Command("qemu-img", "info", "-f", "vpc", "--output", "json", ours).Output()
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		if err == nil {
			err = json.Unmarshal(out, &info)
		}
		if err != nil || info.Size != size {
			t.Errorf("%d bytes are %d for qemu-img: %v", size, info.Size, err)
		}
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", theirs, strconv.FormatInt(size, 10)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		want := make([]byte, FooterBytes)
		g, err := os.Open(theirs)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.ReadAt(want, size); err != nil {
			t.Fatal(err)
		}
		g.Close()
		if got := Footer(size, "test"); string(got[:24]) != string(want[:24]) || string(got[40:56]) != string(want[40:56]) || string(got[60:64]) != string(want[60:64]) {
			t.Errorf("%d bytes:\n%x\nqemu-img writes\n%x", size, got[:84], want[:84])
		}
	}
	if string(Footer(1<<30, "a")[68:84]) == string(Footer(1<<30, "b")[68:84]) {
		t.Error("two images have one ID")
	}
}

// TestOtherKinds: a VHD that is not fixed is no raw disk, and what is short is no VHD.
func TestOtherKinds(t *testing.T) {
	need.Program(t, "qemu-img", "qemu-utils")
	file := filepath.Join(t.TempDir(), "dynamic.vhd")
	need.Judge(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic", file, "64M")
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := DiskBytes(f, fi.Size()); err == nil || !strings.Contains(err.Error(), "VHD of type 3") {
		t.Errorf("%v", err)
	}
	if got, isVHD, err := DiskBytes(strings.NewReader("short"), 5); err != nil || isVHD || got != 5 {
		t.Errorf("%d, %v, %v", got, isVHD, err)
	}
}
