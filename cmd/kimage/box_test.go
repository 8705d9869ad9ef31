package main

import (
	"archive/tar"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// unpackBox unpacks a Vagrant box, and returns what it says of itself.
func unpackBox(t *testing.T, file string) (dir string, meta map[string]any) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir = t.TempDir()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(filepath.Join(dir, h.Name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, r); err != nil {
			t.Fatal(err)
		}
		out.Close()
	}
	data, err := os.ReadFile(filepath.Join(dir, "metadata.json"))
	if err == nil {
		err = json.Unmarshal(data, &meta)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, meta
}

// TestBoxes: both boxes hold the disk that the raw image is, by qemu-img's word, and
// what their providers read; two bakes give the same bytes.
func TestBoxes(t *testing.T) {
	need.Program(t, "qemu-img", "qemu-utils")
	f := fixtures(t)
	var sums [2][]string
	files := map[string]string{}
	for i := range sums {
		b := buildJSON(t, f.args(t.TempDir(), t.TempDir(), "--format", "raw,vagrant-virtualbox,vagrant-libvirt")...)
		for _, a := range b.Artifacts {
			sums[i] = append(sums[i], a.Format+" "+sha256File(t, a.Path))
			files[a.Format] = a.Path
		}
	}
	if strings.Join(sums[0], "\n") != strings.Join(sums[1], "\n") || len(sums[0]) != 3 {
		t.Errorf("two bakes:\n%s\n%s", sums[0], sums[1])
	}
	for format, end := range map[string]string{"vagrant-libvirt": ".libvirt.box", "vagrant-virtualbox": ".virtualbox.box"} {
		if !strings.HasSuffix(files[format], end) {
			t.Errorf("%s is %s", format, files[format])
		}
	}

	dir, meta := unpackBox(t, files["vagrant-libvirt"])
	if meta["provider"] != "libvirt" || meta["format"] != "qcow2" || meta["virtual_size"].(float64) < 6 {
		t.Errorf("metadata.json: %v", meta)
	}
	judge(t, "qemu-img", "check", filepath.Join(dir, "box.img"))
	judge(t, "qemu-img", "compare", files["raw"], filepath.Join(dir, "box.img"))

	dir, meta = unpackBox(t, files["vagrant-virtualbox"])
	if meta["provider"] != "virtualbox" {
		t.Errorf("metadata.json: %v", meta)
	}
	data, err := os.ReadFile(filepath.Join(dir, "box.ovf"))
	if err != nil {
		t.Fatal(err)
	}
	var ovf struct {
		References struct {
			File struct {
				Href string `xml:"href,attr"`
				Size int64  `xml:"size,attr"`
			}
		}
		DiskSection struct {
			Disk struct {
				Capacity int64  `xml:"capacity,attr"`
				Format   string `xml:"format,attr"`
			}
		}
	}
	if err := xml.Unmarshal(data, &ovf); err != nil {
		t.Fatal(err)
	}
	vmdk := filepath.Join(dir, ovf.References.File.Href)
	if fi, err := os.Stat(vmdk); err != nil || fi.Size() != ovf.References.File.Size || ovf.DiskSection.Disk.Capacity != 20<<30 || !strings.HasSuffix(ovf.DiskSection.Disk.Format, "#streamOptimized") {
		t.Errorf("%+v of %s: %v", ovf, vmdk, err)
	}
	info := judge(t, "qemu-img", "info", "--output", "json", vmdk)
	if !strings.Contains(info, `"create-type": "streamOptimized"`) || !strings.Contains(info, `"virtual-size": 21474836480`) {
		t.Errorf("qemu-img says of the disk: %s", info)
	}
	// What is behind the end of the shorter one is zero.
	judge(t, "qemu-img", "compare", files["raw"], vmdk)
}
