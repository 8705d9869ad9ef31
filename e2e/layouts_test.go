//go:build e2e

package e2e

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/qemu"
)

const mebibyte = 1 << 20

// part is a partition of a vendor's disk.
type part struct {
	number    int
	mebibytes int64
	kind      string // its type's GUID
	name      string
	make      []string // makes its file system in the file that is appended; nil: it has random bytes
}

// vendorDisk is a disk with these partitions, side by side.
func vendorDisk(t *testing.T, parts []part) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "vendor.raw")
	total := int64(2)
	for _, p := range parts {
		total += p.mebibytes
	}
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(total * mebibyte); err != nil {
		t.Fatal(err)
	}
	need.Judge(t, "sgdisk", "--clear", "--disk-guid=00000000-0000-4000-A000-000000000001", disk)
	first := int64(1)
	for _, p := range parts {
		need.Judge(t, "sgdisk", fmt.Sprintf("--new=%d:%d:%d", p.number, first*2048, (first+p.mebibytes)*2048-1), fmt.Sprintf("--typecode=%d:%s", p.number, p.kind), fmt.Sprintf("--change-name=%d:%s", p.number, p.name), disk)
		fs := filepath.Join(t.TempDir(), "fs")
		if p.make == nil {
			b := make([]byte, p.mebibytes*mebibyte)
			rand.Read(b)
			err = os.WriteFile(fs, b, 0o600)
		} else if err = os.WriteFile(fs, nil, 0o600); err == nil {
			if err = os.Truncate(fs, p.mebibytes*mebibyte); err == nil {
				need.Judge(t, append(p.make[:len(p.make):len(p.make)], fs)...)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		need.Judge(t, "dd", "if="+fs, "of="+disk, "bs=1M", fmt.Sprintf("seek=%d", first), "conv=notrunc,sparse", "status=none")
		first += p.mebibytes
	}
	return disk
}

// TestLayouts: images are baked onto the layouts that vendors' disks have; most of their
// roots nothing but their kernel may edit.
func TestLayouts(t *testing.T) {
	const (
		bios = "21686148-6449-6E6F-744E-656564454649"
		efi  = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
		boot = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
		prep = "9E1A2D38-C612-4316-AA26-8B49521E5A8B"
		data = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
		root = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	)
	vfat := []string{"mkfs.vfat", "-n", "EFI-SYSTEM"}
	xfs := func(label string) []string { return []string{"mkfs.xfs", "-q", "-L", label} }
	ubuntu := t.TempDir()
	for file, text := range map[string]string{"usr/lib/os-release": "ID=ubuntu\nVERSION_ID=\"26.04\"\n", "usr/lib/x86_64-linux-gnu/libcryptsetup.so.12": ""} {
		at := filepath.Join(ubuntu, file)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		os    string
		parts []part
		want  layout
	}{
		{"ubuntu-26.04", []part{
			{14, 4, bios, "", nil},
			{15, 106, efi, "", []string{"mkfs.vfat", "-n", "UEFI"}},
			{13, 1023, boot, "", []string{"mkfs.ext4", "-q", "-L", "BOOT"}},
			{1, 2400, data, "", []string{"mkfs.ext4", "-q", "-L", "cloudimg-rootfs", "-d", ubuntu}},
		}, layout{[]int{1, 13, 14, 15}, 1, 2, 6, true}},
		{"rocky-10", []part{
			{1, 99, efi, "p.UEFI", vfat},
			{2, 1000, boot, "p.lxboot", xfs("boot")},
			{3, 4, prep, "p.prep", nil},
			{4, 1, bios, "p.legacy", nil},
			{5, 2000, root, "p.lxroot", xfs("rocky")},
		}, layout{[]int{1, 2, 3, 4, 5}, 5, 6, 10, false}},
		{"almalinux-9", []part{
			{1, 1, bios, "biosboot", nil},
			{2, 200, efi, "EFI System Partition", vfat},
			{3, 512, data, "boot", xfs("boot")},
			{4, 2000, data, "root", xfs("root")},
		}, layout{[]int{1, 2, 3, 4}, 4, 5, 10, false}},
		{"fedora-coreos-stable", []part{
			{1, 1, bios, "BIOS-BOOT", nil},
			{2, 127, efi, "EFI-SYSTEM", vfat},
			{3, 384, boot, "boot", []string{"mkfs.ext4", "-q", "-L", "boot", "-U", "96d15588-3596-4b3c-adca-a2ff7279ea63"}},
			{4, 2000, data, "root", append(xfs("root"), "-m", "uuid=910678ff-f77e-4a7d-8d53-86f2ac47a823")},
		}, layout{[]int{1, 2, 3, 4}, 4, 5, 10, false}},
	} {
		t.Run(tt.os, func(t *testing.T) {
			if tt.os != "rocky-10" {
				enough(t, 2, "make e2e") // one of them is enough for CI
			}
			disk := vendorDisk(t, tt.parts)
			keepsVendors(t, disk, bakeOnto(t, nil, "--os", tt.os, "--base", disk), tt.want)
		})
	}
}

// TestCentOSLike: as TestUbuntuLike, where the disk has an MBR and the root is xfs, which
// is not edited: what activates Kubernetes comes with the first boot.
func TestCentOSLike(t *testing.T) {
	enough(t, 2, "make e2e")
	disk := lookalike(t, "centos")
	baked := bakeOnto(t, nil, "--os", "centos-stream-10", "--base", disk)
	was, is := need.Judge(t, "sfdisk", "--dump", disk), need.Judge(t, "sfdisk", "--dump", baked)
	vendors := strings.ReplaceAll(strings.TrimSpace(was), disk, baked)
	if !strings.HasPrefix(is, vendors+"\n") || strings.Count(is, "start=") != 2 {
		t.Errorf("the table was\n%s\nand is\n%s", was, is)
	}
	// All but the table itself.
	const sector, table = 512, 446
	if fi, err := os.Stat(disk); err != nil || !same(t, disk, baked, 0, table) || !same(t, disk, baked, sector, fi.Size()-sector) {
		t.Errorf("the vendor's bytes have changed (%v)", err)
	}
	key := newKey(t)
	dir := configs(t, "centos-stream-10", key.Public, "", "--seed")
	started := time.Now()
	n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), Image: baked, MemoryMiB: 4096, Seed: filepath.Join(dir, "nodes/k8s-01/seed.iso")}, "cloud-user", key)
	n.becomesReady(started)
	out := n.must("for at in / /var/lib/kimage; do findmnt -no SOURCE,FSTYPE $at; done; df --output=size -BG / /var/lib/kimage | tail -2", time.Minute)
	if got := strings.Join(strings.Fields(out), " "); got != "/dev/vda1 xfs /dev/vda2 ext4 10G 10G" {
		t.Errorf("file systems, and the sizes that they grew to: %s", got)
	}
	// Now it is activated while it boots.
	n.reboot()
	n.must("kimage-agent status --wait ready --timeout 10m", 11*time.Minute)
}
