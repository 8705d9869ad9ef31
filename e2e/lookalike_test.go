//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// userland is the base that kimage made from Debian 13's packages, without anything of
// kimage's in it: its root file system starts at a fixed place.
func userland(t *testing.T) string {
	t.Helper()
	lists, err := filepath.Glob(filepath.Join(need.Cache(t), "entries/base/*/packages"))
	if err != nil {
		t.Fatal(err)
	}
	newest, at := "", time.Time{}
	for _, list := range lists {
		fi, err := os.Stat(list)
		data, rerr := os.ReadFile(list)
		if err == nil && rerr == nil && bytes.Contains(data, []byte("\nbase-files 13")) && fi.ModTime().After(at) {
			newest, at = filepath.Join(filepath.Dir(list), "disk.raw"), fi.ModTime()
		}
	}
	if newest == "" {
		need.Missing(t, "no base of Debian 13 in the cache: kimage build --os debian-13 --base packages puts it there")
	}
	return newest
}

// lookalike is a disk image with the partition table, file systems, labels and GUIDs of a
// vendor's, and Debian inside.
func lookalike(t *testing.T, vendor string) string {
	t.Helper()
	base := userland(t)
	h := sha256.New()
	err := filepath.WalkDir("lookalike", func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		fmt.Fprintf(h, "%s %d\n%s", p, len(data), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tool(t, func(dir string) {
		started := time.Now()
		root := filepath.Join(t.TempDir(), "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		const offset = 262144 * 512
		need.Judge(t, "debugfs", "-R", "rdump / "+root, fmt.Sprintf("%s?offset=%d", base, offset))
		switch vendor {
		case "flatcar":
			need.Judge(t, "cp", "-a", dracutPackages(t)+"/.", root)
		case "centos":
			need.Judge(t, "cp", "-a", unpacked(t, "xfs", "xfsprogs", "liburcu8t64", "libinih1", "fdisk")+"/.", root)
		}
		// What it mounts is gone with it, however it ends.
		need.Judge(t, "unshare", "--mount", "--propagation", "private", "bash", "lookalike/make.sh", vendor, root, filepath.Join(dir, "disk.raw"))
		if vendor == "flatcar" {
			need.Judge(t, "qemu-img", "convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2"))
		}
		t.Logf("made in %s", time.Since(started).Round(time.Second))
	}, "lookalike-"+vendor, hex.EncodeToString(h.Sum(nil)), base) + "/disk.raw"
}

// flatcarServer has a lookalike as Flatcar's image for QEMU, and its live system.
func flatcarServer(t *testing.T, disk string) *need.FlatcarServer {
	t.Helper()
	artifacts := map[string][]byte{}
	for name, kind := range map[string]string{"flatcar_production_qemu_image.img": "qcow2", "flatcar_production_pxe.vmlinuz": "vmlinuz", "flatcar_production_pxe_image.cpio.gz": "cpio.gz"} {
		data, err := os.ReadFile(strings.TrimSuffix(disk, "raw") + kind)
		if err != nil {
			t.Fatal(err)
		}
		artifacts[name] = data
	}
	s := need.NewFlatcarServer(t, "..")
	s.Publish("4800.2.0", need.Day(-1), artifacts)
	return s
}

// bakeOnto bakes a raw image, which kimage verifies, and returns it.
func bakeOnto(t *testing.T, env []string, args ...string) (file string) {
	t.Helper()
	out := t.TempDir()
	cmd := exec.Command("../bin/kimage", append([]string{"build", "--format", "raw", "--json", "--lock", filepath.Join(out, "kimage.lock"), "-o", out}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	var words bytes.Buffer
	cmd.Stderr = &words
	data, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, words.String())
	}
	t.Logf("%s", words.String())
	defer func() { need.Judge(t, "../bin/kimage", "verify", file) }()
	var r struct{ Artifacts []struct{ Path string } }
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return r.Artifacts[0].Path
}

// layout is what a vendor's GPT has.
type layout struct {
	partitions   []int
	root, kimage int   // numbers: of the root, and that which KIMAGE gets
	rootGiB      int64 // room that the root has to have
	edited       bool  // the root's content may differ: it has activation files
}

// keepsVendors: foreign judges find the vendor's partitions in the baked image as they were,
// and KIMAGE behind the room that the root may grow into.
func keepsVendors(t *testing.T, before, after string, l layout) {
	t.Helper()
	need.Judge(t, "sgdisk", "-v", after)
	for _, n := range l.partitions {
		ask := fmt.Sprintf("--info=%d", n)
		was, is := need.Judge(t, "sgdisk", ask, before), need.Judge(t, "sgdisk", ask, after)
		if was != is {
			t.Errorf("partition %d was\n%s\nand is\n%s", n, was, is)
		}
		first, size := sectors(t, was)
		if n == l.root && l.edited {
			need.Judge(t, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", after, first*512))
		} else if !same(t, before, after, first*512, size*512) {
			t.Errorf("partition %d has other content", n)
		}
	}
	first, size := sectors(t, need.Judge(t, "sgdisk", fmt.Sprintf("--info=%d", l.root), after))
	data := need.Judge(t, "sgdisk", fmt.Sprintf("--info=%d", l.kimage), after)
	begin, _ := sectors(t, data)
	if !strings.Contains(data, "Partition name: 'KIMAGE'") || begin < first+l.rootGiB<<30/512 || begin < first+size {
		t.Errorf("the root begins at sector %d with %d of them; partition %d is\n%s", first, size, l.kimage, data)
	}
	need.Judge(t, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", after, begin*512))
}

var sectorsSaid = regexp.MustCompile(`First sector: (\d+)[\s\S]*Partition size: (\d+) sectors`)

func sectors(t *testing.T, info string) (first, size int64) {
	t.Helper()
	m := sectorsSaid.FindStringSubmatch(info)
	if m == nil {
		t.Fatalf("sgdisk says\n%s", info)
	}
	fmt.Sscan(m[1], &first)
	fmt.Sscan(m[2], &size)
	return first, size
}

// same compares a part of two files.
func same(t *testing.T, a, b string, offset, size int64) bool {
	t.Helper()
	var sums [2][32]byte
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		_, err = io.Copy(h, io.NewSectionReader(f, offset, size))
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		h.Sum(sums[i][:0])
	}
	return sums[0] == sums[1]
}

// becomesReady waits, and looks at what every machine promises.
func (n *node) becomesReady(started time.Time) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), slack*15*time.Minute)
	defer cancel()
	if err := n.awaitReady(ctx); err != nil {
		r, _ := n.try("kimage-agent status; journalctl -u kimage-agent -o cat --no-pager | tail -n 30", 2*time.Minute)
		n.t.Fatalf("%v\n%s", err, r.Stdout)
	}
	n.t.Logf("Ready %s after power-on", time.Since(started).Round(time.Second))
	n.until(" Ready ", kubectl+"get nodes --no-headers", time.Minute)
	if failed := n.must("systemctl --failed --no-legend --plain", time.Minute); failed != "" {
		n.t.Errorf("units failed:\n%s", failed)
	}
	if r, err := n.try("touch /usr/bin/x", time.Minute); err != nil || r.Status == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
		n.t.Errorf("touch /usr/bin/x: %+v, %v", r, err)
	}
}

