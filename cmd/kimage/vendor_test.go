package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/need"
)

// buildFlatcar runs kimage build --os coreos-stable with what a server has.
func buildFlatcar(t *testing.T, s *need.FlatcarServer, f fixture, cache, out string, more ...string) (stdout, stderr string, status int) {
	t.Helper()
	args := []string{"build", "--os", "coreos-stable", "--components", f.mirror, "--agent", f.agent, "--images", "none", "--cache", cache, "--mirror", s.Mirror,
		"--lock", filepath.Join(out, "kimage.lock"), "-o", out}
	cmd := command(append(args, more...)...)
	cmd.Env = append(cmd.Env, "KIMAGE_OS_PATH="+s.OSPath)
	return finish(t, cmd)
}

func output(t *testing.T, in []byte, argv ...string) []byte {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	return out
}

// TestVendorImage: of Flatcar's layout nothing is lost, by sgdisk's and e2fsck's word; each
// platform has its own artifact, in the vendor's container, and the format that fits.
func TestVendorImage(t *testing.T) {
	f, cache := fixtures(t), t.TempDir()
	raw, err := os.ReadFile(f.flatcar)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	if err := os.Symlink(f.flatcar, disk); err != nil {
		t.Fatal(err)
	}
	need.Judge(t, "qemu-img", "convert", "-O", "qcow2", "-c", disk, filepath.Join(dir, "qcow2"))
	need.Judge(t, "qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed,force_size", disk, filepath.Join(dir, "vhd"))
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	s := need.NewFlatcarServer(t, "../..")
	s.Publish("4800.2.0", need.Day(-1), map[string][]byte{
		"flatcar_production_image.bin.bz2":       output(t, raw, "bzip2", "-1"),
		"flatcar_production_qemu_image.img":      read("qcow2"),
		"flatcar_production_gce.tar.gz":          output(t, nil, "tar", "--format=oldgnu", "-Szcf", "-", "-C", dir, "--dereference", "disk.raw"),
		"flatcar_production_azure_image.vhd.bz2": output(t, read("vhd"), "bzip2", "-1"),
		"flatcar_production_openstack_image.img": read("qcow2"),
		"flatcar_production_ami_image.bin.bz2":   output(t, raw, "bzip2", "-1"),
	})
	for platform, want := range map[string]struct{ artifact, format string }{
		"": {"flatcar_production_image.bin.bz2", "raw"}, "metal": {"flatcar_production_image.bin.bz2", "raw"}, "qemu": {"flatcar_production_qemu_image.img", "qcow2"},
		"vagrant": {"flatcar_production_qemu_image.img", "vagrant-libvirt"}, "gce": {"flatcar_production_gce.tar.gz", "gce"}, "azure": {"flatcar_production_azure_image.vhd.bz2", "vhd"},
		"aws": {"flatcar_production_ami_image.bin.bz2", "raw"}, "openstack": {"flatcar_production_openstack_image.img", "qcow2"},
	} {
		t.Run("for "+platform, func(t *testing.T) {
			out := t.TempDir()
			text, errOut, status := buildFlatcar(t, s, f, cache, out, "--for", platform, "--json")
			if status != 0 {
				t.Fatalf("status %d: %s", status, errOut)
			}
			var b built
			if err := json.Unmarshal([]byte(text), &b); err != nil {
				t.Fatal(err)
			}
			manifest, err := os.ReadFile(b.Manifest)
			if err != nil {
				t.Fatal(err)
			}
			if len(b.Artifacts) != 1 || b.Artifacts[0].Format != want.format || !strings.Contains(string(manifest), "/4800.2.0/"+want.artifact) || !strings.Contains(string(manifest), "OpenPGP signature by "+s.Vendor.Fingerprint) {
				t.Errorf("%+v\n%s", b, manifest)
			}
			if platform != "" && !strings.HasSuffix(b.Name, "-"+platform) || platform == "" && strings.HasSuffix(b.Name, "-") {
				t.Errorf("the image is called %s", b.Name)
			}
		})
	}
	// A format that one platform takes is made from its artifact.
	out := t.TempDir()
	if _, errOut, status := buildFlatcar(t, s, f, cache, out, "--format", "gce"); status != 0 || !strings.Contains(listing(t, out), ".tar.gz") {
		t.Errorf("status %d: %s", status, errOut)
	} else if manifest, err := os.ReadFile(filepath.Join(out, "flatcar-stable-v1.37.2-amd64.json")); err != nil || !strings.Contains(string(manifest), "flatcar_production_gce.tar.gz") {
		t.Errorf("%s, %v", manifest, err)
	}
	if _, errOut, status := buildFlatcar(t, s, f, cache, t.TempDir(), "--format", "gce,vhd"); status != 2 || !strings.Contains(errOut, "--for") {
		t.Errorf("two platforms at once: status %d: %s", status, errOut)
	}
	out = t.TempDir()
	if _, errOut, status := buildFlatcar(t, s, f, cache, out); status != 0 {
		t.Fatal(errOut)
	}
	baked := filepath.Join(out, "flatcar-stable-v1.37.2-amd64.raw")
	need.Judge(t, "sgdisk", "-v", baked)
	if out, errOut, status := kimage(t, "verify", baked); status != 0 || !strings.Contains(out, "ok          activation files") {
		t.Errorf("kimage verify: status %d\n%s%s", status, out, errOut)
	}
	for _, p := range flatcarDisk.partitions {
		ask := fmt.Sprintf("--info=%d", p.Number)
		if was, is := need.Judge(t, "sgdisk", ask, f.flatcar), need.Judge(t, "sgdisk", ask, baked); was != is {
			t.Errorf("partition %d was\n%s\nand is\n%s", p.Number, was, is)
		}
	}
	table := need.Judge(t, "sgdisk", "--info=5", baked)
	if !strings.Contains(table, "'KIMAGE'") {
		t.Errorf("the lowest free number is not KIMAGE's:\n%s", table)
	}
	if is, err := images.OpenInstallable(t.Context(), baked); err != nil || is.Seed != (install.Place{Partition: 6, Type: "btrfs"}) {
		t.Errorf("its config goes to %+v, %v", is, err)
	}
	bakedFile, err := os.Open(baked)
	if err != nil {
		t.Fatal(err)
	}
	defer bakedFile.Close()
	root := int64(0)
	for _, p := range sgdiskPartitions(t, baked) {
		switch p.number {
		case 5:
			continue
		case 9:
			root = p.first * 512
			continue
		}
		part := make([]byte, p.sectors*512)
		if _, err := bakedFile.ReadAt(part, p.first*512); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(part, raw[p.first*512:][:len(part)]) {
			t.Errorf("partition %d has other content", p.number)
		}
	}
	volume := fmt.Sprintf("%s?offset=%d", baked, root)
	need.Judge(t, "e2fsck", "-fn", volume)
	for path, want := range map[string]string{"/etc/extensions/docker-flatcar.raw": `"/dev/null"`, "/etc/extensions/containerd-flatcar.raw": `"/dev/null"`, "/etc/systemd/system/locksmithd.service": `"/dev/null"`, "/etc/flatcar/update.conf": "Size: 12", "/etc/kimage/activate": "Mode:  0755"} {
		if out := need.Judge(t, "debugfs", "-R", "stat "+path, volume); !strings.Contains(out, want) {
			t.Errorf("%s:\n%s", path, out)
		}
	}
}

