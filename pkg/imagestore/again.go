package imagestore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The databases of a store, below containerd's root.
const (
	MetadataDatabase  = metadataFile
	SnapshotsDatabase = snapshotDir + "/metadata.db"
)

// Kept is what a store keeps of an image as content: two blobs that are what their
// digests say.
type Kept struct {
	Ref string

	target      ocispec.Descriptor
	manifest    ocispec.Manifest
	rawManifest []byte
	rawConfig   []byte
	layers      []digest.Digest // chain IDs, bottom first
}

// Find reads an image's blobs by their paths below containerd's root, and compares
// them with the digest that the image has and with each other.
func Find(ref, manifestDigest string, read func(path string) ([]byte, error)) (Kept, error) {
	k := Kept{Ref: ref, target: ocispec.Descriptor{Digest: digest.Digest(manifestDigest)}}
	var config ocispec.Image
	var err error
	if k.rawManifest, err = find("manifest", k.target.Digest, read, &k.manifest); err != nil {
		return k, err
	}
	if k.rawConfig, err = find("config", k.manifest.Config.Digest, read, &config); err != nil {
		return k, err
	}
	k.target.Size, k.target.MediaType = int64(len(k.rawManifest)), k.manifest.MediaType
	if k.target.MediaType == "" { // it is optional there
		k.target.MediaType = ocispec.MediaTypeImageManifest
	}
	if len(config.RootFS.DiffIDs) != len(k.manifest.Layers) {
		return k, fmt.Errorf("its manifest has %d layers, and its config names %d", len(k.manifest.Layers), len(config.RootFS.DiffIDs))
	}
	for i := range config.RootFS.DiffIDs {
		k.layers = append(k.layers, identity.ChainID(config.RootFS.DiffIDs[:i+1]))
	}
	return k, nil
}

func find(what string, d digest.Digest, read func(path string) ([]byte, error), into any) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("its %s: %q: %w", what, d, err)
	}
	raw, err := read(contentDir + "/blobs/" + d.Algorithm().String() + "/" + d.Encoded())
	if err != nil {
		return nil, fmt.Errorf("its %s: %w", what, err)
	}
	if got := d.Algorithm().FromBytes(raw); got != d {
		return nil, &Changed{what, got.String(), d.String()}
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return nil, fmt.Errorf("its %s %s: %w", what, d, err)
	}
	return raw, nil
}

// Changed is a blob that is not what its name says.
type Changed struct{ What, Got, Want string }

func (c *Changed) Error() string {
	return fmt.Sprintf("its %s is %s and should be %s", c.What, c.Got, c.Want)
}

// Usage is what containerd records of an unpacked layer.
type Usage struct {
	Inodes    int64
	SizeBytes int64 // whole blocks of 4096, at least one for each inode
}

// Add counts one inode; of what is no regular file sizeBytes is 0.
func (u *Usage) Add(sizeBytes int64) {
	u.Inodes++
	u.SizeBytes += max(sizeBytes+4095, 4096) / 4096 * 4096
}

// Layers are the directories of the images' unpacked layers below containerd's root,
// in the order in which Write numbers them.
func Layers(images []Kept) []string {
	seen := map[digest.Digest]bool{}
	var dirs []string
	for _, im := range sorted(images) {
		for _, l := range im.layers {
			if !seen[l] {
				seen[l] = true
				dirs = append(dirs, layerDir(strconv.Itoa(len(seen))))
			}
		}
	}
	return dirs
}

func layerDir(id string) string { return snapshotDir + "/snapshots/" + id + "/fs" }

func sorted(images []Kept) []Kept {
	return slices.SortedFunc(slices.Values(images), func(a, b Kept) int { return strings.Compare(a.Ref, b.Ref) })
}

// Again makes the databases of a store of the images again, to be compared: usage
// says what is in each of Layers. They are the files meta.db and snapshots.db of
// c.Directory, in this order. No database that might be damaged is opened for it.
func Again(ctx context.Context, images []Kept, usage map[string]Usage, c Config) (files [2]string, err error) {
	db, err := openDatabases(c)
	if err != nil {
		return files, err
	}
	defer db.close()
	made := map[digest.Digest]bool{}
	for _, im := range sorted(images) {
		parent := ""
		for _, l := range im.layers {
			if !made[l] {
				u := usage[layerDir(strconv.Itoa(len(made)+1))]
				if _, err := db.snapshot(ctx, l.String(), parent, u.Inodes, u.SizeBytes); err != nil {
					return files, err
				}
				made[l] = true
			}
			parent = l.String()
		}
		if _, err := db.image(ctx, im.Ref, im.target, im.rawManifest, im.manifest.Config, im.rawConfig, parent, c.Pinned); err != nil {
			return files, err
		}
	}
	return [2]string{c.Directory + "/" + metaDB, c.Directory + "/" + snapshotDB}, db.freeze()
}
