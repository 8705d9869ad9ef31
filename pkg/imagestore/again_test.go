package imagestore

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/oci"
)

// TestAgain: from what a store keeps its databases can be made again, byte for byte;
// with another file in a layer they are others.
func TestAgain(t *testing.T) {
	images := twoImages(t)
	tr := open(t, write(t, images))
	read := func(path string) ([]byte, error) {
		e, ok := tr.Lookup(path)
		if !ok {
			return nil, fs.ErrNotExist
		}
		r, err := e.Open()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	var kept []Kept
	for _, im := range images {
		d, _, err := oci.Manifest(im.Layout)
		if err != nil {
			t.Fatal(err)
		}
		k, err := Find(im.Ref, d, read)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, k)
		for i, what := range []string{"manifest", "config"} {
			n := 0
			_, err := Find(im.Ref, d, func(path string) ([]byte, error) {
				raw, err := read(path)
				if n++; n == i+1 {
					raw[len(raw)/2] ^= 1
				}
				return raw, err
			})
			if err == nil || !strings.Contains(err.Error(), "its "+what+" is sha256:") {
				t.Errorf("a changed %s: %v", what, err)
			}
		}
	}
	for _, bad := range []string{"", "../../etc/passwd", "sha256:" + strings.Repeat("0", 64)} {
		if _, err := Find("x", bad, read); err == nil || !strings.Contains(err.Error(), "its manifest") {
			t.Errorf("digest %q: %v", bad, err)
		}
	}
	usage, layers := map[string]Usage{}, Layers(kept)
	for _, dir := range layers {
		var u Usage
		for _, e := range tr.Entries() {
			if e.Path == dir || strings.HasPrefix(e.Path, dir+"/") && !e.Hard {
				u.Add(e.Size)
			}
		}
		usage[dir] = u
	}
	if len(layers) != 3 || usage[layers[0]].Inodes < 5 {
		t.Errorf("%v: %v", layers, usage)
	}
	same := func() (out [2]bool) {
		files, err := Again(t.Context(), kept, usage, Config{Directory: t.TempDir(), UnixTime: unixTime, Pinned: true})
		if err != nil {
			t.Fatal(err)
		}
		for i, path := range []string{MetadataDatabase, SnapshotsDatabase} {
			want, err := read(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(files[i])
			if err != nil {
				t.Fatal(err)
			}
			out[i] = bytes.Equal(got, want)
		}
		return out
	}
	if got := same(); !got[0] || !got[1] {
		t.Errorf("made again, they are others: %v", got)
	}
	more := usage[layers[1]]
	more.Add(1)
	usage[layers[1]] = more
	if got := same(); !got[0] || got[1] {
		t.Errorf("another file in a layer: %v", got)
	}
	kept[0].Ref = "registry.example/other:1"
	if got := same(); got[0] {
		t.Error("another name of an image is not noticed")
	}
}