type sgdiskPartition struct {
	number         int
	first, sectors int64
}

var sgdiskLine = regexp.MustCompile(`(?m)^ +(\d+) +(\d+) +(\d+) `)

func sgdiskPartitions(t *testing.T, disk string) (all []sgdiskPartition) {
	t.Helper()
	for _, m := range sgdiskLine.FindAllStringSubmatch(need.Judge(t, "sgdisk", "-p", disk), -1) {
		var p sgdiskPartition
		var last int64
		fmt.Sscan(m[1], &p.number)
		fmt.Sscan(m[2], &p.first)
		fmt.Sscan(m[3], &last)
		p.sectors = last - p.first + 1
		all = append(all, p)
	}
	return all
}

// TestVendorVersions: a newer image is taken, an older one never again; offline the last one
// that was verified; a lock keeps the one it pins.
func TestVendorVersions(t *testing.T) {
	f, cache := fixtures(t), t.TempDir()
	raw, err := os.ReadFile(f.flatcar)
	if err != nil {
		t.Fatal(err)
	}
	s := need.NewFlatcarServer(t, "../..")
	const name = "flatcar_production_image.bin.bz2"
	old := output(t, raw, "bzip2", "-1")
	raw[5<<20] ^= 1
	newest := output(t, raw, "bzip2", "-1")
	version := func(out string) string {
		data, err := os.ReadFile(filepath.Join(out, "flatcar-stable-v1.37.2-amd64.json"))
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile(`"version": "(4[0-9.]+)"`).FindStringSubmatch(string(data))[1]
	}
	s.Publish("4800.2.0", need.Day(-20), map[string][]byte{name: old})
	first := t.TempDir()
	if _, errOut, status := buildFlatcar(t, s, f, cache, first); status != 0 || version(first) != "4800.2.0" {
		t.Fatalf("status %d: %s", status, errOut)
	}
	s.Publish("4900.2.0", need.Day(-10), map[string][]byte{name: newest})
	second := t.TempDir()
	if _, errOut, status := buildFlatcar(t, s, f, cache, second); status != 0 || version(second) != "4900.2.0" {
		t.Fatalf("status %d: %s", status, errOut)
	}
	// The first lock still has what it pinned, and so has an empty cache.
	for _, c := range []string{cache, t.TempDir()} {
		if _, errOut, status := buildFlatcar(t, s, f, c, first, "--locked"); status != 0 || version(first) != "4800.2.0" {
			t.Errorf("status %d, %s: %s", status, version(first), errOut)
		}
	}
	// Played back: the old version, and the old image under a new version's name.
	s.Publish("4800.2.0", need.Day(-20), map[string][]byte{name: old})
	if _, errOut, status := buildFlatcar(t, s, f, cache, t.TempDir()); status != 2 || !strings.Contains(errOut, "plays an old image back") {
		t.Errorf("status %d: %s", status, errOut)
	}
	s.Publish("4950.2.0", need.Day(-20), map[string][]byte{name: old})
	if _, errOut, status := buildFlatcar(t, s, f, cache, t.TempDir()); status != 2 || !strings.Contains(errOut, "plays an old image back") {
		t.Errorf("status %d: %s", status, errOut)
	}
	// Without a way to the vendor.
	if err := os.RemoveAll(s.Mirror); err != nil {
		t.Fatal(err)
	}
	if _, errOut, status := buildFlatcar(t, s, f, cache, t.TempDir()); status != 2 || !strings.Contains(errOut, "--mirror") {
		t.Errorf("status %d: %s", status, errOut)
	}
	third := t.TempDir()
	if _, errOut, status := buildFlatcar(t, s, f, cache, third, "--mirror", "", "--offline"); status != 0 || version(third) != "4900.2.0" {
		t.Errorf("status %d: %s", status, errOut)
	}
}

