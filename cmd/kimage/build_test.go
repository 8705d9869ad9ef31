package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

func TestBuildAndInspect(t *testing.T) {
	f, out := fixtures(t), t.TempDir()
	b := buildJSON(t, f.args(t.TempDir(), out, "--format", "raw,qcow2,vhd")...)
	if b.APIVersion != "kimage.dev/v1alpha1" || b.Name != "debian-13-v1.37.2-amd64" || b.Kubernetes != "v1.37.2" || b.Runtime != "containerd" || b.Network != "flannel" ||
		b.Arch != "amd64" || b.OS != "debian-13" || len(b.ImageID) != 12 || len(b.Artifacts) != 3 {
		t.Errorf("%+v", b)
	}
	if got := listing(t, out); got != fmt.Sprintf("[%s.json %s.qcow2 %s.raw %s.vhd]", b.Name, b.Name, b.Name, b.Name) {
		t.Errorf("output: %s", got)
	}
	files := map[string]string{}
	for _, a := range b.Artifacts {
		files[a.Format] = a.Path
		if fi, err := os.Stat(a.Path); err != nil || fi.Size() != a.SizeBytes || sha256File(t, a.Path) != a.SHA256 {
			t.Errorf("%s is not what --json says (%v)", a.Path, err)
		}
	}
	if out := need.Judge(t, "sgdisk", "-v", files["raw"]); !strings.Contains(out, "No problems found") {
		t.Error(out)
	}
	if sum := need.Judge(t, "sha256sum", files["qcow2"]); !strings.HasPrefix(sum, b.Artifacts[1].SHA256) && !strings.HasPrefix(sum, b.Artifacts[0].SHA256) {
		t.Errorf("sha256sum says %s", sum)
	}
	need.Judge(t, "qemu-img", "check", files["qcow2"])
	need.Judge(t, "qemu-img", "compare", files["raw"], files["qcow2"])
	var seen [2]string
	for i, format := range []string{"raw", "qcow2"} {
		text, errOut, status := kimage(t, "inspect", files[format], "--json")
		var in struct {
			Format     string
			Partitions []struct {
				Number                 int
				Name, Type, Filesystem string
				OffsetBytes, SizeBytes int64
			}
			Manifest struct {
				ImageID    string
				Components []struct {
					Files []struct{ Path, SHA256 string }
				}
				Images []struct{ Ref, Digest string }
			}
		}
		if err := json.Unmarshal([]byte(text), &in); err != nil || status != 0 {
			t.Fatalf("inspect: %v %s", err, errOut)
		}
		if in.Format != format || in.Manifest.ImageID != b.ImageID || len(in.Manifest.Images) != 8 || len(in.Manifest.Components) != 8 {
			t.Errorf("inspect %s: %+v", format, in)
		}
		for _, p := range in.Partitions {
			if format == "raw" && p.Filesystem == "ext4" {
				need.Judge(t, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", files["raw"], p.OffsetBytes))
			}
		}
		last := in.Partitions[len(in.Partitions)-1]
		if last.Name != "KIMAGE" || last.Number != 2 || last.Type != linuxData || last.OffsetBytes < 6<<30 {
			t.Errorf("KIMAGE: %+v", last)
		}
		human, _, _ := kimage(t, "inspect", files[format])
		seen[i] = human[strings.Index(human, "\n"):]
	}
	if seen[0] != seen[1] || !strings.Contains(seen[0], "dm-verity root hash") || !strings.Contains(seen[0], "registry.k8s.io/pause:3.10.2") {
		t.Errorf("inspect of raw and qcow2 differ, or say too little:\n%s\n%s", seen[0], seen[1])
	}
}

// TestJSON: the object has exactly the fields that it is promised to have.
func TestJSON(t *testing.T) {
	f := fixtures(t)
	out, errOut, status := kimage(t, f.args(t.TempDir(), t.TempDir(), "--json")...)
	var object map[string]any
	if err := json.Unmarshal([]byte(out), &object); err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s%s", status, err, out, errOut)
	}
	if got, want := slices.Sorted(maps.Keys(object)), []string{"apiVersion", "arch", "artifacts", "imageID", "kubernetes", "manifest", "name", "network", "os", "runtime"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	artifact := object["artifacts"].([]any)[0].(map[string]any)
	if got, want := slices.Sorted(maps.Keys(artifact)), []string{"format", "path", "sha256", "sizeBytes"}; !slices.Equal(got, want) {
		t.Errorf("artifact: got %v, want %v", got, want)
	}
	if _, err := os.Stat(object["manifest"].(string)); err != nil {
		t.Error(err)
	}
}

func TestReceipt(t *testing.T) {
	f := fixtures(t)
	out, errOut, status := kimage(t, f.args(t.TempDir(), t.TempDir())...)
	if status != 0 {
		t.Fatal(errOut)
	}
	for _, want := range []string{"imageID", "kubernetes", "v1.37.2", "https://dl.k8s.io/", "VERIFIED BY", "No signature was checked for: base, kubernetes", "Baked in", "qemu-system-x86_64", ".raw  7.1 GiB", " on disk"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for i := 1; i <= 5; i++ {
		if !strings.Contains(errOut, fmt.Sprintf("[%d/5]", i)) {
			t.Errorf("no stage %d in\n%s", i, errOut)
		}
	}
	quiet, errOut, _ := kimage(t, f.args(t.TempDir(), t.TempDir(), "--quiet")...)
	if quiet != "" || errOut != "" {
		t.Errorf("--quiet printed %q %q", quiet, errOut)
	}
}

// TestContainersOfABase: every container format of one base gives one disk.
func TestContainersOfABase(t *testing.T) {
	f, dir, cache := fixtures(t), t.TempDir(), t.TempDir()
	shell := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	shell("qemu-img convert -f raw -O qcow2 -c " + f.base + " base.qcow2; gzip -k <base.qcow2 >base.qcow2.gz; xz -0 <" + f.base + " >base.raw.xz; zstd -q <" + f.base + " >base.raw.zst; bzip2 <" + f.base + " >base.raw.bz2; " +
		"qemu-img convert -f raw -O vpc -o subformat=fixed,force_size " + f.base + " base.vhd; cp --sparse=always " + f.base + " disk.raw; tar --format=oldgnu -Szcf base.tar.gz disk.raw")
	names := []string{f.base, "base.qcow2", "base.qcow2.gz", "base.raw.xz", "base.raw.zst", "base.raw.bz2", "base.vhd", "base.tar.gz"}
	for _, name := range names {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		b := build(t, f.args(cache, t.TempDir(), "--base", name, "--images", "none", "--name", "x")...)
		need.Judge(t, "e2fsck", "-fn", b.Artifacts[0].Path+"?offset=4194304")
	}
	// The images name the base's file, so they differ; what was unpacked must not.
	unpacked, err := filepath.Glob(filepath.Join(cache, "entries/base/*/disk.raw"))
	if err != nil || len(unpacked) != len(names) {
		t.Fatalf("%d bases were unpacked (%v): %v", len(unpacked), err, unpacked)
	}
	for _, u := range unpacked {
		if digest(t, u) != digest(t, f.base) {
			t.Errorf("%s is another disk", u)
		}
	}
}

// TestURLs: base and components over HTTP; what the server changes is refused.
func TestURLs(t *testing.T) {
	f, cache := fixtures(t), t.TempDir()
	damage := false
	files := http.FileServer(http.Dir(f.dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/base.raw.sha256":
			fmt.Fprintln(w, sha256File(t, f.base))
		case damage && strings.HasSuffix(r.URL.Path, "/kubelet"):
			fmt.Fprint(w, "evil")
		default:
			files.ServeHTTP(w, r)
		}
	}))
	defer server.Close()
	more := []string{"--base", server.URL + "/base.raw", "--components", server.URL + "/mirror"}
	first := build(t, f.args(cache, t.TempDir(), more...)...)
	if viaDir := build(t, f.args(t.TempDir(), t.TempDir(), "--base", server.URL+"/base.raw")...); viaDir.Artifacts[0].Digest != first.Artifacts[0].Digest {
		t.Error("a mirror's directory and its URL give different images")
	}
	damage = true
	_, errOut, status := kimage(t, f.args(t.TempDir(), t.TempDir(), more...)...)
	if status != 2 || !strings.Contains(errOut, "kubelet") || !strings.Contains(errOut, "checksum") {
		t.Errorf("a changed kubelet: status %d, %s", status, errOut)
	}
	server.Close()
	if again := build(t, f.args(cache, t.TempDir(), append(more, "--offline")...)...); again.Artifacts[0].Digest != first.Artifacts[0].Digest {
		t.Error("--offline gives another image")
	}
	_, errOut, status = kimage(t, f.args(t.TempDir(), t.TempDir(), append(more, "--offline")...)...)
	if status != 2 || !strings.Contains(errOut, "--offline") {
		t.Errorf("--offline with an empty cache: status %d, %s", status, errOut)
	}
	_, errOut, status = kimage(t, f.args(t.TempDir(), t.TempDir(), more...)...)
	if status != 2 || strings.Count(errOut, "\n") > 12 {
		t.Errorf("server gone: status %d, %s", status, errOut)
	}
}

