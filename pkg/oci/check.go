package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// CheckArchive reads an archive that WriteArchive wrote to its end: every blob must be
// what its name says, index.json must name the image ref by that digest, and whatever
// manifests name must be there. Layers are not kept in memory.
func CheckArchive(r io.Reader, ref, digest string) error {
	const small = 4 << 20 // no manifest is larger
	var index v1.IndexManifest
	sizes, kept := map[string]int64{}, map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		if h.Name == "index.json" {
			if err := json.NewDecoder(io.LimitReader(tr, small)).Decode(&index); err != nil {
				return fmt.Errorf("reading index.json: %w", err)
			}
		}
		if h.Typeflag != tar.TypeReg || path.Dir(h.Name) != "blobs/sha256" {
			continue
		}
		sum, content := sha256.New(), &bytes.Buffer{}
		var to io.Writer = sum
		if h.Size <= small {
			to = io.MultiWriter(sum, content)
		}
		if _, err := io.Copy(to, tr); err != nil {
			return fmt.Errorf("reading %s: %w", h.Name, err)
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != path.Base(h.Name) {
			return fmt.Errorf("its blob %s has the SHA-256 %s", path.Base(h.Name), got)
		}
		name := "sha256:" + path.Base(h.Name)
		sizes[name] = h.Size
		if h.Size <= small && json.Valid(content.Bytes()) {
			kept[name] = content.Bytes()
		}
	}
	// What follows the tar's end is not part of it.
	found := false
	for _, d := range index.Manifests {
		found = found || d.Annotations[refName] == ref && d.Digest.String() == digest
		var m v1.Manifest
		raw, ok := kept[d.Digest.String()]
		if !ok {
			return fmt.Errorf("its index names the manifest %s, which it does not have", d.Digest)
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("reading the manifest %s: %w", d.Digest, err)
		}
		for _, b := range append(m.Layers, m.Config) {
			if size, ok := sizes[b.Digest.String()]; !ok || size != b.Size {
				return fmt.Errorf("the manifest %s names the blob %s of %d bytes, which it does not have", d.Digest, b.Digest, b.Size)
			}
		}
	}
	if !found {
		return errors.New("its index does not name the image by the digest that it should have")
	}
	return nil
}
