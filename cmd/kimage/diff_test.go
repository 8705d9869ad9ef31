package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

type change struct {
	Name string
	A, B json.RawMessage
}

type difference struct {
	APIVersion                                                     string
	A, B                                                           struct{ File, Name, ImageID string }
	Same                                                           bool
	Options, Base, Packages, Components, Images, Files, Partitions []change
	NotCompared                                                    []string
}

func differ(t *testing.T, a, b string) difference {
	t.Helper()
	out, errOut, status := kimage(t, "diff", "--json", a, b)
	var d difference
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("status %d, %v\n%s%s", status, err, out, errOut)
	}
	if d.Same != (status == 0) || d.APIVersion != "kimage.dev/v1alpha1" || d.A.File != a || d.B.File != b {
		t.Errorf("status %d: %+v", status, d)
	}
	return d
}

func compact(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// has says that a thing changed from one JSON text to another; empty: it was not there.
func has(t *testing.T, list []change, name, a, b string) {
	t.Helper()
	for _, c := range list {
		if c.Name == name {
			if x, y := compact(t, c.A), compact(t, c.B); a == "" && x != "null" || b == "" && y != "null" || !strings.Contains(x, a) || !strings.Contains(y, b) {
				t.Errorf("%s: %s -> %s, want %s -> %s", name, x, y, a, b)
			}
			return
		}
	}
	t.Errorf("no %s in %+v", name, list)
}

// TestDiffSame: an image is the same as itself, in whatever format.
func TestDiffSame(t *testing.T) {
	b := bakedImage(t)
	for _, other := range []string{"raw", "qcow2", "vhd"} {
		d := differ(t, b.file+".raw", b.file+"."+other)
		if !d.Same || len(d.Options)+len(d.Base)+len(d.Components)+len(d.Images)+len(d.Files)+len(d.Partitions)+len(d.Packages) > 0 || d.A.ImageID != d.B.ImageID {
			t.Errorf("%s: %+v", other, d)
		}
		if len(d.NotCompared) == 0 || !strings.Contains(d.NotCompared[0], "packages of the base") {
			t.Errorf("%s: the base has no list of packages, and that is not said: %q", other, d.NotCompared)
		}
	}
	if out, _, status := kimage(t, "diff", b.file+".raw", b.file+".qcow2"); status != 0 || !strings.Contains(out, "\nthe same: ") {
		t.Errorf("status %d\n%s", status, out)
	}
}

// TestDiff: everything that another version, network and base change is listed.
func TestDiff(t *testing.T) {
	b, f := bakedImage(t), fixtures(t)
	older, out := t.TempDir(), t.TempDir()
	if err := writeMirror(older, "1.36", "amd64"); err != nil {
		t.Fatal(err)
	}
	other := build(t, f.args(filepath.Join(f.dir, "cache"), out, "--kubernetes", "1.36", "--network", "none", "--components", older)...)
	d := differ(t, b.file+".raw", other.Artifacts[0].Path)
	has(t, d.Options, "kubernetes", `"v1.37.2"`, `"v1.36.5"`)
	has(t, d.Options, "network", `"flannel"`, `"none"`)
	has(t, d.Options, "imageID", d.A.ImageID, d.B.ImageID)
	has(t, d.Components, "kubernetes", `"version":"v1.37.2"`, `"version":"v1.36.5"`)
	has(t, d.Components, "flannel-cni", `"version"`, "")
	has(t, d.Images, "registry.k8s.io/kube-apiserver", `"tag":"v1.37.2"`, `"tag":"v1.36.5"`)
	has(t, d.Images, "ghcr.io/flannel-io/flannel", `"digest":"sha256:`, "")
	has(t, d.Files, "usr/bin/kubelet", `"sha256":"`, `"sha256":"`)
	has(t, d.Files, "usr/libexec/kimage/cni/flannel", `"mode":"-rwxr-xr-x"`, "")
	has(t, d.Files, "usr/share/kimage/flannel.yaml", `"sizeBytes"`, "")
	if d.Same || len(d.Base) > 0 {
		t.Errorf("%+v", d)
	}
	text, _, status := kimage(t, "diff", b.file+".raw", other.Artifacts[0].Path)
	for _, want := range []string{"  ~ kubernetes  ", "v1.37.2  ->  v1.36.5", "->  none\n", "  - usr/share/kimage/flannel.yaml", "\ndifferent: ", "components"} {
		if status != 1 || !strings.Contains(text, want) {
			t.Errorf("status %d, no %q in\n%s", status, want, text)
		}
	}
	if text, errOut, status := kimage(t, "diff", "--quiet", b.file+".raw", other.Artifacts[0].Path); text+errOut != "" || status != 1 {
		t.Errorf("--quiet: status %d, %q", status, text+errOut)
	}
}

// TestDiffPackages: of a base that was given, the packages are those that are in it.
func TestDiffPackages(t *testing.T) {
	f := fixtures(t)
	var files []string
	for i, status := range []string{"Package: bash\nVersion: 5.1\n\nPackage: old\nVersion: 1\n\nPackage: same\nVersion: 2\n", "Package: bash\nVersion: 5.2\n\nPackage: new\nVersion: 1\n\nPackage: same\nVersion: 2\n"} {
		dir, out := t.TempDir(), t.TempDir()
		base, list := filepath.Join(dir, "base.raw"), filepath.Join(dir, "status")
		if err := os.WriteFile(list, []byte(status), 0o644); err != nil {
			t.Fatal(err)
		}
		need.Judge(t, "cp", "--sparse=always", f.base, base)
		for _, command := range []string{"mkdir /var", "mkdir /var/lib", "mkdir /var/lib/dpkg", "write " + list + " /var/lib/dpkg/status"} {
			need.Judge(t, "debugfs", "-w", "-R", command, base+"?offset=4194304")
		}
		format := []string{"raw", "qcow2"}[i]
		files = append(files, build(t, f.args(filepath.Join(f.dir, "cache"), out, "--base", base, "--images", "none", "--format", format)...).Artifacts[0].Path)
	}
	d := differ(t, files[0], files[1])
	if len(d.Packages) != 3 || len(d.NotCompared) > 0 {
		t.Errorf("%+v", d)
	}
	has(t, d.Packages, "bash", `"5.1"`, `"5.2"`)
	has(t, d.Packages, "old", `"1"`, "")
	has(t, d.Packages, "new", "", `"1"`)
	has(t, d.Base, "digest", `"sha256:`, `"sha256:`)
}
