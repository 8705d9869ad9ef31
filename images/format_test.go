package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/need"
)

// formatted is a small disk with holes, and what it is written as, twice.
func formatted(t *testing.T, formats ...string) (raw string, files map[string]string) {
	t.Helper()
	need.Program(t, "qemu-img", "qemu-utils")
	c, err := cache.Open(t.TempDir(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	b := &Builder{config: Config{Arch: "amd64"}, name: "node", cache: c}
	const size = 70 << 20
	raw = filepath.Join(t.TempDir(), "node.raw")
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	random := rand.NewChaCha8([32]byte{})
	for _, at := range []int64{0, 5 << 20, 33<<20 + 4096, size - 8192} {
		data := make([]byte, 8192)
		random.Read(data)
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	files = map[string]string{}
	for _, format := range formats {
		var first []byte
		for range 2 {
			files[format] = filepath.Join(t.TempDir(), "another"+extension(format)) // not yet its final name
			out, err := os.Create(files[format])
			if err != nil {
				t.Fatal(err)
			}
			done := int64(0)
			if err := b.write(t.Context(), out, f, size, format, func(n int64) { done += n }); err != nil {
				t.Fatalf("%s: %v", format, err)
			}
			out.Close()
			data, err := os.ReadFile(files[format])
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = data
			} else if !bytes.Equal(first, data) {
				t.Errorf("%s: other bytes the second time", format)
			}
		}
	}
	return raw, files
}

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
// what their providers read.
func TestBoxes(t *testing.T) {
	raw, files := formatted(t, boxLibvirt, boxVirtualBox)
	dir, meta := unpackBox(t, files[boxLibvirt])
	if meta["provider"] != "libvirt" || meta["format"] != "qcow2" || meta["virtual_size"] != 1.0 || meta["architecture"] != "amd64" {
		t.Errorf("metadata.json: %v", meta)
	}
	need.Judge(t, "qemu-img", "check", filepath.Join(dir, "box.img"))
	need.Judge(t, "qemu-img", "compare", raw, filepath.Join(dir, "box.img"))

	dir, meta = unpackBox(t, files[boxVirtualBox])
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
	info := need.Judge(t, "qemu-img", "info", "--output", "json", vmdk)
	if !strings.Contains(info, `"create-type": "streamOptimized"`) || !strings.Contains(info, `"virtual-size": 21474836480`) {
		t.Errorf("qemu-img says of the disk: %s", info)
	}
	// What is behind the end of the shorter one is zero.
	need.Judge(t, "qemu-img", "compare", raw, vmdk)
}

// TestFormats: what other tools read is the disk that the raw image is, by their own
// word.
func TestFormats(t *testing.T) {
	need.Program(t, "zstd", "zstd")
	raw, files := formatted(t, formatZstd, formatQcow2, formatGCE, formatVHD, formatVMDK)
	dir := t.TempDir()
	need.Judge(t, "zstd", "-dq", files[formatZstd], "-o", filepath.Join(dir, "raw"))
	need.Judge(t, "cmp", raw, filepath.Join(dir, "raw"))
	need.Judge(t, "qemu-img", "check", files[formatQcow2])
	need.Judge(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, files[formatQcow2])
	need.Judge(t, "qemu-img", "compare", "-f", "raw", "-F", "vpc", raw, files[formatVHD])
	need.Judge(t, "qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, files[formatVMDK])
	fi, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	if list := need.Judge(t, "tar", "-tvzf", files[formatGCE]); !strings.HasSuffix(strings.TrimSpace(list), " disk.raw") || strings.Count(list, "\n") != 1 {
		t.Errorf("tar lists %s", list)
	}
	if kind := need.Judge(t, "sh", "-c", `gzip -dc "$0" 2>/dev/null | head -c 265 | tail -c 8`, files[formatGCE]); kind != "ustar  \x00" {
		t.Errorf("the archive's magic is %q, not that of GNU's old format", kind)
	}
	need.Judge(t, "tar", "-xzSf", files[formatGCE], "-C", dir)
	disk := filepath.Join(dir, "disk.raw")
	if got, err := os.Stat(disk); err != nil || got.Size()%(1<<30) != 0 || got.Size() < fi.Size() || got.Size() >= fi.Size()+1<<30 {
		t.Errorf("disk.raw of %d bytes for a disk of %d: %v", got.Size(), fi.Size(), err)
	}
	need.Judge(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, disk)
	if out, err := os.Stat(files[formatVHD]); err != nil || (out.Size()-512)%(1<<20) != 0 {
		t.Errorf("the VHD has %d bytes, which are no whole MiB and a footer: %v", out.Size(), err)
	}
}
