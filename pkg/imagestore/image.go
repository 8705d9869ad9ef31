package imagestore

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kimage-project/kimage/pkg/oci"
)

// image stores one image: its layers as snapshots, its config and manifest as
// content, its name.
func (s *store) image(ctx context.Context, im oci.Named) error {
	var index ocispec.Index
	data, err := os.ReadFile(filepath.Join(im.Layout, "index.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("reading %s/index.json: %w", im.Layout, err)
	}
	if len(index.Manifests) != 1 {
		return fmt.Errorf("%s has %d images instead of one", im.Layout, len(index.Manifests))
	}
	target := index.Manifests[0]
	target.Annotations, target.Platform = nil, nil
	var manifest ocispec.Manifest
	rawManifest, err := readBlob(im.Layout, target, &manifest)
	if err != nil {
		return err
	}
	var config ocispec.Image
	rawConfig, err := readBlob(im.Layout, manifest.Config, &config)
	if err != nil {
		return err
	}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return fmt.Errorf("it has %d layers, and its config names %d", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	var chain []*layer // bottom first
	for i, l := range manifest.Layers {
		id := identity.ChainID(config.RootFS.DiffIDs[:i+1])
		known, ok := s.layers[id]
		if !ok {
			known = &layer{chainID: id}
			if err := s.layer(ctx, known, chain, im.Layout, l, config.RootFS.DiffIDs[i]); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			s.layers[id] = known
		}
		chain = append(chain, known)
	}
	top := ""
	if len(chain) > 0 {
		top = chain[len(chain)-1].chainID.String()
	}
	for _, b := range []struct {
		d   ocispec.Descriptor
		raw []byte
	}{{manifest.Config, rawConfig}, {target, rawManifest}} {
		if err := os.WriteFile(filepath.Join(s.c.Directory, blobDir, b.d.Digest.Encoded()), b.raw, 0o644); err != nil {
			return err
		}
	}
	written, err := s.db.image(ctx, im.Ref, target, rawManifest, manifest.Config, rawConfig, top, s.c.Pinned)
	if err != nil {
		return err
	}
	for _, d := range written { // once, though several names may share it
		if err := s.addFile(filepath.Join(blobDir, d.Encoded()), contentDir+"/blobs/sha256/"+d.Encoded(), 0o444); err != nil {
			return err
		}
	}
	return nil
}

// readBlob reads a small blob, checks its digest, and decodes it.
func readBlob(layout string, d ocispec.Descriptor, into any) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(layout, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded()))
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(raw); got != d.Digest {
		return nil, fmt.Errorf("blob %s has the digest %s", d.Digest, got)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", d.Digest, err)
	}
	return raw, nil
}

// openLayer opens a layer's tar. done checks, once it was read, that packed and
// unpacked were what the image says.
func openLayer(layout string, d ocispec.Descriptor, diffID digest.Digest) (r io.Reader, done func() error, err error) {
	f, err := os.Open(filepath.Join(layout, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded()))
	if err != nil {
		return nil, nil, err
	}
	packed, unpacked := d.Digest.Verifier(), diffID.Verifier()
	in := io.TeeReader(f, packed)
	var plain io.Reader
	closeAll := f.Close
	switch {
	case strings.HasSuffix(d.MediaType, "zstd"):
		z, err := zstd.NewReader(in)
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		plain, closeAll = z, func() error { z.Close(); return f.Close() }
	case strings.HasSuffix(d.MediaType, "gzip"):
		z, err := gzip.NewReader(in)
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		plain = z
	default:
		plain = in
	}
	plain = io.TeeReader(plain, unpacked)
	return plain, func() error {
		// What follows the tar's end belongs to the digests.
		_, err := io.Copy(io.Discard, plain)
		if err == nil {
			_, err = io.Copy(io.Discard, in)
		}
		if err == nil && (!packed.Verified() || !unpacked.Verified()) {
			err = errors.New("it is not what its digest says")
		}
		return errors.Join(err, closeAll())
	}, nil
}
