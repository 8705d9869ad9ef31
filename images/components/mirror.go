package components

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/fetch"
	"github.com/kimage-project/kimage/pkg/oci"
)

// Mirror writes all that --components DIR reads for set, which c resolved to, below dir.
func Mirror(ctx context.Context, c Config, set *Set, dir string) error {
	r, err := newResolver(ctx, c)
	if err != nil {
		return err
	}
	downloads, _, err := Downloads(r.row["version"], c.Network, c.Arch)
	if err != nil {
		return err
	}
	for _, d := range downloads {
		if err := r.mirrorDownload(ctx, d, dir); err != nil {
			return r.remedy(err)
		}
	}
	for _, im := range set.Images {
		if err := mirrorImage(im.Layout, im.Ref, dir); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) mirrorDownload(ctx context.Context, d Download, dir string) error {
	sums, err := r.src.FetchSmall(ctx, d.Checksum)
	if err != nil {
		return err
	}
	sum, err := fetch.Checksum(sums, path.Base(d.URL), sha256.Size*2)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Checksum, err)
	}
	file, err := r.src.Get(ctx, fetch.Request{URL: d.URL, SHA256: sum})
	if err != nil {
		return err
	}
	at, err := fetch.MirrorPath(dir, d.Checksum)
	if err != nil {
		return err
	}
	if err := put(at, sums); err != nil {
		return err
	}
	if at, err = fetch.MirrorPath(dir, d.URL); err != nil {
		return err
	}
	return atomicfile.CopyFile(at, file)
}

// mirrorImage lays the image in an OCI layout out as its registry serves it.
func mirrorImage(layout, ref, dir string) error {
	manifest, _, err := oci.Manifest(layout)
	if err != nil {
		return err
	}
	registry, rest, _ := strings.Cut(ref, "/")
	name, tag, _ := strings.Cut(rest, ":")
	repository := filepath.Join(dir, registry, "v2", filepath.FromSlash(name))
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		digest := "sha256:" + filepath.Base(blob)
		to := []string{filepath.Join("blobs", digest)}
		if digest == manifest {
			to = []string{filepath.Join("manifests", digest), filepath.Join("manifests", tag)}
		}
		for _, at := range to {
			at = filepath.Join(repository, at)
			if old, err := os.ReadFile(at); err == nil && filepath.Base(at) == tag {
				if sum := sha256.Sum256(old); "sha256:"+hex.EncodeToString(sum[:]) != manifest {
					return fmt.Errorf("%s has another %s, of another processor or an older one: choose another directory", dir, ref)
				}
			}
			if err := atomicfile.CopyFile(at, blob); err != nil {
				return err
			}
		}
	}
	return nil
}

func put(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(file, content, 0o644)
}
