package bootstrap

import (
	"os"
	"path/filepath"
	"testing"
)

func TestParseMounts(t *testing.T) {
	const data = `22 28 0:20 / /proc rw,nosuid - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
90 28 254:2 / /var/lib/kimage rw,noatime - ext4 /dev/vda2 rw
91 28 254:2 /state/kubelet /var/lib/kubelet rw,noatime shared:80 - ext4 /dev/vda2 rw
92 28 254:2 /a\040b /mnt/with\040space rw master:1 - ext4 /dev/vda2 rw
broken line
`
	all := parseMounts([]byte(data))
	if len(all) != 5 {
		t.Fatalf("%d mounts", len(all))
	}
	m, ok := mountAt(all, "/var/lib/kubelet")
	if !ok || m.device != "254:2" || m.root != "/state/kubelet" || !m.shared {
		t.Errorf("%+v", m)
	}
	if m, _ := mountAt(all, Data); m.shared {
		t.Error("the data partition is reported as shared")
	}
	if m, ok := mountAt(all, "/mnt/with space"); !ok || m.root != "/a b" || m.shared {
		t.Errorf("%+v", m)
	}
}

func TestMoveIn(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for p, content := range map[string]string{
		filepath.Join(from, "new"):       "first boot's",
		filepath.Join(from, "dir/deep"):  "deep",
		filepath.Join(from, "both"):      "first boot's",
		filepath.Join(to, "both"):        "state's",
		filepath.Join(to, "dir/present"): "state's",
	} {
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("dir/deep", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	// What a crash left is no obstacle.
	if err := os.WriteFile(filepath.Join(to, "new.kimage-moving"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := moveIn(from, to); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{"new": "first boot's", "dir/deep": "deep", "both": "state's", "dir/present": "state's", "link": "deep"} {
		if got, err := os.ReadFile(filepath.Join(to, p)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", p, got, err)
		}
	}
	if left, _ := os.ReadDir(from); len(left) != 0 {
		t.Errorf("%d things are left where the bind goes", len(left))
	}
}
