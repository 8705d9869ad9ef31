package qcow2

import (
	"bytes"
	"context"
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
		"encrypted":     {"--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "1M"},
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
func FuzzRead(f *testing.F) {
	raw := disk(f, 300<<10)
	out, err := os.Create(filepath.Join(f.TempDir(), "disk.qcow2"))
	if err != nil {
		f.Fatal(err)
	}
	if err := Write(context.Background(), out, raw, nil); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(out.Name())
	if err != nil {
		f.Fatal(err)
	}
	// Small seeds keep the fuzzer fast: the header, the tables, little data.
	f.Add(data[:70_000])
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := OpenReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		buf := make([]byte, 4096)
		for _, off := range []int64{0, 1, 65536, r.SizeBytes() / 2, r.SizeBytes() - 1} {
			if off >= 0 {
				r.ReadAt(buf, off)
			}
		}
	})
}
