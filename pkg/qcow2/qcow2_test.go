package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// disk makes a sparse raw disk with data at odd places.
func disk(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		b := make([]byte, 1+r.IntN(200_000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if _, err := f.WriteAt(b, r.Int64N(size-int64(len(b)))); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestWrite(t *testing.T) {
	for _, size := range []int64{1 << 20, 700<<20 + 512, 5 << 30} {
		raw := disk(t, size)
		var images [][]byte
		for range 2 {
			name := filepath.Join(t.TempDir(), "disk.qcow2")
			out, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := Write(context.Background(), out, raw, nil); err != nil {
				t.Fatal(err)
			}
			out.Close()
			qemuImg(t, "check", name)
			qemuImg(t, "compare", "-f", "raw", "-F", "qcow2", raw.Name(), name)
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			images = append(images, data)
		}
		if !bytes.Equal(images[0], images[1]) {
			t.Errorf("%d bytes: two images of one disk differ", size)
		}
	}
}

func TestRead(t *testing.T) {
	raw := disk(t, 64<<20+512)
	want, err := os.ReadFile(raw.Name())
	if err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]string{
		"version 3":  {},
		"compressed": {"-c"},
		"zstd":       {"-c", "-o", "compression_type=zstd"},
		"version 2":  {"-o", "compat=0.10"},
		"clusters":   {"-o", "cluster_size=4096"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk.qcow2")
			qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), raw.Name(), file)...)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if !Detect(f) {
				t.Fatal("not detected")
			}
			r, err := Open(f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.NewSectionReader(r, 0, r.SizeBytes()))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("content differs (%v, %d bytes)", err, len(got))
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	raw := disk(t, 1<<20)
	for name, options := range map[string][]string{
		"backing file":  {"-F", "raw", "-b", raw.Name()},
		"external data": {"-o", "data_file=" + filepath.Join(t.TempDir(), "data"), "1M"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk.qcow2")
			qemuImg(t, append([]string{"create", "-q", "-f", "qcow2", file}, options...)...)
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := Open(f); err == nil || !strings.Contains(err.Error(), "qemu-img convert") {
				t.Errorf("error %v; want one that names the remedy", err)
			}
		})
	}
	encrypted := tiny(3)
	encrypted[35] = 2 // LUKS; qemu-img refuses to make one on a busy machine
	if _, err := OpenReader(bytes.NewReader(encrypted), int64(len(encrypted))); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("an encrypted image: %v", err)
	}
	file := filepath.Join(t.TempDir(), "disk.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", file, "100M")
	if err := os.Truncate(file, 600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Open(f); err == nil {
		t.Error("a truncated image was opened")
	}
}

// FuzzRead: no image makes the reader panic, hang or take memory without bound.
// tiny is an image with clusters of 512 bytes and every kind of cluster: data,
// zeros, compressed, none.
func tiny(version uint32) []byte {
	const cluster = 512
	b, be := make([]byte, 5*cluster), binary.BigEndian
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], version)
	be.PutUint32(b[20:], 9)
	be.PutUint64(b[24:], 20*cluster)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], cluster) // first-level table
	be.PutUint64(b[48:], 4*cluster)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], headerBytes)
	be.PutUint64(b[cluster:], 2*cluster|copied)
	be.PutUint64(b[2*cluster:], 3*cluster|copied)
	be.PutUint64(b[2*cluster+8:], 1)                     // zeros
	be.PutUint64(b[2*cluster+16:], 1<<62|(3*cluster+64)) // compressed
	var z bytes.Buffer
	w, _ := flate.NewWriter(&z, 9)
	w.Write(bytes.Repeat([]byte("data"), cluster/4))
	w.Close()
	copy(b[3*cluster+64:4*cluster], z.Bytes())
	return b
}

// FuzzRead reads everything of what the fuzzer makes of small images.
func FuzzRead(f *testing.F) {
	f.Add(tiny(2))
	f.Add(tiny(3))
	f.Add(tiny(3)[:700])
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := OpenReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		buf, size := make([]byte, 4096), r.SizeBytes()
		for _, off := range []int64{0, 1, 512, 1024, 4096, 8192, size / 2, size - 1, size - 4096, size, size + 1} {
			if off < 0 {
				continue
			}
			if n, err := r.ReadAt(buf, off); n < 0 || n > len(buf) || n < len(buf) && err == nil || off+int64(n) > size && n > 0 {
				t.Fatalf("ReadAt(%d) of a disk of %d: %d, %v", off, size, n, err)
			}
		}
	})
}

func TestTiny(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		b := tiny(version)
		r, err := OpenReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4*512)
		if _, err := r.ReadAt(got, 0); err != nil {
			t.Fatalf("version %d: %v", version, err)
		}
		if !bytes.HasPrefix(got[1024:], []byte("datadata")) || !bytes.Equal(got[512:1024], make([]byte, 512)) && version == 3 {
			t.Errorf("version %d: %q", version, got[:1100])
		}
	}
}
