//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// TestUnknownStore: a containerd whose image store this kimage does not know, a real
// older one, is baked with archives, and the bake says so; a machine imports those
// of its role by itself and becomes a cluster.
func TestUnknownStore(t *testing.T) {
	allAsked(t)
	const known, unknown = "containerd: v2.4.2", "containerd: v2.3.6"
	dir := t.TempDir()
	catalogue, err := filepath.Abs("../images/components/catalogue.yaml")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(catalogue)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte(known)) {
		t.Fatalf("%s has no %s", catalogue, known)
	}
	other := filepath.Join(dir, "catalogue.yaml")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {catalogue: other}})
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{other: bytes.ReplaceAll(data, []byte(known), []byte(unknown)), filepath.Join(dir, "overlay.json"): overlay} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kimage := filepath.Join(dir, "kimage")
	need.Judge(t, "go", "build", "-C", "..", "-overlay", filepath.Join(dir, "overlay.json"), "-o", kimage, "./cmd/kimage")
	words, err := exec.Command(kimage, "build", "--os", system, "-o", dir, "--name", "unknown").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, words)
	}
	if !strings.Contains(string(words), "v2.3.6: its image store is not known to this kimage") {
		t.Errorf("the bake does not say that images will be imported:\n%s", words)
	}

	key := newKey(t)
	config := configs(t, system, key.Public, "", "--seed")
	n := &node{machineOf(t, qemu.Config{Dir: filepath.Join(dir, "node"), Image: filepath.Join(dir, "unknown.raw"), Format: "raw", DiskGiB: 20, Seed: filepath.Join(config, "nodes/k8s-01/seed.iso")}), t, user, key}
	started := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	if err := n.awaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	n.until(" Ready ", kubectl+"get nodes --no-headers", time.Minute)
	t.Logf("Ready %s after power-on", time.Since(started).Round(time.Second))
	if version := n.must("ctr --version", time.Minute); !strings.Contains(version, "v2.3.6") {
		t.Error(version)
	}
	n.must("kimage-agent status", 2*time.Minute) // the runtime has all images
	t.Log(n.must("journalctl -u kimage-agent -o cat --no-pager | grep -i import", time.Minute))
	if failed := n.must("systemctl --failed --no-legend --plain", time.Minute); failed != "" {
		t.Errorf("units failed:\n%s", failed)
	}
}
