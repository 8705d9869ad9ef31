package install

import (
	"archive/tar"
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/need"
)

func TestParse(t *testing.T) {
	const good = "console=ttyS0 kimage.server=http://10.0.0.1:80 kimage.mac=52-54-00-17-08-0A kimage.ip=10.0.0.11 kimage.netmask=255.255.254.0 kimage.gateway=10.0.0.254\n"
	s, err := parse(good)
	want := settings{"http://10.0.0.1:80", "52:54:00:17:08:0a", netip.MustParsePrefix("10.0.0.11/23"), netip.MustParseAddr("10.0.0.254")}
	if err != nil || s != want {
		t.Errorf("%+v, %v", s, err)
	}
	for _, gateway := range []string{"", "0.0.0.0"} {
		if s, err := parse(strings.ReplaceAll(good, "10.0.0.254", gateway)); err != nil || s.gateway.IsValid() {
			t.Errorf("gateway %q: %+v, %v", gateway, s, err)
		}
	}
	for old, bad := range map[string]string{"http://10.0.0.1:80": "", "52-54-00-17-08-0A": "x", "10.0.0.11": "::1", "255.255.254.0": "255.0.255.0", "kimage.ip": "ip", "10.0.0.254": "gw"} {
		if _, err := parse(strings.Replace(good, old, bad, 1)); err == nil || !strings.Contains(err.Error(), "kimage serve") {
			t.Errorf("%q for %q: %v", bad, old, err)
		}
	}
}

// TestConfigure: the kernel takes the address, in a network of its own.
func TestConfigure(t *testing.T) {
	need.Root(t, "a network namespace")
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		need.Missing(t, "no network namespaces: "+err.Error())
	}
	ip := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %s", args, out)
		}
		return string(out)
	}
	ip("link", "add", "card", "type", "veth", "peer", "name", "other")
	s := settings{address: netip.MustParsePrefix("10.9.0.11/23"), gateway: netip.MustParseAddr("10.9.1.254")}
	for range 2 { // a second attempt finds it done
		if err := configure("card", s); err != nil {
			t.Fatal(err)
		}
	}
	if out := ip("-o", "addr", "show", "card"); !strings.Contains(out, "inet 10.9.0.11/23") {
		t.Error(out)
	}
	if out := ip("route"); !strings.Contains(out, "default via 10.9.1.254 dev card") || !strings.Contains(out, "10.9.0.0/23 dev card") {
		t.Error(out)
	}
	if err := configure("none", s); err == nil {
		t.Error("a card that is not there was configured")
	}
	link, err := net.InterfaceByName("card")
	if err != nil {
		t.Fatal(err)
	}
	if got := findCard("/sys", link.HardwareAddr.String()); got != "" && got != "card" { // /sys is the host's
		t.Errorf("found %q", got)
	}
}

