package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/imagestore"
	"github.com/kimage-project/kimage/pkg/oci"
)

// checkImages judges the container images of the manifest.
func (v *verifier) checkImages(ctx context.Context) error {
	m := v.reference()
	if m == nil {
		v.notJudged("container images", "no manifest can be read")
		return nil
	}
	found, err := v.kimage.Stat(ctx, []string{storeDir, archivesDir})
	if err != nil {
		return err
	}
	_, store := found[storeDir]
	_, archives := found[archivesDir]
	format := map[bool]string{true: storeArchive, false: ""}[archives]
	if store {
		format = storeContainerd
	}
	if v.manifest != nil {
		want := ""
		if v.manifest.ImageStore != nil {
			want = v.manifest.ImageStore.Format
		}
		v.compare("form of the image store", "the manifest", format, want)
	}
	switch {
	case format == storeArchive:
		return v.archives(ctx, m.Images)
	case format == storeContainerd:
		return v.store(ctx, m.Images)
	case len(m.Images) > 0:
		v.differs("container images", "the manifest", "there are none", count(len(m.Images), "image"))
	default:
		v.ok("container images", "the manifest, which has none")
	}
	return nil
}

// archives judges every blob of the archives that nodes import.
func (v *verifier) archives(ctx context.Context, images []components.Image) error {
	var total int64
	for _, im := range images {
		total += im.SizeBytes
	}
	bar := v.report.Bar("reading container images", total)
	defer bar.Done()
	for _, im := range images {
		const with = "its blobs with their names, and its digest with the manifest"
		err := func() error {
			f, err := v.kimage.Open(ctx, path.Join(archivesDir, archiveFile(im.ManifestDigest)))
			if err != nil {
				return err
			}
			defer f.Close()
			return oci.CheckArchive(bar.Reader(stoppable{ctx, io.NewSectionReader(f, 0, f.SizeBytes)}), im.Ref, im.ManifestDigest)
		}()
		if err == nil {
			v.ok(im.Ref, with)
		} else if err := v.failed(im.Ref, with, err); err != nil {
			return err
		}
	}
	return nil
}

// store judges what containerd keeps of each image, and its databases. Of unpacked
// layers it keeps how many files they have and of what size, and nothing of their content.
func (v *verifier) store(ctx context.Context, images []components.Image) error {
	const with = "manifest and config with their names, and its digest with the manifest"
	var kept []imagestore.Kept
	for _, im := range images {
		k, err := imagestore.Find(im.Ref, im.ManifestDigest, func(p string) ([]byte, error) { return small(ctx, v.kimage, path.Join(storeDir, p)) })
		changed, isChanged := errors.AsType[*imagestore.Changed](err)
		switch {
		case err == nil:
			v.ok(im.Ref, with)
			kept = append(kept, k)
		case isChanged:
			v.differs(im.Ref, "its "+changed.What+" with its name", changed.Got, changed.Want)
		default:
			if err := v.failed(im.Ref, with, err); err != nil {
				return err
			}
		}
	}
	v.notJudged("content of unpacked layers", "containerd records the number and the sizes of their files, and no digest; a layer's own digest is that of the packed one, which is left out")
	const thing = "containerd's databases"
	if _, same := v.sameKimage(); !same {
		v.notJudged(thing, otherKimage)
		return nil
	}
	if len(kept) < len(images) {
		v.notJudged(thing, "they cannot be made again, for an image is not what it was")
		return nil
	}
	return v.databases(ctx, kept)
}

// databases makes containerd's databases again from the images and the unpacked layers
// that are there.
func (v *verifier) databases(ctx context.Context, kept []imagestore.Kept) error {
	const names, layers = "containerd's names of the images", "sizes of unpacked layers"
	usage, err := v.usage(ctx, imagestore.Layers(kept))
	if err != nil {
		return v.failed(layers, "containerd's record", err)
	}
	dir, err := v.scratchDir("store")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	files, err := imagestore.Again(ctx, kept, usage, imagestore.Config{Directory: dir, UnixTime: unixTime, Pinned: true})
	if err != nil {
		return err
	}
	for i, c := range []struct{ thing, with, database string }{
		{names, "its database, made again from manifests and configs", imagestore.MetadataDatabase},
		{layers, "its database, made again from the number of files and their sizes", imagestore.SnapshotsDatabase},
	} {
		want, _, err := fileSHA256(ctx, files[i])
		if err != nil {
			return err
		}
		got, err := v.fileSum(ctx, path.Join(storeDir, c.database))
		if err != nil {
			if err := v.failed(c.thing, c.with, err); err != nil {
				return err
			}
			continue
		}
		v.compare(c.thing, c.with, got, want)
	}
	return nil
}

// fileSum is the SHA-256 of a file on KIMAGE.
func (v *verifier) fileSum(ctx context.Context, p string) (string, error) {
	f, err := v.kimage.Open(ctx, p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, stoppable{ctx, io.NewSectionReader(f, 0, f.SizeBytes)})
	return hex.EncodeToString(h.Sum(nil)), err
}

// usage counts what is in unpacked layers, all at once, one depth after the other.
func (v *verifier) usage(ctx context.Context, layers []string) (map[string]imagestore.Usage, error) {
	stop := v.report.Step("listing unpacked layers")
	defer stop()
	type dir struct{ layer, path string }
	usage, seen := map[string]imagestore.Usage{}, map[string]map[int64]bool{}
	var next []dir
	for _, l := range layers {
		var u imagestore.Usage
		u.Add(0) // the layer's own directory
		usage[l], seen[l] = u, map[int64]bool{}
		next = append(next, dir{l, path.Join(storeDir, l)})
	}
	const deepest = 1000
	for depth := 0; len(next) > 0; depth++ {
		if depth > deepest {
			return nil, fmt.Errorf("directories are nested more than %d deep", deepest)
		}
		var paths []string
		for _, d := range next {
			paths = append(paths, d.path)
		}
		listed, err := v.kimage.ReadDirs(ctx, paths)
		if err != nil {
			return nil, err
		}
		var below []dir
		for _, d := range next {
			for _, e := range listed[d.path] {
				if e.Directory {
					below = append(below, dir{d.layer, path.Join(d.path, e.Name)})
				}
				if seen[d.layer][e.Number] { // a hard link
					continue
				}
				seen[d.layer][e.Number] = true
				u := usage[d.layer]
				u.Add(e.SizeBytes)
				usage[d.layer] = u
			}
		}
		next = below
	}
	return usage, nil
}