// TestArm64: an image for another processor is baked without running one program of it.
func TestArm64(t *testing.T) {
	f, out, mirror := fixtures(t), t.TempDir(), t.TempDir()
	if err := writeMirror(mirror, "v1.37.2", "arm64"); err != nil {
		t.Fatal(err)
	}
	b := build(t, f.args(t.TempDir(), out, "--os", "coreos-stable", "--base", f.flatcar, "--components", mirror, "--arch", "arm64", "--format", "raw,sysext")...)
	if b.Arch != "arm64" || b.Name != "flatcar-stable-v1.37.2-arm64" {
		t.Errorf("%+v", b)
	}
	sysext := filepath.Join(out, b.Name+".sysext.raw")
	if table := need.Judge(t, "sgdisk", "--info=1", sysext); !strings.Contains(table, "B921B045-1DF0-41C3-AF44-4C6F280D3FAE") {
		t.Errorf("the payload's partition is not a root of arm64:\n%s", table)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	need.Judge(t, "unsquashfs", "-q", "-n", "-o", "1048576", "-d", tree, sysext, "usr/lib/extension-release.d", "usr/bin/kubelet")
	release, err := os.ReadFile(filepath.Join(tree, "usr/lib/extension-release.d/extension-release.kimage"))
	if err != nil || string(release) != "ID=flatcar\nSYSEXT_LEVEL=1.0\nARCHITECTURE=arm64\n" {
		t.Errorf("%q, %v", release, err)
	}
	if kubelet, err := os.ReadFile(filepath.Join(tree, "usr/bin/kubelet")); err != nil || !strings.Contains(string(kubelet), "/linux/arm64/") {
		t.Errorf("%q, %v", kubelet, err)
	}
}

// TestOwnOSFile: people bring their own systems, as a file or as a directory of them.
func TestOwnOSFile(t *testing.T) {
	f := fixtures(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "mine.yaml")
	const text = "name: mine\ntitle: My own Linux\narches: [amd64]\nuser: me\nfirstBoot: cloud-init\nrootSizeMiB: 6144\nsysext: {id: debian, versionID: \"13\"}\nvendor:\n  version: {url: \"https://my.example/current\", find: \"^(.*)$\"}\n  images: {all: \"https://my.example/{version}\"}\n  checksums: \"{url}.sum\"\n  digest: sha256\n"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	out := t.TempDir()
	args := f.args(t.TempDir(), out, "--images", "none")
	args[2] = file
	if b := build(t, args...); b.OS != "mine" || b.Name != "mine-v1.37.2-amd64" {
		t.Errorf("%+v", b)
	}
	cmd := command("list", "os")
	cmd.Env = append(cmd.Env, "KIMAGE_OS_PATH="+dir)
	if text, _, status := finish(t, cmd); status != 0 || !strings.Contains(text, "My own Linux") {
		t.Errorf("status %d, %s", status, text)
	}
	// Its name counts more than another system's alias.
	write(strings.Replace(text, "name: mine", "name: trixie", 1))
	cmd = command(append(f.args(t.TempDir(), t.TempDir(), "--images", "none"), "--os", "trixie", "--json")...)
	cmd.Env = append(cmd.Env, "KIMAGE_OS_PATH="+dir)
	if text, errOut, status := finish(t, cmd); status != 0 || !strings.Contains(text, `"os": "trixie"`) {
		t.Errorf("status %d, %s%s", status, text, errOut)
	}
	for wrong, want := range map[string]string{
		"name: x\n": "arches is missing",
		strings.Replace(text, "mine", "Mine Own", 1):        "name \"Mine Own\"",
		strings.Replace(text, "cloud-init", "kickstart", 1): "firstBoot \"kickstart\"",
		strings.Replace(text, "sha256", "md5", 1):           "vendor.digest \"md5\"",
		strings.Replace(text, "^(.*)$", "^.*$", 1):          "must have one group",
		strings.Replace(text, "all:", "moon:", 1):           "\"moon\" is no platform",
		text + "  signature: {url: x, of: image}\n":         "vendor.keys",
		text + "  keys: {file: none.asc}\n":                 "none.asc",
		text + "color: red\n":                               "color",
	} {
		write(wrong)
		if _, errOut, status := kimage(t, args...); status != 2 || !strings.Contains(errOut, want) || !strings.Contains(errOut, file) {
			t.Errorf("status %d, %s; want %s", status, errOut, want)
		}
	}
}
