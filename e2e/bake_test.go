//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/sparse"
)

// TestForeignJudges: other people's programs accept the baked disk, its file
// systems and its payload.
func TestForeignJudges(t *testing.T) {
	out, err := exec.Command("../bin/kimage", "inspect", image, "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		Partitions []struct {
			Name, Filesystem       string
			OffsetBytes, SizeBytes int64
		}
		Manifest struct {
			Payload struct{ SHA256, RootHash string }
			Images  []struct{ Ref string }
		}
	}
	if err := json.Unmarshal(out, &in); err != nil {
		t.Fatal(err)
	}
	if out := need.Judge(t, "sgdisk", "-v", image); !strings.Contains(out, "No problems found") {
		t.Error(out)
	}
	volumes := map[string]string{}
	for _, p := range in.Partitions {
		if p.Filesystem == "ext4" {
			volumes[p.Name] = fmt.Sprintf("%s?offset=%d", image, p.OffsetBytes)
			need.Judge(t, "e2fsck", "-fn", volumes[p.Name])
		}
	}
	dir := t.TempDir()
	payload := filepath.Join(dir, "kimage.raw")
	need.Judge(t, "debugfs", "-R", fmt.Sprintf("dump /extensions/%s.raw %s", in.Manifest.Payload.SHA256, payload), volumes["KIMAGE"])
	hash := strings.TrimSpace(need.Judge(t, "sh", "-c", "debugfs -R 'cat /etc/kimage/roothash' '"+volumes["root"]+"' 2>/dev/null"))
	if hash != in.Manifest.Payload.RootHash || len(hash) != 64 {
		t.Errorf("root hash on the root file system %q, in the manifest %q", hash, in.Manifest.Payload.RootHash)
	}
	if sum := need.Judge(t, "sha256sum", payload); !strings.HasPrefix(sum, in.Manifest.Payload.SHA256) {
		t.Errorf("payload: %s", sum)
	}
	if err := os.WriteFile(filepath.Join(dir, "kimage.roothash"), []byte(hash), 0o644); err != nil {
		t.Fatal(err)
	}
	dissect := need.Judge(t, "systemd-dissect", "--no-pager", payload)
	if !strings.Contains(dissect, "✓ extension for system") || !strings.Contains(dissect, "VERSION_ID="+strings.TrimPrefix(system, "debian-")) {
		t.Errorf("systemd-dissect:\n%s", dissect)
	}
	// The partitions as files of their own, for programs without offsets.
	root, verity := filepath.Join(dir, "root"), filepath.Join(dir, "verity")
	for n, file := range map[string]string{"1": root, "2": verity} {
		info := need.Judge(t, "sgdisk", "-i", n, payload)
		first, last := field(info, "First sector:"), field(info, "Last sector:")
		need.Judge(t, "sh", "-c", fmt.Sprintf("dd if=%s of=%s bs=512 skip=%s count=$((%s - %s + 1)) status=none", payload, file, first, last, first))
	}
	need.Judge(t, "veritysetup", "verify", root, verity, hash)
	list := need.Judge(t, "unsquashfs", "-lln", root)
	for _, want := range []string{"usr/bin/kubelet", "usr/bin/kubeadm", "usr/bin/kubectl", "usr/bin/containerd\n", "usr/bin/containerd-shim-runc-v2", "usr/bin/ctr", "usr/bin/runc", "usr/bin/crictl",
		"usr/bin/etcd\n", "usr/bin/etcdctl", "usr/bin/kimage-agent", "usr/libexec/kimage/cni/bridge", "usr/libexec/kimage/cni/flannel"} {
		if !strings.Contains(list, want) {
			t.Errorf("the payload lacks %s", want)
		}
	}
	for _, no := range []string{"usr/sbin", "usr/local", "usr/lib64", "squashfs-root/opt"} {
		if strings.Contains(list, no) {
			t.Errorf("the payload has %s", no)
		}
	}
}

