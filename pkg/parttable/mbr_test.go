package parttable

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// sfdisk writes a table, or with nothing to write says what it finds.
func sfdisk(t *testing.T, f *os.File, script string) string {
	t.Helper()
	args := []string{"--dump", f.Name()}
	if script != "" {
		args = []string{"--quiet", f.Name()}
	}
	cmd := exec.Command("sfdisk", args...)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sfdisk %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestMBR: a partition is added to a vendor's MBR and grown; nothing else in its sector
// changes, and sfdisk agrees.
func TestMBR(t *testing.T) {
	const before, after = 16 << 20, 64 << 20
	f := disk(t, before)
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xEB}, 440), 0); err != nil {
		t.Fatal(err)
	}
	sfdisk(t, f, "label: dos\nlabel-id: 0xcafe1234\nstart=2048, size=16384, type=83, bootable\n")
	was := make([]byte, SectorBytes)
	f.ReadAt(was, 0)
	if err := f.Truncate(after); err != nil {
		t.Fatal(err)
	}
	tab, err := Read(f, after)
	if err != nil {
		t.Fatal(err)
	}
	if tab.Scheme != MBR || tab.DiskGUID != "cafe1234" || len(tab.Partitions) != 1 || tab.Partitions[0] != (Partition{Number: 1, TypeGUID: "0x83", FirstLBA: 2048, LastLBA: 18431}) {
		t.Errorf("%+v", tab)
	}
	added, err := tab.Add(Partition{Name: "KIMAGE", TypeGUID: tab.LinuxType(), FirstLBA: 32768, LastLBA: 65535})
	if err != nil || added.Number != 2 {
		t.Fatalf("added %+v, %v; want number 2", added, err)
	}
	if err := tab.Write(f, after); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-L", "KIMAGE", "-E", "offset=16777216", f.Name(), "16384k").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if tab, err = Read(f, after); err != nil {
		t.Fatal(err)
	}
	if p, ok := tab.FindName("KIMAGE"); !ok || p.Number != 2 || p.FirstLBA != 32768 || p.LastLBA != 65535 {
		t.Errorf("%+v", tab.Partitions)
	}
	if err := tab.Grow(2, tab.LastUsableLBA(after)); err != nil {
		t.Fatal(err)
	}
	if err := tab.Write(f, after); err != nil {
		t.Fatal(err)
	}
	out := sfdisk(t, f, "")
	for _, want := range []string{"label: dos", "label-id: 0xcafe1234", "1 : start=        2048, size=       16384, type=83, bootable", "2 : start=       32768, size=       98304, type=83\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	is := make([]byte, SectorBytes)
	f.ReadAt(is, 0)
	if copy(is[462:478], was[462:478]); !bytes.Equal(was, is) {
		t.Error("more than the second entry has changed")
	}
	if err := Check(f, after); err != nil {
		t.Error(err)
	}
}

// TestStaleGPT: an MBR counts although an older GPT's copy is left at the disk's end, as for
// the kernel.
func TestStaleGPT(t *testing.T) {
	const size = 16 << 20
	f := disk(t, size)
	vendorLike(t, f, size)
	f.WriteAt(make([]byte, 34*SectorBytes), 0)
	sfdisk(t, f, "label: dos\nstart=2048, size=2048, type=83\n")
	tab, err := Read(f, size)
	if err != nil || tab.Scheme != MBR || len(tab.Partitions) != 1 {
		t.Errorf("%+v, %v", tab, err)
	}
	if err := Check(f, size); err != nil {
		t.Error(err)
	}
}

// TestExtended: an extended partition is kept, and nothing is put into it.
func TestExtended(t *testing.T) {
	const size = 64 << 20
	f := disk(t, size)
	sfdisk(t, f, "label: dos\nstart=2048, size=2048, type=83\nstart=8192, size=65536, type=5\nstart=10240, size=2048, type=83\n")
	before := sfdisk(t, f, "")
	tab, err := Read(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tab.Add(Partition{Name: "KIMAGE", TypeGUID: tab.LinuxType(), FirstLBA: 20480, LastLBA: 30000}); err == nil {
		t.Error("KIMAGE lies inside of the extended partition")
	}
	if _, err := tab.Add(Partition{Name: "KIMAGE", TypeGUID: tab.LinuxType(), FirstLBA: tab.LastLBA() + 1, LastLBA: 131071}); err != nil {
		t.Fatal(err)
	}
	if err := tab.Write(f, size); err != nil {
		t.Fatal(err)
	}
	after := sfdisk(t, f, "")
	for line := range strings.Lines(before) {
		if !strings.Contains(after, line) {
			t.Errorf("gone is %s", line)
		}
	}
}

// TestMBRRefuses what is none, and what cannot be added.
func TestMBRRefuses(t *testing.T) {
	const size = 16 << 20
	for name, tt := range map[string]struct {
		script string
		damage func(b []byte)
		none   bool
		want   string
	}{
		"protective alone": {"start=1, size=32767, type=ee", nil, true, ""},
		"no entry":         {"start=2048, size=2048, type=83", func(b []byte) { clear(b[446:510]) }, true, ""},
		"a boot sector":    {"start=2048, size=2048, type=83", func(b []byte) { copy(b[446:], "not a table, but words of a loader") }, true, ""},
		"no signature":     {"start=2048, size=2048, type=83", func(b []byte) { b[511] = 0 }, true, ""},
		"behind the end":   {"start=2048, size=2048, type=83", func(b []byte) { b[446+14] = 1 }, false, "does not lie on the disk"},
		"overlap":          {"start=2048, size=2048, type=83\nstart=4096, size=2048, type=83", func(b []byte) { b[446+16+9] = 9 }, false, "overlap"},
	} {
		t.Run(name, func(t *testing.T) {
			f := disk(t, size)
			sfdisk(t, f, "label: dos\n"+tt.script+"\n")
			b := make([]byte, SectorBytes)
			f.ReadAt(b, 0)
			if tt.damage != nil {
				tt.damage(b)
			}
			f.WriteAt(b, 0)
			_, err := Read(f, size)
			if err == nil || errors.Is(err, ErrNone) != tt.none || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Read: %v", err)
			}
			if err := Check(f, size); err == nil {
				t.Error("Check finds nothing")
			}
		})
	}
	f := disk(t, size)
	sfdisk(t, f, "label: dos\nsize=1MiB\nsize=1MiB\nsize=1MiB\nsize=1MiB\n")
	tab, err := Read(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tab.Add(Partition{Name: "KIMAGE", TypeGUID: tab.LinuxType(), FirstLBA: 30000, LastLBA: 31000}); err == nil || !strings.Contains(err.Error(), "room for 4") {
		t.Errorf("a fifth: %v", err)
	}
	// Two TiB are what 32 bits reach.
	sfdisk(t, f, "label: dos\nsize=1MiB\n")
	if tab, err = Read(f, 4<<40); err != nil {
		t.Fatal(err)
	}
	if last := tab.LastUsableLBA(4 << 40); last != 1<<32-1 {
		t.Errorf("the last usable sector is %d", last)
	}
	if _, err := tab.Add(Partition{Name: "KIMAGE", TypeGUID: tab.LinuxType(), FirstLBA: 1 << 32, LastLBA: 1<<32 + 2048}); err != nil {
		t.Fatal(err)
	}
	if err := tab.Write(&memory{make([]byte, SectorBytes)}, 4<<40); err == nil || !strings.Contains(err.Error(), "usable") {
		t.Errorf("behind two TiB: %v", err)
	}
}
