package main

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// flatcarServer is a mirror's directory with a version of Flatcar as its vendor's server
// has it, in the artifact of a platform, and the OS file with the key that signed it.
type flatcarServer struct {
	t           *testing.T
	vendor      *need.Signer
	dir, osPath string
}

func newFlatcarServer(t *testing.T) *flatcarServer {
	t.Helper()
	s := &flatcarServer{t, need.NewSigner(t, day(-30)), t.TempDir(), t.TempDir()}
	own, err := os.ReadFile("../../images/os/flatcar-stable.yaml")
	if err != nil {
		t.Fatal(err)
	}
	own = regexp.MustCompile(`primary: \[[0-9A-F]+\]`).ReplaceAll(own, []byte("primary: ["+s.vendor.Fingerprint+"]"))
	for name, data := range map[string][]byte{"flatcar.asc": s.vendor.Keys(day(0)), "flatcar-stable.yaml": own} {
		if err := os.WriteFile(filepath.Join(s.osPath, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func day(ago int) string { return time.Now().AddDate(0, 0, ago).Format(time.DateOnly) }

// publish makes version the current one.
func (s *flatcarServer) publish(version, signed string, artifacts map[string][]byte) {
	s.t.Helper()
	base := filepath.Join(s.dir, "stable.release.flatcar-linux.net/amd64-usr")
	files := map[string][]byte{"current/version.txt": []byte("FLATCAR_VERSION_ID=" + version + "\n")}
	for name, data := range artifacts {
		sum := sha512.Sum512(data)
		at := version + "/" + name
		files[at], files[at+".sig"] = data, s.vendor.Sign(signed, data)
		files[at+".DIGESTS"] = []byte("# SHA512 HASH\n" + hex.EncodeToString(sum[:]) + "  " + name + "\n")
	}
	for name, data := range files {
		if err := put(filepath.Join(base, name), data); err != nil {
			s.t.Fatal(err)
		}
	}
}

// build runs kimage build --os coreos-stable.
func (s *flatcarServer) build(f fixture, cache, out string, more ...string) (stdout, stderr string, status int) {
	s.t.Helper()
	args := []string{"build", "--os", "coreos-stable", "--components", f.mirror, "--agent", f.agent, "--images", "none", "--cache", cache, "--mirror", s.dir,
		"--lock", filepath.Join(out, "kimage.lock"), "-o", out}
	cmd := command(append(args, more...)...)
	cmd.Env = append(cmd.Env, "KIMAGE_OS_PATH="+s.osPath)
	return finish(s.t, cmd)
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
	s := newFlatcarServer(t)
	s.publish("4800.2.0", day(-1), map[string][]byte{
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
			text, errOut, status := s.build(f, cache, out, "--for", platform, "--json")
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
			if len(b.Artifacts) != 1 || b.Artifacts[0].Format != want.format || !strings.Contains(string(manifest), "/4800.2.0/"+want.artifact) || !strings.Contains(string(manifest), "OpenPGP signature by "+s.vendor.Fingerprint) {
				t.Errorf("%+v\n%s", b, manifest)
			}
			if platform != "" && !strings.HasSuffix(b.Name, "-"+platform) || platform == "" && strings.HasSuffix(b.Name, "-") {
				t.Errorf("the image is called %s", b.Name)
			}
		})
	}
	// A format that one platform takes is made from its artifact.
	out := t.TempDir()
	if _, errOut, status := s.build(f, cache, out, "--format", "gce"); status != 0 || !strings.Contains(listing(t, out), ".tar.gz") {
		t.Errorf("status %d: %s", status, errOut)
	} else if manifest, err := os.ReadFile(filepath.Join(out, "flatcar-stable-v1.37.2-amd64.json")); err != nil || !strings.Contains(string(manifest), "flatcar_production_gce.tar.gz") {
		t.Errorf("%s, %v", manifest, err)
	}
	if _, errOut, status := s.build(f, cache, t.TempDir(), "--format", "gce,vhd"); status != 2 || !strings.Contains(errOut, "--for") {
		t.Errorf("two platforms at once: status %d: %s", status, errOut)
	}
	out = t.TempDir()
	if _, errOut, status := s.build(f, cache, out); status != 0 {
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
	s := newFlatcarServer(t)
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
	s.publish("4800.2.0", day(-20), map[string][]byte{name: old})
	first := t.TempDir()
	if _, errOut, status := s.build(f, cache, first); status != 0 || version(first) != "4800.2.0" {
		t.Fatalf("status %d: %s", status, errOut)
	}
	s.publish("4900.2.0", day(-10), map[string][]byte{name: newest})
	second := t.TempDir()
	if _, errOut, status := s.build(f, cache, second); status != 0 || version(second) != "4900.2.0" {
		t.Fatalf("status %d: %s", status, errOut)
	}
	// The first lock still has what it pinned, and so has an empty cache.
	for _, c := range []string{cache, t.TempDir()} {
		if _, errOut, status := s.build(f, c, first, "--locked"); status != 0 || version(first) != "4800.2.0" {
			t.Errorf("status %d, %s: %s", status, version(first), errOut)
		}
	}
	// Played back: the old version, and the old image under a new version's name.
	s.publish("4800.2.0", day(-20), map[string][]byte{name: old})
	if _, errOut, status := s.build(f, cache, t.TempDir()); status != 2 || !strings.Contains(errOut, "plays an old image back") {
		t.Errorf("status %d: %s", status, errOut)
	}
	s.publish("4950.2.0", day(-20), map[string][]byte{name: old})
	if _, errOut, status := s.build(f, cache, t.TempDir()); status != 2 || !strings.Contains(errOut, "plays an old image back") {
		t.Errorf("status %d: %s", status, errOut)
	}
	// Without a way to the vendor.
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if _, errOut, status := s.build(f, cache, t.TempDir()); status != 2 || !strings.Contains(errOut, "--mirror") {
		t.Errorf("status %d: %s", status, errOut)
	}
	third := t.TempDir()
	if _, errOut, status := s.build(f, cache, third, "--mirror", "", "--offline"); status != 0 || version(third) != "4900.2.0" {
		t.Errorf("status %d: %s", status, errOut)
	}
}

// TestLock: what is pinned stays so, and what is not is added; another program of the same
// version is refused, and taken only when asked for.
func TestLock(t *testing.T) {
	f, dir := fixtures(t), t.TempDir()
	lock, mirror := filepath.Join(dir, "kimage.lock"), filepath.Join(dir, "mirror")
	if err := os.CopyFS(mirror, os.DirFS(f.mirror)); err != nil {
		t.Fatal(err)
	}
	args := func(verb, cache string, more ...string) []string {
		return append([]string{verb, "--os", "debian-13", "--base", f.base, "--components", mirror, "--images", "none", "--cache", cache, "--lock", lock}, more...)
	}
	build := func(cache string, more ...string) (string, int) {
		_, errOut, status := kimage(t, append(args("build", cache, more...), "--agent", f.agent, "-o", t.TempDir())...)
		return errOut, status
	}
	cache := t.TempDir()
	if errOut, status := build(cache, "--locked"); status != 2 || !strings.Contains(errOut, "does not exist") {
		t.Errorf("without a lock: status %d, %s", status, errOut)
	}
	if out, errOut, status := kimage(t, args("lock", cache, "--agent", f.agent)...); status == 0 {
		t.Errorf("lock knows --agent: %s %s", out, errOut)
	}
	out, errOut, status := kimage(t, args("lock", cache, "--network", "none")...)
	if status != 0 || !strings.Contains(out, "is written") {
		t.Fatalf("status %d: %s %s", status, out, errOut)
	}
	if errOut, status := build(cache, "--network", "none", "--locked"); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	// With flannel there is more than the lock has.
	if errOut, status := build(cache, "--locked"); status != 2 || !strings.Contains(errOut, "flannel") {
		t.Errorf("status %d, %s", status, errOut)
	}
	if out, _, status := kimage(t, args("lock", cache, "--check")...); status != 1 || !strings.Contains(out, "does not pin flannel") {
		t.Errorf("status %d, %s", status, out)
	}
	if errOut, status := build(cache); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	if out, errOut, status := kimage(t, args("lock", cache, "--check")...); status != 0 || !strings.Contains(out, "pins it all already") {
		t.Errorf("status %d, %s %s", status, out, errOut)
	}
	// A mirror with another kubelet, and its checksum.
	kubelet := filepath.Join(mirror, "dl.k8s.io/release/v1.37.2/bin/linux/amd64/kubelet")
	content := []byte("another program")
	if err := os.WriteFile(kubelet, content, 0o644); err != nil {
		t.Fatal(err)
	}
	sum := need.Judge(t, "sha256sum", kubelet)
	if err := os.WriteFile(kubelet+".sha256", []byte(sum[:64]+"  kubelet\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	fresh := t.TempDir()
	if errOut, status := build(fresh); status != 2 || !strings.Contains(errOut, "usr/bin/kubelet of kubernetes v1.37.2 is pinned as ") || !strings.Contains(errOut, "--update") {
		t.Errorf("status %d, %s", status, errOut)
	}
	if out, _, status := kimage(t, args("lock", fresh, "--check")...); status != 1 || !strings.Contains(out, "usr/bin/kubelet of kubernetes v1.37.2 is pinned") {
		t.Errorf("status %d, %s", status, out)
	}
	if _, errOut, status := kimage(t, args("lock", fresh, "--update")...); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	if errOut, status := build(fresh, "--locked"); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	// A given base is pinned too, by its way from the lock.
	other := filepath.Join(dir, "base.raw")
	data, err := os.ReadFile(f.base)
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := os.WriteFile(other, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if errOut, status := build(fresh, "--base", other); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	data[101] ^= 1
	if err := os.WriteFile(other, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if errOut, status := build(fresh, "--base", other); status != 2 || !strings.Contains(errOut, "the base debian-13/amd64/file:base.raw is pinned as") {
		t.Errorf("status %d, %s", status, errOut)
	}
	for name, text := range map[string]string{"nonsense": "x: [", "another kind": "apiVersion: kimage.dev/v1alpha1\nkind: Cluster\n", "unknown fields": "apiVersion: kimage.dev/v1alpha1\nkind: Lock\nbaze: {}\n"} {
		if err := os.WriteFile(lock, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if errOut, status := build(fresh); status != 2 || !strings.Contains(errOut, lock) {
			t.Errorf("%s: status %d, %s", name, status, errOut)
		}
	}
}

// TestLockFetch: a mirror has all that an image is made from. With empty caches, without a
// network, for another user in another time zone the same bytes come out.
func TestLockFetch(t *testing.T) {
	need.Root(t, "another user")
	f := fixtures(t)
	raw, err := os.ReadFile(f.flatcar)
	if err != nil {
		t.Fatal(err)
	}
	s := newFlatcarServer(t)
	s.publish("4800.2.0", day(-1), map[string][]byte{"flatcar_production_image.bin.bz2": output(t, raw, "bzip2", "-1")})
	out, cache := t.TempDir(), t.TempDir()
	if _, errOut, status := s.build(f, cache, out, "--images", "all"); status != 0 {
		t.Fatal(errOut)
	}
	site, err := os.MkdirTemp("", "kimage-site")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(site)
	mirror := filepath.Join(site, "mirror")
	fetch := command("lock", "fetch", "--os", "coreos-stable", "--components", f.mirror, "--cache", cache, "--mirror", s.dir, "--lock", filepath.Join(out, "kimage.lock"), "-o", mirror)
	fetch.Env = append(fetch.Env, "KIMAGE_OS_PATH="+s.osPath)
	if _, errOut, status := finish(t, fetch); status != 0 {
		t.Fatal(errOut)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{site, mirror} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(filepath.Join(site, "kimage"), program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(site, "work")
	if err := errors.Join(os.Mkdir(work, 0o700), os.Chown(work, 65534, 65534), os.CopyFS(filepath.Join(site, "os"), os.DirFS(s.osPath))); err != nil {
		t.Fatal(err)
	}
	again := command("build", "--os", "coreos-stable", "--base", mirror, "--components", mirror, "--agent", f.agent, "--cache", filepath.Join(work, "cache"),
		"--lock", filepath.Join(mirror, "kimage.lock"), "--locked", "--offline", "-o", filepath.Join(work, "out"))
	again.Args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--net"}, append([]string{filepath.Join(site, "kimage")}, again.Args[1:]...)...)
	again.Path = "/usr/bin/setpriv"
	again.Env = append(again.Env, "KIMAGE_OS_PATH="+filepath.Join(site, "os"), "TZ=Asia/Tokyo", "HOME="+work, "TMPDIR="+work)
	if _, errOut, status := finish(t, again); status != 0 {
		t.Fatal(errOut)
	}
	const name = "flatcar-stable-v1.37.2-amd64"
	if a, b := digest(t, filepath.Join(out, name+".raw")), digest(t, filepath.Join(work, "out", name+".raw")); a != b {
		was, _ := os.ReadFile(filepath.Join(out, name+".json"))
		is, _ := os.ReadFile(filepath.Join(work, "out", name+".json"))
		t.Errorf("from the mirror another image is baked:\n%s\n%s", was, is)
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
