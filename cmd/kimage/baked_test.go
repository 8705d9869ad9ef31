package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/sparse"
)

// baked is an image that several tests read and copy; raw, qcow2 and vhd.
type baked struct {
	file, base string // without the extension
	kimage     parttable.Partition
	root       parttable.Partition
	volume     ext4.Volume // KIMAGE
	payload    []byte
	rootHash   string
}

var bakedOnce struct {
	sync.Once
	baked
	failed string
}

func bakedImage(t *testing.T) baked {
	t.Helper()
	f := fixtures(t)
	bakedOnce.Do(func() {
		out, cache := filepath.Join(f.dir, "baked"), filepath.Join(f.dir, "cache")
		if _, errOut, status := kimage(t, f.args(cache, out, "--format", "raw,qcow2,vhd")...); status != 0 {
			bakedOnce.failed = errOut
			return
		}
		bakedOnce.baked = readBaked(t, filepath.Join(out, "debian-13-v1.37.2-amd64"))
	})
	if bakedOnce.failed != "" {
		t.Fatal(bakedOnce.failed)
	}
	return bakedOnce.baked
}

// readBaked finds where things are in a raw image.
func readBaked(t *testing.T, file string) baked {
	t.Helper()
	b := baked{file: file}
	raw, err := os.Open(file + ".raw")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	fi, err := raw.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, err := parttable.Read(raw, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	b.kimage, _ = table.FindName("KIMAGE")
	b.root, _ = table.FindName("root")
	b.volume = ext4.Volume{File: file + ".raw", OffsetBytes: b.kimage.OffsetBytes()}
	found, err := b.volume.Inodes(t.Context(), []string{"extensions/current.raw"})
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	name := "extensions/" + found["extensions/current.raw"].Target
	if b.payload, err = b.volume.ReadFile(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if hash, err := b.volume.ReadFile(t.Context(), strings.TrimSuffix(name, ".raw")+".roothash"); err == nil {
		b.rootHash = string(hash)
	} else if !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

// blobs are the manifest and the config of a container image, as KIMAGE has them.
func (b baked) blobs(t *testing.T, ref string) (manifest, config string) {
	t.Helper()
	blob := func(digest string) string {
		raw, err := b.volume.ReadFile(t.Context(), "state/containerd/io.containerd.content.v1.content/blobs/sha256/"+strings.TrimPrefix(digest, "sha256:"))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	raw, err := b.volume.ReadFile(t.Context(), "manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Images []struct{ Ref, Digest string }
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	for _, im := range all.Images {
		if im.Ref == ref {
			manifest = blob(im.Digest)
			var m struct{ Config struct{ Digest string } }
			if err := json.Unmarshal([]byte(manifest), &m); err != nil {
				t.Fatal(err)
			}
			return manifest, blob(m.Config.Digest)
		}
	}
	t.Fatalf("no image %s", ref)
	return "", ""
}

// copied is a copy of the raw image that may be changed; nothing lies beside it.
func (b baked) copied(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.raw")
	need.Judge(t, "cp", "--sparse=always", b.file+".raw", file)
	return file
}

// find returns where in a partition of file content is, for the nth time, from 0.
func find(t *testing.T, file string, p parttable.Partition, content []byte, nth int) int64 {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	extents, err := sparse.Extents(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range extents {
		from, to := max(e.Offset, p.OffsetBytes()), min(e.Offset+e.Length, p.OffsetBytes()+p.SizeBytes())
		if from >= to {
			continue
		}
		part := make([]byte, to-from)
		if _, err := f.ReadAt(part, from); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		for at := 0; ; at++ {
			i := bytes.Index(part[at:], content)
			if i < 0 {
				break
			}
			if at += i; nth == 0 {
				return from + int64(at)
			}
			nth--
		}
	}
	t.Fatalf("%.60q is not in the image", content)
	return 0
}

func flipAt(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func ext4Device(file string, p parttable.Partition) string {
	return fmt.Sprintf("%s?offset=%d", file, p.OffsetBytes())
}
