package oci

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/tree"
)

// TestCheckArchive: every byte of a blob counts, and the index must name the image.
func TestCheckArchive(t *testing.T) {
	const ref = "registry.example/program:1"
	content, layout := tree.New(), t.TempDir()
	if err := content.Bytes("program", 0o755, []byte("text")); err != nil {
		t.Fatal(err)
	}
	layer, err := WriteLayer(content, filepath.Join(t.TempDir(), "layer"), time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteLayout(layout, Config{Arch: "amd64", Entrypoint: []string{"/program"}}, []Layer{layer}); err != nil {
		t.Fatal(err)
	}
	digest, _, err := Manifest(layout)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := WriteArchive(t.Context(), &archive, []Named{{Ref: ref, Layout: layout}}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	good := archive.Bytes()
	if err := CheckArchive(bytes.NewReader(good), ref, digest); err != nil {
		t.Error(err)
	}
	for _, what := range [][]byte{[]byte(`"mediaType":"application/vnd.oci.image.manifest.v1+json","config"`), []byte(`"rootfs"`), {0x28, 0xb5, 0x2f, 0xfd}} {
		at := bytes.Index(good, what)
		if at < 0 {
			t.Errorf("no %q in the archive", what)
			continue
		}
		bad := bytes.Clone(good)
		bad[at+2] ^= 1
		if err := CheckArchive(bytes.NewReader(bad), ref, digest); err == nil || !strings.Contains(err.Error(), "has the SHA-256") {
			t.Errorf("%q: %v", what, err)
		}
	}
	for _, c := range []struct{ ref, digest string }{{"registry.example/other:1", digest}, {ref, "sha256:" + strings.Repeat("0", 64)}} {
		if err := CheckArchive(bytes.NewReader(good), c.ref, c.digest); err == nil {
			t.Errorf("%+v", c)
		}
	}
	for _, n := range []int{0, 600, len(good) / 2} {
		if err := CheckArchive(bytes.NewReader(good[:n]), ref, digest); err == nil {
			t.Errorf("%d bytes of it", n)
		}
	}
}