// TestBase: the base has no secret and no identity of its own.
func TestBase(t *testing.T) {
	var in struct {
		Partitions []struct {
			Name        string
			OffsetBytes int64
		}
	}
	out := need.Judge(t, "../bin/kimage", "inspect", image, "--json")
	if err := json.Unmarshal([]byte(out), &in); err != nil {
		t.Fatal(err)
	}
	var volume string
	for _, p := range in.Partitions {
		if p.Name == "root" {
			volume = fmt.Sprintf("%s?offset=%d", image, p.OffsetBytes)
		}
	}
	debugfs := func(command string) string {
		return need.Judge(t, "sh", "-c", "debugfs -R '"+command+"' '"+volume+"' 2>/dev/null")
	}
	shadow := debugfs("cat /etc/shadow")
	if !strings.Contains("\n"+shadow, "\nroot:") {
		t.Fatalf("/etc/shadow:\n%s", shadow)
	}
	for line := range strings.Lines(shadow) {
		if f := strings.Split(line, ":"); f[1] == "" || !strings.ContainsAny(f[1][:1], "!*") {
			t.Errorf("%s has a password", f[0])
		}
	}
	if keys := debugfs("ls -p /etc/ssh"); !strings.Contains(keys, "sshd_config") || strings.Contains(keys, "ssh_host_") {
		t.Errorf("/etc/ssh:\n%s", keys)
	}
	if id := debugfs("stat /etc/machine-id"); !strings.Contains(id, "Type: regular") || !strings.Contains(id, " Size: 0") {
		t.Errorf("/etc/machine-id is not an empty file:\n%s", id)
	}
	if grub := debugfs("cat /boot/grub/grub.cfg"); !strings.Contains(grub, "console=tty0") || !strings.Contains(grub, "console=ttyS0") {
		t.Errorf("grub.cfg:\n%s", grub)
	}
}

// TestOrdinaryUser: nobody, without capabilities, user namespaces, loop devices
// and KVM, in another directory, time zone and umask, bakes the same bytes.
func TestOrdinaryUser(t *testing.T) {
	if os.Getenv("KIMAGE_E2E_IMAGE") != "" {
		need.Missing(t, "an image of this kimage: another one may have baked KIMAGE_E2E_IMAGE")
	}
	cacheDir := os.Getenv("KIMAGE_CACHE")
	if cacheDir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cacheDir = filepath.Join(user, "kimage")
	}
	dir := t.TempDir()
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	need.Judge(t, "sh", "-ec", `mkdir "$1/cache" "$1/root"; cp -R --sparse=always "$0/entries" "$1/cache/"; cp ../bin/kimage "$1/"; chown -R 65534:65534 "$1/cache"; mkdir -m 777 "$1/out"`, cacheDir, dir)
	need.Judge(t, "unshare", "--mount", "--propagation", "private", "sh", "-ec", `
mount --rbind / "$1/root"
mount -t tmpfs none "$1/root/dev"
for d in null zero random urandom; do touch "$1/root/dev/$d"; mount --bind "/dev/$d" "$1/root/dev/$d"; done
exec chroot "$1/root" setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --no-new-privs env HOME=/nonexistent TZ=Asia/Tokyo sh -ec '
	if unshare --user true 2>/dev/null; then echo "user namespaces work" >&2; exit 99; fi
	if ls /dev/loop* /dev/kvm 2>/dev/null; then exit 98; fi
	umask 077
	cd "$1/out"
	exec "$1/kimage" build --os "$0" --offline --quiet --cache "$1/cache" -o "$1/out"' "$0" "$1"`, system, dir)
	if digest(t, filepath.Join(dir, "out", filepath.Base(image))) != digest(t, image) {
		t.Error("other bytes")
	}
}

// digest names the content of a disk without reading its holes.
func digest(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := sparse.DigestFile(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func field(text, name string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.Fields(rest)[0]
		}
	}
	return ""
}
