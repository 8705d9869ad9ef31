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
)

func judge(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

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
	if out := judge(t, "sgdisk", "-v", image); !strings.Contains(out, "No problems found") {
		t.Error(out)
	}
	volumes := map[string]string{}
	for _, p := range in.Partitions {
		if p.Filesystem == "ext4" {
			volumes[p.Name] = fmt.Sprintf("%s?offset=%d", image, p.OffsetBytes)
			judge(t, "e2fsck", "-fn", volumes[p.Name])
		}
	}
	dir := t.TempDir()
	payload := filepath.Join(dir, "kimage.raw")
	judge(t, "debugfs", "-R", fmt.Sprintf("dump /extensions/%s.raw %s", in.Manifest.Payload.SHA256, payload), volumes["KIMAGE"])
	hash := strings.TrimSpace(judge(t, "sh", "-c", "debugfs -R 'cat /etc/kimage/roothash' '"+volumes["root"]+"' 2>/dev/null"))
	if hash != in.Manifest.Payload.RootHash || len(hash) != 64 {
		t.Errorf("root hash on the root file system %q, in the manifest %q", hash, in.Manifest.Payload.RootHash)
	}
	if sum := judge(t, "sha256sum", payload); !strings.HasPrefix(sum, in.Manifest.Payload.SHA256) {
		t.Errorf("payload: %s", sum)
	}
	if err := os.WriteFile(filepath.Join(dir, "kimage.roothash"), []byte(hash), 0o644); err != nil {
		t.Fatal(err)
	}
	dissect := judge(t, "systemd-dissect", "--no-pager", payload)
	if !strings.Contains(dissect, "✓ extension for system") || !strings.Contains(dissect, "VERSION_ID=13") {
		t.Errorf("systemd-dissect:\n%s", dissect)
	}
	// The partitions as files of their own, for programs without offsets.
	root, verity := filepath.Join(dir, "root"), filepath.Join(dir, "verity")
	for n, file := range map[string]string{"1": root, "2": verity} {
		info := judge(t, "sgdisk", "-i", n, payload)
		first, last := field(info, "First sector:"), field(info, "Last sector:")
		judge(t, "sh", "-c", fmt.Sprintf("dd if=%s of=%s bs=512 skip=%s count=$((%s - %s + 1)) status=none", payload, file, first, last, first))
	}
	judge(t, "veritysetup", "verify", root, verity, hash)
	list := judge(t, "unsquashfs", "-lln", root)
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

func field(text, name string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.Fields(rest)[0]
		}
	}
	return ""
}
