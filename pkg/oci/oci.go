// Package oci assembles container images from trees of files, as OCI layouts
// and archives that containerd and CRI-O import, the same bytes every time.
//
// https://github.com/opencontainers/image-spec is the format. Layers are
// compressed with zstd. The package pulls nothing (see Pull for what others built).
package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/kimage-project/kimage/pkg/tree"
)

// layerZstd is not among the media types that go-containerregistry names for OCI.
const layerZstd = types.MediaType("application/vnd.oci.image.layer.v1.tar+zstd")

// refName is the annotation by which containerd names an imported image.
const refName = "io.containerd.image.name"

// Layer is one layer's blob.
type Layer struct {
	File      string // the compressed blob
	Digest    string // hex SHA-256 of the blob
	DiffID    string // hex SHA-256 of the tar
	SizeBytes int64
}

// WriteLayer writes t as a layer blob to file.
func WriteLayer(t *tree.Tree, file string, mtime time.Time) (l Layer, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	blob, diff := &hasher{w: f, h: sha256.New()}, sha256.New()
	// One goroutine: the split into blocks must not depend on the machine.
	z, err := zstd.NewWriter(blob, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(4<<20))
	if err != nil {
		return l, err
	}
	if err := t.WriteTar(io.MultiWriter(z, diff), mtime); err != nil {
		return l, err
	}
	if err := z.Close(); err != nil {
		return l, err
	}
	return Layer{File: file, Digest: blob.sum(), DiffID: hex.EncodeToString(diff.Sum(nil)), SizeBytes: blob.n}, nil
}

type hasher struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (h *hasher) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

func (h *hasher) sum() string { return hex.EncodeToString(h.h.Sum(nil)) }

// Config is what runs when nothing else is said.
type Config struct {
	Arch       string
	Entrypoint []string
	User       string
	Created    time.Time
	Labels     map[string]string
}

// WriteLayout writes an image of the layers as the only one of an OCI layout in dir.
func WriteLayout(dir string, c Config, layers []Layer) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	cfg := v1.ConfigFile{Architecture: c.Arch, OS: "linux", Created: v1.Time{Time: c.Created.UTC()},
		Config: v1.Config{Entrypoint: c.Entrypoint, User: c.User, WorkingDir: "/", Labels: c.Labels,
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: l.DiffID})
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: layerZstd, Size: l.SizeBytes, Digest: v1.Hash{Algorithm: "sha256", Hex: l.Digest}})
		to := filepath.Join(blobs, l.Digest)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Link(l.File, to); err != nil {
			return fmt.Errorf("adding a layer to %s: %w", dir, err)
		}
	}
	var err error
	if m.Config, err = putJSON(blobs, types.OCIConfigJSON, cfg); err != nil {
		return err
	}
	manifest, err := putJSON(blobs, types.OCIManifestSchema1, m)
	if err != nil {
		return err
	}
	manifest.Platform = &v1.Platform{Architecture: c.Arch, OS: "linux"}
	return writeIndex(dir, []v1.Descriptor{manifest})
}

func putJSON(blobs string, t types.MediaType, v any) (v1.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	sum := sha256.Sum256(data)
	d := v1.Descriptor{MediaType: t, Size: int64(len(data)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
	return d, os.WriteFile(filepath.Join(blobs, d.Digest.Hex), data, 0o644)
}

const layoutVersion = `{"imageLayoutVersion":"1.0.0"}`

func writeIndex(dir string, manifests []v1.Descriptor) error {
	data, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: manifests})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), data, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(layoutVersion), 0o644)
}

// Manifest returns the digest ("sha256:…") of the only image in a layout, and
// the size of its blobs.
func Manifest(dir string) (digest string, sizeBytes int64, err error) {
	d, err := only(dir)
	if err != nil {
		return "", 0, err
	}
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil {
		return "", 0, err
	}
	for _, b := range blobs {
		fi, err := b.Info()
		if err != nil {
			return "", 0, err
		}
		sizeBytes += fi.Size()
	}
	return d.Digest.String(), sizeBytes, nil
}

func only(dir string) (v1.Descriptor, error) {
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return v1.Descriptor{}, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading %s/index.json: %w", dir, err)
	}
	if len(index.Manifests) != 1 {
		return v1.Descriptor{}, fmt.Errorf("%s has %d images instead of one", dir, len(index.Manifests))
	}
	return index.Manifests[0], nil
}

// Named is an image of a layout under the name it gets.
type Named struct {
	Ref    string // registry/repository:tag
	Layout string
}

// WriteArchive writes one OCI archive of all images; a blob that several
// share is in it once.
func WriteArchive(ctx context.Context, w io.Writer, images []Named, mtime time.Time) error {
	var index []v1.Descriptor
	blobs := map[string]string{}
	for _, im := range images {
		d, err := only(im.Layout)
		if err != nil {
			return err
		}
		_, tag, _ := strings.Cut(im.Ref[strings.LastIndex(im.Ref, "/")+1:], ":")
		d.Annotations = map[string]string{refName: im.Ref, "org.opencontainers.image.ref.name": tag}
		index = append(index, d)
		found, err := filepath.Glob(filepath.Join(im.Layout, "blobs", "sha256", "*"))
		if err != nil {
			return err
		}
		for _, b := range found {
			blobs[filepath.Base(b)] = b
		}
	}
	slices.SortFunc(index, func(a, b v1.Descriptor) int { return strings.Compare(a.Annotations[refName], b.Annotations[refName]) })
	data, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: index})
	if err != nil {
		return err
	}
	t := tree.New()
	for name, content := range map[string][]byte{"oci-layout": []byte(layoutVersion), "index.json": data} {
		if err := t.Bytes(name, 0o644, bytes.Clone(content)); err != nil {
			return err
		}
	}
	for name, host := range blobs {
		if err := t.File("blobs/sha256/"+name, 0o644, host); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.WriteTar(w, mtime)
}

// Refs lists "name digest" of the images in an archive that WriteArchive wrote.
func Refs(r io.Reader) (map[string]string, error) {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err != nil {
			return nil, fmt.Errorf("reading image archive: no index.json: %w", err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index v1.IndexManifest
		if err := json.NewDecoder(io.LimitReader(tr, 1<<20)).Decode(&index); err != nil {
			return nil, fmt.Errorf("reading image archive: %w", err)
		}
		out := map[string]string{}
		for _, d := range index.Manifests {
			out[d.Annotations[refName]] = d.Digest.String()
		}
		return out, nil
	}
}
