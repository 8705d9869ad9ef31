package install

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/blkpg"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/parttable"
)

const testBytes = 320 << 20

func newDisk(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(testBytes); err != nil {
		t.Fatal(err)
	}
	return f
}

func judge(t *testing.T, f *os.File, wantContent, wantWhat string) {
	t.Helper()
	got, what, _, err := content(f, testBytes)
	if err != nil || got != wantContent || !strings.Contains(what, wantWhat) {
		t.Errorf("%s: %s, %q, %v", f.Name(), got, what, err)
	}
}

// TestForeign: what others' programs make is seen, and by name.
func TestForeign(t *testing.T) {
	for _, tt := range []struct {
		pkg, what string
		argv      []string
	}{
		{"e2fsprogs", "ext4", []string{"mkfs.ext4", "-q"}},
		{"xfsprogs", "XFS", []string{"mkfs.xfs", "-q"}},
		{"btrfs-progs", "Btrfs", []string{"mkfs.btrfs", "-q"}},
		{"dosfstools", "FAT", []string{"mkfs.vfat", "-F", "32"}},
		{"dosfstools", "FAT", []string{"mkfs.vfat", "-F", "16"}},
		{"util-linux", "swap", []string{"mkswap", "-q"}},
		{"util-linux", "swap", []string{"mkswap", "-q", "-p", "65536"}},
		{"cryptsetup-bin", "LUKS", []string{"cryptsetup", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "/proc/version", "-q"}},
		{"gdisk", "GPT with partitions: 1 theirs, 99 MiB", []string{"sgdisk", "-n", "1:2048:+99M", "-c", "1:theirs"}},
		{"gdisk", "GPT with partitions: 1 theirs", []string{"sgdisk", "-n", "1:2048:+99M", "-c", "1:theirs"}},
		{"fdisk", "MBR with partitions: 1", []string{"sh", "-c", `echo "type=83" | sfdisk -q "$0"`}},
	} {
		t.Run(strings.Join(tt.argv, " "), func(t *testing.T) {
			need.Program(t, tt.argv[0], tt.pkg)
			f := newDisk(t)
			need.Judge(t, append(tt.argv, f.Name())...)
			judge(t, f, install.Other, tt.what)
		})
	}
}

// TestSignatures: those whose programs are not here, by their place and magic.
func TestSignatures(t *testing.T) {
	for _, s := range signatures {
		f, at := newDisk(t), s.offset
		if at < 0 {
			at += testBytes
		}
		if _, err := f.WriteAt([]byte(s.magic), at); err != nil {
			t.Fatal(err)
		}
		judge(t, f, install.Other, s.what)
	}
	raid := "\xfc\x4e\x2b\xa9"
	for _, s := range []signature{{"Linux RAID", testBytes - 8<<10, raid}, {"Linux RAID", testBytes - 64<<10, raid},
		{"ZFS", 128<<10 + 5<<10, string(binary.LittleEndian.AppendUint64(nil, 0x00bab10c))}, {"ZFS", testBytes - 128<<10, string(binary.BigEndian.AppendUint64(nil, 0x00bab10c))}} {
		f := newDisk(t)
		if _, err := f.WriteAt([]byte(s.magic), s.offset); err != nil {
			t.Fatal(err)
		}
		judge(t, f, install.Other, s.what)
	}
}

func TestKimage(t *testing.T) {
	f := newDisk(t)
	judge(t, f, install.Empty, "")
	table := parttable.New(parttable.DeriveGUID("d"))
	if err := table.Write(f, testBytes); err != nil {
		t.Fatal(err)
	}
	judge(t, f, install.Empty, "")
	for i, name := range []string{"root", dataPartition} {
		if _, err := table.Add(parttable.Partition{Name: name, TypeGUID: table.LinuxType(), GUID: parttable.DeriveGUID(name), FirstLBA: uint64(2048 * (i + 1)), LastLBA: uint64(2048*(i+2) - 1)}); err != nil {
			t.Fatal(err)
		}
		if err := table.Write(f, testBytes); err != nil {
			t.Fatal(err)
		}
		judge(t, f, []string{install.Other, install.Kimage}[i], "")
	}
	// Of the table's second copy alone it is not said whose it is.
	b := make([]byte, 1<<20)
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	judge(t, f, install.Other, "the second copy of a GPT")
	rand.Read(b)
	b[0x438], b[0x439] = 0, 0
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b[0x1fe] = 0
	if _, err := f.WriteAt(b, testBytes-1<<20); err != nil {
		t.Fatal(err)
	}
	judge(t, f, install.Other, "") // whatever that is, nobody said that it may go
}

// TestUnknown: what no program knows is somebody's, at either end of a disk; a table without
// partitions is nobody's, and what lies beside it is somebody's again.
func TestUnknown(t *testing.T) {
	for _, tt := range []struct {
		what  string
		at    int64
		table bool
	}{
		{"first MiB", 0, false}, {"first MiB", 1<<20 - 1, false}, {"last MiB", testBytes - 1<<20, false}, {"last MiB", testBytes - 1, false},
		{"first MiB", 34 * 512, true}, {"last MiB", testBytes - 34*512 - 1, true}, {"", 1 << 20, false}, {"", -1, true}, {"", -1, false},
	} {
		f := newDisk(t)
		if tt.table {
			if err := parttable.New(parttable.DeriveGUID("d")).Write(f, testBytes); err != nil {
				t.Fatal(err)
			}
		}
		if tt.at >= 0 {
			if _, err := f.WriteAt([]byte{7}, tt.at); err != nil {
				t.Fatal(err)
			}
		}
		want := install.Empty
		if tt.what != "" {
			want = install.Other
		}
		judge(t, f, want, tt.what)
	}
}

// TestOwner: a data partition on a real disk says whose it is, and is not written to.
func TestOwner(t *testing.T) {
	need.Root(t, "a loop device")
	need.Program(t, "mkfs.ext4", "e2fsprogs")
	f := newDisk(t)
	table := parttable.New(parttable.DeriveGUID("d"))
	if _, err := table.Add(parttable.Partition{Name: dataPartition, TypeGUID: table.LinuxType(), GUID: parttable.DeriveGUID("k"), FirstLBA: 2048, LastLBA: 2048*65 - 1}); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(f, testBytes); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	if err := os.MkdirAll(state+"/state/agent", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state+"/state/agent/owner.json", []byte(`{"clusterUID":"c-1","node":"n-1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	need.Judge(t, "mkfs.ext4", "-q", "-d", state, "-E", "offset=1048576", f.Name(), "64M")
	before, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", f.Name()).CombinedOutput()
	if err != nil {
		need.Missing(t, "no loop device: "+string(out))
	}
	loop := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", loop).Run()
	if _, err := os.Stat(loop + "p1"); err != nil { // a kernel that reads no GPT
		device, err := os.Open(loop)
		if err != nil {
			t.Fatal(err)
		}
		defer device.Close()
		if err := blkpg.Add(device, table.Partitions[0]); err != nil {
			t.Fatal(err)
		}
	}
	d, err := describeDisk("/sys", "/dev", filepath.Base(loop))
	if err != nil || d.Content != install.Kimage || d.Cluster != "c-1" || d.Node != "n-1" || d.What != "" || d.SizeBytes != testBytes || d.SectorBytes != 512 {
		t.Errorf("%+v, %v", d, err)
	}
	after, err := os.ReadFile(f.Name())
	if err != nil || string(before) != string(after) {
		t.Errorf("looking at it changed the disk (%v)", err)
	}
}
