package images

import (
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/progress"
	"github.com/kimage-project/kimage/pkg/tree"
)

// TestContainerImages: a containerd whose store is known gets it, any other an
// archive to import, and no images are no entry.
func TestContainerImages(t *testing.T) {
	c, err := cache.Open(t.TempDir(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	entry, _, err := c.Dir(t.Context(), "image", "key", func(_ context.Context, dir string) error {
		content := tree.New()
		if err := content.Bytes("program", 0o755, []byte("text")); err != nil {
			return err
		}
		layer, err := oci.WriteLayer(content, filepath.Join(t.TempDir(), "layer"), fixedTime(unixTime))
		if err != nil {
			return err
		}
		return oci.WriteLayout(dir, oci.Config{Arch: "amd64", Entrypoint: []string{"/program"}}, []oci.Layer{layer})
	})
	if err != nil {
		t.Fatal(err)
	}
	digest, _, err := oci.Manifest(entry)
	if err != nil {
		t.Fatal(err)
	}
	b := &Builder{cache: c, report: progress.New(io.Discard, Stages)}
	for _, tt := range []struct {
		containerd, want, format string
		none                     bool
	}{
		{containerd: "v2.4.2", want: "state/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/program", format: "containerd"},
		{containerd: "v1.7.0", want: "images/" + archiveFile(digest), format: "archive"},
		{containerd: "v2.4.2", none: true},
	} {
		set := &components.Set{Versions: map[string]string{"containerd": tt.containerd}}
		if !tt.none {
			set.Images = []components.Image{{Ref: "registry.example/program:1", ManifestDigest: digest, Layout: entry}}
		}
		im, err := b.containerImages(t.Context(), set)
		if err != nil {
			t.Fatal(err)
		}
		if tt.none {
			if im.entry != "" || im.info() != nil || im.roomBytes() != 0 {
				t.Errorf("no images: %+v", im)
			}
			continue
		}
		if info := im.info(); info == nil || info.Format != tt.format || info.SizeBytes <= 0 || im.roomBytes() < info.SizeBytes {
			t.Errorf("containerd %s: %+v", tt.containerd, info)
		}
		made, err := im.tree(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		e, ok := made.Lookup(tt.want)
		if !ok {
			t.Errorf("containerd %s: no %s", tt.containerd, tt.want)
			continue
		}
		r, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); err != nil || n != e.Size {
			t.Errorf("%s: %d bytes of %d, %v", tt.want, n, e.Size, err)
		}
		r.Close()
	}
}