func config(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = 6
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, "secret")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpackConfig(t *testing.T) {
	point := t.TempDir()
	data := config(t, tar.Header{Name: "user-data", Typeflag: tar.TypeReg, Mode: 0o600}, tar.Header{Name: "d/meta-data", Typeflag: tar.TypeReg, Mode: 0o644}, tar.Header{Name: "../../../out", Typeflag: tar.TypeReg, Mode: 0o600})
	for range 2 {
		if err := unpackConfig(data, point, "/var/lib/cloud/seed/nocloud"); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]os.FileMode{}
	filepath.Walk(point, func(p string, fi os.FileInfo, err error) error {
		got[strings.TrimPrefix(p, point)] = fi.Mode().Perm()
		return err
	})
	const seed = "/var/lib/cloud/seed/nocloud"
	want := map[string]os.FileMode{"": 0o755, "/var": 0o755, "/var/lib": 0o755, "/var/lib/cloud": 0o755, "/var/lib/cloud/seed": 0o755, seed: 0o700,
		seed + "/user-data": 0o600, seed + "/d": 0o755, seed + "/d/meta-data": 0o644, seed + "/out": 0o600}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, bad := range map[string][]byte{"a link": config(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}), "nothing": config(t), "no tar": []byte(strings.Repeat("x", 2000))} {
		if err := unpackConfig(bad, t.TempDir(), "/"); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	// At the top of a file system, as Ignition's is.
	top := t.TempDir()
	if err := unpackConfig(config(t, tar.Header{Name: "config.ign", Typeflag: tar.TypeReg, Mode: 0o600}), top, ""); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(filepath.Join(top, "config.ign")); err != nil || fi.Mode() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	// A link of the image's that leads out of it is not followed.
	out := t.TempDir()
	if err := os.Symlink(out, filepath.Join(point, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := unpackConfig(data, point, "/etc"); err == nil {
		t.Error("a link out of the file system was followed")
	}
}

// TestDisks: of what a kernel shows, only a machine's own disks, with udev's names.
func TestDisks(t *testing.T) {
	sys := t.TempDir()
	put := func(file, content string) {
		t.Helper()
		file = filepath.Join(sys, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk := func(dir string, files map[string]string) {
		t.Helper()
		put(dir+"/size", "2048\n")
		put(dir+"/device/x", "")
		for name, content := range files {
			put(dir+"/"+name, content)
		}
		if err := os.MkdirAll(sys+"/block", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(sys, dir), filepath.Join(sys, "block", filepath.Base(dir))); err != nil {
			t.Fatal(err)
		}
	}
	page := bytes.Repeat([]byte{0}, 572)
	swap := func(word int, s string, n int) {
		for i := range n {
			c := byte(' ')
			if i < len(s) {
				c = s[i]
			}
			page[60+2*word+i^1] = c
		}
	}
	swap(27, "QEMU HARDDISK", 40)
	swap(10, "QM00001", 20)
	const ata = "devices/pci0000:00/0000:00:1f.2/ata3"
	put(ata+"/ata_port/ata3/port_no", "1\n")
	disk("devices/pci0000:00/0000:00:04.0/virtio1/block/vda", map[string]string{"serial": "disk 1"})
	disk("devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0/nvme0n1", map[string]string{"device/model": "Fast  SSD   \n", "device/serial": "N1", "wwid": "eui.0025385b01"})
	disk(ata+"/host2/target2:0:0/2:0:0:0/block/sda", map[string]string{"device/vpd_pg89": string(page), "device/wwid": "naa.5000c500a1b2c3d4"})
	disk("devices/pci0000:00/0000:00:14.0/usb1/1-1/host9/block/sdb", nil)
	disk("devices/pci0000:00/0000:00:15.0/host3/block/sdc", map[string]string{"removable": "1"})
	disk("devices/pci0000:00/0000:00:15.0/host3/block/sr0", nil)
	disk("devices/platform/mmc/mmcblk0", nil)
	disk("devices/platform/mmc/mmcblk0boot0", nil)
	disk("devices/platform/mmc/mmcblk1", map[string]string{"size": "0"})
	put("block/loop0/size", "2048")
	if diff := cmp.Diff([]string{"mmcblk0", "nvme0n1", "sda", "vda"}, disks(sys)); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string][]string{
		"vda":     {"by-id/virtio-disk_1", "by-path/pci-0000:00:04.0", "by-path/virtio-pci-0000:00:04.0"},
		"nvme0n1": {"by-id/nvme-eui.0025385b01", "by-id/nvme-Fast_SSD_N1", "by-path/pci-0000:01:00.0-nvme-1"},
		"sda":     {"by-id/ata-QEMU_HARDDISK_QM00001", "by-id/wwn-0x5000c500a1b2c3d4", "by-path/pci-0000:00:1f.2-ata-1"},
		"mmcblk0": nil,
	} {
		for i := range want {
			want[i] = "/dev/disk/" + want[i]
		}
		if diff := cmp.Diff(want, links(sys, name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if got := serial(sys + "/block/sda"); got != "QM00001" {
		t.Errorf("serial number %q", got)
	}
}

func TestModules(t *testing.T) {
	sys := t.TempDir()
	for file, alias := range map[string]string{"a/modalias": "pci:v1d2sv3sd4bc02sc00i00\n", "b/modalias": "pci:v1d2sv3sd4bc03sc00i00\n", "c/modalias": "virtio:d1v2\n", "d/modalias": "virtio:d1v2\n", "e/modalias": "\n"} {
		file = filepath.Join(sys, "devices", file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(alias), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := modules{sys: sys}
	got, err := m.fresh()
	if diff := cmp.Diff([]string{"pci:v1d2sv3sd4bc02sc00i00", "virtio:d1v2"}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if again, err := m.fresh(); err != nil || again != nil {
		t.Errorf("tried again: %v, %v", again, err)
	}
}

// TestScreen: what is said is on every console, and one that takes nothing holds up nobody.
func TestScreen(t *testing.T) {
	var ends [2][2]int
	for i := range ends {
		if err := unix.Pipe2(ends[i][:], unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ends[i][0])
		defer unix.Close(ends[i][1])
	}
	for { // this one is full
		if _, err := unix.Write(ends[0][1], make([]byte, 4096)); err != nil {
			break
		}
	}
	s := &screen{consoles: []int{ends[0][1], ends[1][1]}}
	s.line("a line")
	s.line("another")
	s.say("said: %d", 1)
	s.big("the disk is another's: choose it with --disk, or wipe it \x1b[2J")
	b := make([]byte, 8192)
	n, err := unix.Read(ends[1][0], b)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b[:n])
	for _, want := range []string{"\ranother\x1b[K\r\nsaid: 1\r\n", "NOT INSTALLED", "##  the disk is another's: choose it with --disk, or wipe it ?[2J", "\r\n####"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}

func TestChanged(t *testing.T) {
	d := install.Disk{Name: "vda", Content: install.Empty, Paths: []string{"a"}}
	e := d
	if e.Content = install.Other; changed(d, d) != "" || changed(d, e) == "" {
		t.Error("a disk that changed is written to")
	}
}

func TestProgressText(t *testing.T) {
	before := install.Progress{Phase: install.Writing, Done: 100 << 20, Total: 1000 << 20}
	now := before
	now.Done, now.Error = 300<<20, "no link"
	if got := progressText(now, before); got != "writing 300 of 1000 MiB (30 %), 100 MiB/s: no link" {
		t.Error(got)
	}
}
