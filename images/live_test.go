package images

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/images/vendors"
	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/parttable"
)

const (
	pxeKernel = "flatcar_production_pxe.vmlinuz"
	pxeInitrd = "flatcar_production_pxe_image.cpio.gz"
)

// liveOf asks what a server has for its live system.
func liveOf(t *testing.T, s *need.FlatcarServer, c *cache.Cache, lock, mode string) (Live, error) {
	t.Helper()
	t.Setenv(OwnOSes, s.OSPath)
	b, err := New(Config{OS: "flatcar-stable", For: "metal", Mirror: s.Mirror, Lock: lock, LockMode: mode, Cache: c})
	if err != nil {
		t.Fatal(err)
	}
	return b.Live(t.Context())
}

func openCache(t *testing.T) *cache.Cache {
	t.Helper()
	c, err := cache.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestLive: a live system is taken when its vendor signed both files; it is pinned, and what
// is pinned stays until it is asked for anew.
func TestLive(t *testing.T) {
	s := need.NewFlatcarServer(t, "..")
	s.Publish("4800.2.0", need.Day(-3), map[string][]byte{pxeKernel: []byte("kernel"), pxeInitrd: []byte("initramfs")})
	c, lock := openCache(t), filepath.Join(t.TempDir(), LockFile)
	l, err := liveOf(t, s, c, lock, LockEnforce)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err1 := os.ReadFile(l.Kernel)
	initrd, err2 := os.ReadFile(l.Initrd)
	if err := errors.Join(err1, err2); err != nil || l.Version != "4800.2.0" || string(kernel) != "kernel" || string(initrd) != "initramfs" {
		t.Errorf("%+v: %s, %s, %v", l, kernel, initrd, err)
	}
	pinned, err := os.ReadFile(lock)
	if err != nil || !strings.Contains(string(pinned), "flatcar-stable/amd64/live-initrd") || !strings.Contains(string(pinned), s.Vendor.Fingerprint) {
		t.Errorf("%s, %v", pinned, err)
	}
	s.Publish("4810.2.0", need.Day(-1), map[string][]byte{pxeKernel: []byte("kernel 2"), pxeInitrd: []byte("initramfs 2")})
	for mode, want := range map[string]string{LockFixed: "4800.2.0", LockEnforce: "4800.2.0"} {
		if l, err := liveOf(t, s, c, lock, mode); err != nil || l.Version != want {
			t.Errorf("mode %q: %+v, %v", mode, l, err)
		}
	}
	if l, err := liveOf(t, s, c, lock, LockUpdate); err != nil || l.Version != "4810.2.0" {
		t.Errorf("asked anew: %+v, %v", l, err)
	}
	other := filepath.Join(t.TempDir(), LockFile)
	put(t, other, "apiVersion: "+APIVersion+"\nkind: Lock\n")
	if _, err := liveOf(t, s, c, other, LockFixed); !errors.Is(err, ErrLock) || !strings.Contains(err.Error(), "live-kernel") {
		t.Errorf("what no lock pins was taken: %v", err)
	}
}

// TestLiveRefused: of what a server may have, nothing else counts.
func TestLiveRefused(t *testing.T) {
	const at = "stable.release.flatcar-linux.net/amd64-usr/4800.2.0/"
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"another kernel":    {func(t *testing.T, dir string) { put(t, dir+pxeKernel, "X") }, "does not match its checksum"},
		"another initramfs": {func(t *testing.T, dir string) { put(t, dir+pxeInitrd, "X") }, "does not match its checksum"},
		"not signed":        {func(t *testing.T, dir string) { remove(t, dir+pxeInitrd+".sig") }, "cannot be fetched"},
		"another's signature": {func(t *testing.T, dir string) {
			put(t, dir+pxeKernel+".sig", string(need.NewSigner(t, need.Day(-30)).Sign(need.Day(-2), []byte("kernel"))))
		}, "not signed by a valid key"},
		"no such file": {func(t *testing.T, dir string) { remove(t, dir+pxeKernel) }, "cannot be fetched"},
	} {
		t.Run(name, func(t *testing.T) {
			s := need.NewFlatcarServer(t, "..")
			s.Publish("4800.2.0", need.Day(-2), map[string][]byte{pxeKernel: []byte("kernel"), pxeInitrd: []byte("initramfs")})
			tt.spoil(t, filepath.Join(s.Mirror, at)+"/")
			lock := filepath.Join(t.TempDir(), LockFile)
			if l, err := liveOf(t, s, openCache(t), lock, LockEnforce); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v", l, err)
			}
			if _, err := os.Stat(lock); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something is pinned: %v", err)
			}
		})
	}
}

