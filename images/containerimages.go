package images

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/imagestore"
	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/tree"
)

// images are the container images as they lie on KIMAGE: in containerd's own
// store, or as archives, of which a node imports what its roles need at its first
// boot.
type images struct {
	cache     *cache.Cache
	entry     string // of the cache; empty: no images
	archive   bool
	sizeBytes int64
}

// roomBytes is what they take on KIMAGE in the end.
func (im images) roomBytes() int64 {
	if im.archive {
		return 3 * im.sizeBytes // itself, and what it is unpacked to
	}
	return im.sizeBytes
}

// info is nil without images.
func (im images) info() *storeInfo {
	switch {
	case im.entry == "":
		return nil
	case im.archive:
		return &storeInfo{storeArchive, im.sizeBytes}
	}
	return &storeInfo{storeContainerd, im.sizeBytes}
}

// storeDir is where the agent looks for containerd's root.
const storeDir = "state/containerd"

// archiveFile is the archive of one image below images/, by the name under which
// the agent looks for it.
func archiveFile(digest string) string { return strings.TrimPrefix(digest, "sha256:") + ".tar" }

// containerImages makes them, unless the same ones are in the cache.
func (b *Builder) containerImages(ctx context.Context, set *components.Set) (images, error) {
	im := images{cache: b.cache, archive: !imagestore.Supported(set.Versions["containerd"])}
	if len(set.Images) == 0 {
		return im, nil
	}
	kind, key := "store", []string{"store-1", set.Versions["containerd"]}
	if im.archive {
		kind, key = "images", []string{"images-2"}
		b.report.Logf("containerd %s: its image store is not known to this kimage, so a node imports its images at first boot, which takes a minute or more", set.Versions["containerd"])
	}
	var named []oci.Named
	for _, i := range set.Images {
		key = append(key, i.Ref, i.ManifestDigest)
		named = append(named, oci.Named{Ref: i.Ref, Layout: i.Layout})
	}
	var err error
	im.entry, _, err = b.cache.Dir(ctx, kind, cache.Key(key...), func(ctx context.Context, dir string) error {
		for _, i := range named {
			if err := b.cache.Verify(ctx, i.Layout); err != nil {
				return err
			}
		}
		if im.archive {
			for i, image := range set.Images {
				if err := writeArchive(ctx, filepath.Join(dir, archiveFile(image.ManifestDigest)), named[i:i+1]); err != nil {
					return err
				}
			}
			return nil
		}
		defer b.report.Step("unpacking container images")()
		return imagestore.Write(ctx, named, imagestore.Config{Directory: dir, UnixTime: unixTime, Pinned: true})
	})
	if err != nil {
		return im, err
	}
	err = filepath.WalkDir(im.entry, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			im.sizeBytes += fi.Size()
		}
		return err
	})
	return im, err
}

func writeArchive(ctx context.Context, file string, named []oci.Named) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(oci.WriteArchive(ctx, f, named, fixedTime(unixTime)), f.Close())
}

// tree is what of KIMAGE holds the images. What is read is verified.
func (im images) tree(ctx context.Context) (*tree.Tree, error) {
	t := tree.New()
	if im.archive {
		files, err := filepath.Glob(filepath.Join(im.entry, "*.tar"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			fi, err := os.Stat(file)
			if err != nil {
				return nil, err
			}
			name := filepath.Base(file)
			if err := t.Add(tree.Entry{Path: archivesDir + "/" + name, Mode: 0o644, Size: fi.Size(), Open: func() (io.ReadCloser, error) {
				return im.cache.Open(ctx, im.entry, name)
			}}); err != nil {
				return nil, err
			}
		}
		return t, nil
	}
	list, err := readEntry(ctx, im.cache, im.entry, imagestore.ListFile)
	if err != nil {
		return nil, err
	}
	store, err := imagestore.Tree(im.entry, list)
	if err != nil {
		return nil, err
	}
	// The modes that the agent and containerd give these.
	return t, errors.Join(t.Dir("state", 0o755), t.Graft(storeDir, store), t.Dir(storeDir, 0o711))
}

// discard removes a store that is not what was written.
func (im images) discard(err error) error {
	if errors.Is(err, imagestore.ErrChanged) {
		return im.cache.Discard(im.entry, err)
	}
	return err
}
