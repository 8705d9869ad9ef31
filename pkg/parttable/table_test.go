package parttable

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const linux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

func disk(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// sgdisk is the foreign judge.
func sgdisk(t *testing.T, f *os.File) {
	t.Helper()
	out, err := exec.Command("sgdisk", "-v", f.Name()).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk -v: %v\n%s", err, out)
	}
}

func vendorLike(t testing.TB, f *os.File, size int64) *Table {
	t.Helper()
	tab := New(DeriveGUID("disk"))
	for _, p := range []Partition{
		{Number: 14, Name: "bios", TypeGUID: "21686148-6449-6E6F-744E-656564454649", FirstLBA: 2048, LastLBA: 4095, Attributes: 1 << 2},
		{Number: 1, Name: "root", TypeGUID: linux, FirstLBA: 8192, LastLBA: 16383, Attributes: 1<<60 | 1<<48},
	} {
		p.GUID = DeriveGUID(p.Name)
		if _, err := tab.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.Write(f, size); err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestEditKeepsWhatIsThere(t *testing.T) {
	const before, after = 16 << 20, 64 << 20
	f := disk(t, before)
	boot := bytes.Repeat([]byte{0xEB}, 440)
	if _, err := f.WriteAt(boot, 0); err != nil {
		t.Fatal(err)
	}
	vendorLike(t, f, before)
	sgdisk(t, f)

	if err := f.Truncate(after); err != nil {
		t.Fatal(err)
	}
	tab, err := Read(f, after)
	if err != nil {
		t.Fatal(err)
	}
	added, err := tab.Add(Partition{Name: "KIMAGE", TypeGUID: linux, GUID: DeriveGUID("k"), FirstLBA: 32768, LastLBA: 65535})
	if err != nil || added.Number != 2 {
		t.Fatalf("added %+v, %v; want number 2, the lowest that is free", added, err)
	}
	if err := tab.Write(f, after); err != nil {
		t.Fatal(err)
	}
	sgdisk(t, f)
	again, err := Read(f, after)
	if err != nil {
		t.Fatal(err)
	}
	if again.DiskGUID != DeriveGUID("disk") || len(again.Partitions) != 3 {
		t.Errorf("after the edit: %+v", again)
	}
	root, _ := again.FindName("root")
	if root.Number != 1 || root.Attributes != 1<<60|1<<48 || root.GUID != DeriveGUID("root") || root.FirstLBA != 8192 || root.LastLBA != 16383 {
		t.Errorf("root changed: %+v", root)
	}
	got := make([]byte, 440)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, boot) {
		t.Errorf("boot code changed (%v)", err)
	}
}

func TestGrow(t *testing.T) {
	const before, after = 16 << 20, 128 << 20
	f := disk(t, before)
	vendorLike(t, f, before)
	if err := f.Truncate(after); err != nil {
		t.Fatal(err)
	}
	tab, err := Read(f, after)
	if err != nil {
		t.Fatal(err)
	}
	if err := tab.Grow(1, tab.LastUsableLBA(after)); err != nil {
		t.Fatal(err)
	}
	if err := tab.Write(f, after); err != nil {
		t.Fatal(err)
	}
	sgdisk(t, f)
	if err := tab.Grow(1, 9000); err == nil {
		t.Error("a partition was shrunk")
	}
	if err := tab.Grow(14, 9000); err == nil {
		t.Error("a partition grew into the next")
	}
}

func TestReadBackupWhenPrimaryIsDamaged(t *testing.T) {
	const size = 16 << 20
	f := disk(t, size)
	vendorLike(t, f, size)
	if _, err := f.WriteAt(make([]byte, 4096), 512); err != nil {
		t.Fatal(err)
	}
	tab, err := Read(f, size)
	if err != nil || !tab.FromBackup || len(tab.Partitions) != 2 {
		t.Fatalf("%+v, %v", tab, err)
	}
}

func TestReadRefuses(t *testing.T) {
	const size = 16 << 20
	for name, damage := range map[string]func(f *os.File) int64{
		"empty":     func(f *os.File) int64 { return 0 },
		"no table":  func(f *os.File) int64 { f.Truncate(0); f.Truncate(size); return size },
		"truncated": func(f *os.File) int64 { f.Truncate(6 << 20); return 6 << 20 },
		"entries": func(f *os.File) int64 {
			f.WriteAt([]byte{1}, 1024+40)
			f.WriteAt([]byte{1}, size-33*512+40)
			return size
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := disk(t, size)
			vendorLike(t, f, size)
			if _, err := Read(f, damage(f)); err == nil {
				t.Error("read without an error")
			}
		})
	}
}

func TestAddRefusesOverlap(t *testing.T) {
	tab := New(DeriveGUID("d"))
	if _, err := tab.Add(Partition{Name: "a", TypeGUID: linux, GUID: DeriveGUID("a"), FirstLBA: 2048, LastLBA: 4095}); err != nil {
		t.Fatal(err)
	}
	if _, err := tab.Add(Partition{Name: "b", TypeGUID: linux, GUID: DeriveGUID("b"), FirstLBA: 4095, LastLBA: 5000}); err == nil {
		t.Error("overlapping partitions were accepted")
	}
}