// TestLiveOfOneVersion: drivers of another version than the kernel's are refused.
func TestLiveOfOneVersion(t *testing.T) {
	s := need.NewFlatcarServer(t, "..")
	lock := filepath.Join(t.TempDir(), LockFile)
	s.Publish("4800.2.0", need.Day(-3), map[string][]byte{pxeKernel: []byte("kernel"), pxeInitrd: []byte("initramfs")})
	c := openCache(t)
	if _, err := liveOf(t, s, c, lock, LockEnforce); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	before, after, _ := bytes.Cut(data, []byte("version: 4800.2.0"))
	put(t, lock, string(before)+"version: 4790.2.0"+string(after))
	if _, err := liveOf(t, s, c, lock, LockEnforce); err == nil || !strings.Contains(err.Error(), "kernel of 4800.2.0 and an initramfs of 4790.2.0") {
		t.Error(err)
	}
}

func put(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// TestInstalls: every channel of Flatcar is installed over the network, as are systems with
// cloud-init and a root that can be edited; the others are refused with those that are not.
func TestInstalls(t *testing.T) {
	all, err := OSes()
	if err != nil {
		t.Fatal(err)
	}
	got := map[bool][]string{}
	for _, o := range all {
		err := o.Installs()
		got[err == nil] = append(got[err == nil], o.Name)
		if err != nil && (!strings.Contains(err.Error(), "debian-13") || !strings.Contains(err.Error(), "kimage config")) {
			t.Error(err)
		}
	}
	want := map[bool][]string{
		true:  {"debian-12", "debian-13", "flatcar-alpha", "flatcar-beta", "flatcar-lts", "flatcar-stable", "ubuntu-22.04", "ubuntu-24.04", "ubuntu-26.04"},
		false: {"almalinux-10", "almalinux-9", "centos-stream-10", "centos-stream-9", "fedora-coreos-next", "fedora-coreos-stable", "fedora-coreos-testing", "rocky-10", "rocky-9"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestSeedPlace: a machine's config goes where its system looks first.
func TestSeedPlace(t *testing.T) {
	table := parttable.New(parttable.DeriveGUID("disk"))
	for i, name := range []string{"EFI-SYSTEM", "OEM", "ROOT"} {
		first := uint64(i+1) * 2048
		if _, err := table.Add(parttable.Partition{Name: name, TypeGUID: table.LinuxType(), GUID: parttable.DeriveGUID(name), FirstLBA: first, LastLBA: first + 2047}); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]install.Place{"debian-13": {Partition: 3, Type: "ext4", Directory: "var/lib/cloud/seed/nocloud"}, "flatcar-stable": {Partition: 2, Type: "btrfs"}} {
		if got, err := seedPlace(table, name, 3); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := seedPlace(parttable.New(parttable.DeriveGUID("disk")), "flatcar-stable", 3); err == nil || !strings.Contains(err.Error(), "OEM") {
		t.Error(err)
	}
}

// TestLiveOfOSFiles: what is half a live system is no OS file.
func TestLiveOfOSFiles(t *testing.T) {
	for _, live := range []vendors.Live{{Kernel: "https://example.com/kernel"}, {Initrd: "https://example.com/initrd"}} {
		o, err := FindOS("flatcar-stable")
		if err != nil {
			t.Fatal(err)
		}
		o.Vendor.Live = live
		if err := o.Vendor.Check(); err == nil || !strings.Contains(err.Error(), "vendor.live") {
			t.Errorf("%+v: %v", live, err)
		}
	}
}