// TestFlatcarLike: kimage build --os coreos-stable finds, verifies and downloads what a
// server like Flatcar's has; of it all that is Flatcar's stays, and with what kimage config
// wrote a machine with it becomes a cluster by itself.
func TestFlatcarLike(t *testing.T) {
	enough(t, 2, "make e2e") // in CI TestGCEFlatcar boots one
	disk := lookalike(t, "flatcar")
	server := flatcarServer(t, disk)
	baked := bakeOnto(t, []string{"KIMAGE_OS_PATH=" + server.OSPath}, "--os", "coreos-stable", "--for", "qemu", "--mirror", server.Mirror)
	keepsFlatcars(t, disk, baked)
	key := newKey(t)
	dir := configs(t, "flatcar-stable", key.Public, "    butane: snippet.bu\n")
	config := filepath.Join(dir, "nodes/k8s-01/config.ign")
	started := time.Now()
	n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), Image: baked, MemoryMiB: 4096,
		FwCfg: map[string]string{"opt/com.coreos/config": config, "opt/org.flatcar-linux/config": config}}, "core", key)
	n.becomesReady(started)
	n.told(true)
	if got := n.must("cat /etc/systemd/network/10-kimage.network /etc/added", time.Minute); !strings.Contains(got, qemu.MAC) || !strings.HasSuffix(got, "by people") {
		t.Error(got)
	}
	n.flatcar("overlay")
}

// keepsFlatcars is keepsVendors for Flatcar's lookalike.
func keepsFlatcars(t *testing.T, before, after string) {
	t.Helper()
	keepsVendors(t, before, after, layout{[]int{1, 2, 3, 4, 6, 7, 9}, 9, 5, 6, true})
	if out := need.Judge(t, "sgdisk", "--info=3", after); !strings.Contains(out, "Attribute flags: 0101000000000000") {
		t.Error(out)
	}
}