// FuzzRead: whatever is on a disk, Read answers with a table that lies on it or
// with an error, and what it read can be written and read again.
// FuzzRead makes a disk of the fuzzer's header and entries, with checksums that
// match: behind the wrong ones nothing would be reached. A good header is mixed
// in where the fuzzer gives zeros.
func FuzzRead(f *testing.F) {
	const size = 128 << 10
	good := disk(f, size)
	tab := New(DeriveGUID("disk"))
	if _, err := tab.Add(Partition{Name: "root", TypeGUID: linux, GUID: DeriveGUID("r"), FirstLBA: 40, LastLBA: 99}); err != nil {
		f.Fatal(err)
	}
	if err := tab.Write(good, size); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(good.Name())
	if err != nil {
		f.Fatal(err)
	}
	header, entry := whole[SectorBytes:SectorBytes+92], whole[2*SectorBytes:2*SectorBytes+128]
	f.Add(header, entry, 0, false)
	f.Add(header, append(bytes.Clone(entry), entry...), 3, true)
	f.Add(header[:40], []byte{}, -1, false)
	f.Fuzz(func(t *testing.T, header, entries []byte, cut int, backup bool) {
		data := bytes.Clone(whole)
		if cut > 0 {
			data = data[:max(0, len(data)-cut)]
		}
		for _, lba := range []int64{1, int64(len(data))/SectorBytes - 1} {
			if at := lba * SectorBytes; at >= SectorBytes && at+SectorBytes <= int64(len(data)) && (lba == 1 || backup) {
				patch(data, at, header, entries)
			}
		}
		tab, err := Read(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		for _, p := range tab.Partitions {
			if p.FirstLBA > p.LastLBA || p.OffsetBytes()+p.SizeBytes() > int64(len(data)) {
				t.Fatalf("partition outside of the disk: %+v", p)
			}
		}
		out := &memory{bytes.Clone(data)}
		if err := tab.Write(out, int64(len(data))); err != nil {
			return
		}
		again, err := Read(bytes.NewReader(out.b), int64(len(out.b)))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if len(again.Partitions) != len(tab.Partitions) {
			t.Fatalf("%d partitions were written, %d are read", len(tab.Partitions), len(again.Partitions))
		}
	})
}

// patch writes a header and entries into data and makes their checksums right,
// where the header names entries that data has.
func patch(data []byte, at int64, header, entries []byte) {
	le, b := binary.LittleEndian, data[at:at+SectorBytes]
	copy(b, header[:min(len(header), 92)])
	array := le.Uint64(b[72:])
	length := uint64(le.Uint32(b[80:])) * uint64(le.Uint32(b[84:]))
	if start := array * SectorBytes; array < uint64(len(data))/SectorBytes && length <= uint64(len(data))-start {
		copy(data[start:start+length], entries)
		le.PutUint32(b[88:], crc32.ChecksumIEEE(data[start:start+length]))
	}
	clear(b[16:20])
	if n := le.Uint32(b[12:]); n <= SectorBytes {
		le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:n]))
	}
}

type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return 0, io.ErrShortWrite
	}
	return copy(m.b[off:], p), nil
}

// TestCheck: each copy is judged, and the two are compared.
func TestCheck(t *testing.T) {
	const size = 16 << 20
	const last = size/SectorBytes - 1
	good := func() *os.File {
		f := disk(t, size)
		vendorLike(t, f, size)
		return f
	}
	if err := Check(good(), size); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		at   int64
		want string
	}{
		{450, "protective"},
		{510, "protective"},
		{SectorBytes + 60, "the primary copy: the header"},
		{SectorBytes, "the primary copy: no partition table"},
		{2*SectorBytes + 3*128, "the primary copy: the partition entries"},
		{last*SectorBytes + 60, "the backup copy: the header"},
		{(last-arraySectors)*SectorBytes + 17, "the backup copy: the partition entries"},
		{SectorBytes + 300, "differ"},
	} {
		f := good()
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, tt.at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, tt.at); err != nil {
			t.Fatal(err)
		}
		if err := Check(f, size); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("byte %d: %v, want %s", tt.at, err, tt.want)
		}
	}
	// Another, good table at the end.
	f, other := good(), disk(t, size)
	if err := New(DeriveGUID("other")).Write(other, size); err != nil {
		t.Fatal(err)
	}
	end := make([]byte, (arraySectors+1)*SectorBytes)
	if _, err := other.ReadAt(end, size-int64(len(end))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(end, size-int64(len(end))); err != nil {
		t.Fatal(err)
	}
	if err := Check(f, size); err == nil || !strings.Contains(err.Error(), "differ") {
		t.Errorf("two tables: %v", err)
	}
	if err := Check(f, 4096); err == nil {
		t.Error("a disk of 4096 bytes")
	}
}