func TestClusterFile(t *testing.T) {
	f := fixtures(t)
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	const text = "apiVersion: kimage.dev/v1alpha1\nkind: Cluster\nmetadata: {name: demo}\nspec: {os: debian-13, kubernetes: v1.37.2, network: {plugin: none}, nodes: [{name: a, roles: [etcd, master], address: 10.0.0.1}]}\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"build", "-f", file}, f.args(t.TempDir(), t.TempDir())[3:]...)
	if b := build(t, args...); b.Network != "none" || b.OS != "debian-13" {
		t.Errorf("%+v", b)
	}
	if b := build(t, append(args, "--network", "flannel")...); b.Network != "flannel" {
		t.Errorf("the flag does not win: %+v", b)
	}
}

func TestTwoBuildsAtOnce(t *testing.T) {
	f, cache, out := fixtures(t), t.TempDir(), t.TempDir()
	var group sync.WaitGroup
	results := make([]built, 3)
	for i := range results {
		group.Go(func() {
			text, errOut, status := kimage(t, f.args(cache, out, "--json")...)
			if status != 0 {
				t.Errorf("status %d: %s", status, errOut)
				return
			}
			if err := json.Unmarshal([]byte(text), &results[i]); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	for _, r := range results {
		if r.Artifacts[0].SHA256 != results[0].Artifacts[0].SHA256 {
			t.Error("builds at once give different images")
		}
	}
	if got := sha256File(t, results[0].Artifacts[0].Path); got != results[0].Artifacts[0].SHA256 {
		t.Error("the file that is there is none of those that were reported")
	}
	if got := listing(t, out); strings.Contains(got, "partial") {
		t.Errorf("left: %s", got)
	}
}