// What is Flatcar's about a machine works on: its /etc is one kind of overlay or the other.
const (
	flatcarAsks = "findmnt -no SOURCE,FSTYPE /etc; veritysetup status usr | grep status: ; test -e /usr/share/flatcar-runtime || echo no runtime of its own; readlink /etc/extensions/docker-flatcar.raw; systemctl is-enabled locksmithd.service update-engine.service || true"
	flatcarSays = " overlay\n  status:      verified\nno runtime of its own\n/dev/null\nmasked\nmasked"
)

func (n *node) flatcar(etc string) {
	n.t.Helper()
	if out := n.must(flatcarAsks, time.Minute); out != etc+flatcarSays {
		n.t.Errorf("%s: %s", etc, out)
	}
}

// TestFlatcarConfext: as TestFlatcarLike, where /etc is a configuration extension and system
// extensions are merged before the root is switched to, as Flatcar does from 4757 on.
func TestFlatcarConfext(t *testing.T) {
	enough(t, 2, "make e2e")
	disk := lookalike(t, "flatcar")
	server := flatcarServer(t, disk)
	baked := bakeOnto(t, []string{"KIMAGE_OS_PATH=" + server.OSPath}, "--os", "coreos-stable", "--for", "qemu", "--mirror", server.Mirror)
	// The boot loader would read its command line from the vendor's partition.
	dir := t.TempDir()
	first, _ := sectors(t, need.Judge(t, "sgdisk", "--info=1", baked))
	esp := fmt.Sprintf("%s@@%d", baked, first*512)
	for _, name := range []string{"flatcar/vmlinuz-a", "flatcar/initrd", "grub/grub.cfg"} {
		need.Judge(t, "mcopy", "-i", esp, "::/"+name, dir)
	}
	config, err := os.ReadFile(filepath.Join(dir, "grub.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^linux \S+ (.*) \$first$`).FindSubmatch(config)
	if line == nil {
		t.Fatalf("no command line in\n%s", config)
	}
	key := newKey(t)
	told := filepath.Join(configs(t, "flatcar-stable", key.Public, ""), "nodes/k8s-01/config.ign")
	started := time.Now()
	n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), Image: baked, MemoryMiB: 4096, Kernel: filepath.Join(dir, "vmlinuz-a"), Initrd: filepath.Join(dir, "initrd"),
		Append: strings.ReplaceAll(string(line[1]), "$platform", "qemu") + " ignition.firstboot lookalike.etc=confext",
		FwCfg:  map[string]string{"opt/com.coreos/config": told}}, "core", key)
	n.becomesReady(started)
	n.told(true)
	n.flatcar("confext")
}

// keepsUbuntus is keepsVendors for Ubuntu's lookalike.
func keepsUbuntus(t *testing.T, before, after string) {
	t.Helper()
	keepsVendors(t, before, after, layout{[]int{1, 14, 15, 16}, 1, 2, 6, true})
}

// Where Ubuntu's file systems are, and the size that its root grew to.
const (
	ubuntuAsks = "for at in / /boot /boot/efi; do findmnt -no SOURCE $at; done; df --output=size -BG / | tail -1"
	ubuntuSays = "/dev/vda1 /dev/vda16 /dev/vda15 6G"
)

// TestUbuntuLike: as TestFlatcarLike, of Ubuntu's layout and its own first boot; the image
// is a file. At last its payload is damaged.
func TestUbuntuLike(t *testing.T) {
	enough(t, 2, "make e2e") // in CI TestServeUbuntu boots one
	disk := lookalike(t, "ubuntu")
	baked := bakeOnto(t, nil, "--os", "ubuntu-24.04", "--base", disk)
	keepsUbuntus(t, disk, baked)
	key := newKey(t)
	dir := configs(t, "ubuntu-24.04", key.Public, "", "--seed")
	started := time.Now()
	n := bootWith(t, qemu.Config{Dir: filepath.Join(t.TempDir(), "node"), Image: baked, MemoryMiB: 4096, Seed: filepath.Join(dir, "nodes/k8s-01/seed.iso")}, "ubuntu", key)
	n.becomesReady(started)
	n.told(true)
	n.must("cloud-init status --long", time.Minute)
	if got := strings.Join(strings.Fields(n.must(ubuntuAsks, time.Minute)), " "); got != ubuntuSays {
		t.Errorf("file systems, and the size that the root grew to: %s", got)
	}
	n.flippedByte()
}
