package imagestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

const (
	namespace   = "k8s.io"
	snapshotter = "overlayfs"
)

// Labels that containerd's garbage collector follows, and those of its CRI plugin.
const (
	labelSnapshot = "containerd.io/gc.ref.snapshot." + snapshotter
	labelConfig   = "containerd.io/gc.ref.content.config"
	labelManaged  = "io.cri-containerd.image"
	labelPinned   = "io.cri-containerd.pinned"
)

// databases are containerd's two, open, in a directory of their own.
type databases struct {
	c         Config
	work      string // emptied by close
	bolt      *bolt.DB
	meta      *metadata.DB
	snapshots *backend
	images    images.Store
}

func openDatabases(c Config) (d *databases, err error) {
	work := filepath.Join(c.Directory, "work")
	d = &databases{c: c, work: work}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	for _, dir := range []string{work, filepath.Join(c.Directory, blobDir)} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return d, err
		}
	}
	log.L.Logger.SetOutput(io.Discard) // it tells what file systems cannot do
	blobs, err := local.NewStore(filepath.Join(work, "content"))
	if err != nil {
		return d, err
	}
	ms, err := storage.NewMetaStore(filepath.Join(work, snapshotDB))
	if err != nil {
		return d, err
	}
	d.snapshots = &backend{MetaStore: ms}
	if d.bolt, err = bolt.Open(filepath.Join(work, metaDB), 0o644, &bolt.Options{NoSync: true, NoFreelistSync: true}); err != nil {
		return d, err
	}
	d.meta = metadata.NewDB(d.bolt, blobs, map[string]snapshots.Snapshotter{snapshotter: d.snapshots})
	d.images = metadata.NewImageStore(d.meta)
	return d, d.meta.Init(context.Background())
}

// close forgets everything that freeze did not write.
func (d *databases) close() {
	if d.snapshots != nil {
		d.snapshots.MetaStore.Close()
	}
	if d.bolt != nil {
		d.bolt.Close()
	}
	os.RemoveAll(d.work)
}

// snapshot records a committed snapshot and returns its ID, which names its directory.
func (d *databases) snapshot(ctx context.Context, chainID, parent string, inodes, sizeBytes int64) (id string, err error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	d.snapshots.usage = snapshots.Usage{Inodes: inodes, Size: sizeBytes}
	sn, key := d.meta.Snapshotter(snapshotter), "extract "+chainID
	if _, err := sn.Prepare(ctx, key, parent); err != nil {
		return "", err
	}
	if err := sn.Commit(ctx, chainID, key); err != nil {
		return "", err
	}
	return d.snapshots.id, nil
}

// image records an image, and returns which blobs were not there before.
func (d *databases) image(ctx context.Context, ref string, target ocispec.Descriptor, rawManifest []byte, config ocispec.Descriptor, rawConfig []byte, top string, pinned bool) (fresh []digest.Digest, err error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	configLabels := map[string]string{}
	if top != "" {
		configLabels[labelSnapshot] = top
	}
	for _, b := range []struct {
		d      ocispec.Descriptor
		raw    []byte
		labels map[string]string
	}{{config, rawConfig, configLabels}, {target, rawManifest, map[string]string{labelConfig: config.Digest.String()}}} {
		cs := d.meta.ContentStore()
		if _, err := cs.Info(ctx, b.d.Digest); err == nil {
			continue
		} else if !errdefs.IsNotFound(err) {
			return nil, err
		}
		if err := content.WriteBlob(ctx, cs, b.d.Digest.String(), bytes.NewReader(b.raw), b.d, content.WithLabels(b.labels)); err != nil {
			return nil, err
		}
		fresh = append(fresh, b.d.Digest)
	}
	labels := map[string]string{labelManaged: "managed"}
	if pinned {
		labels[labelPinned] = "pinned"
	}
	// CRI knows an image by its name and by its ID.
	for _, name := range []string{ref, config.Digest.String()} {
		if _, err := d.images.Create(ctx, images.Image{Name: name, Target: target, Labels: labels}); err != nil && !(errdefs.IsAlreadyExists(err) && name != ref) {
			return nil, err
		}
	}
	return fresh, nil
}

// freeze writes the databases as they are to their final files, in the order of
// their keys and with one time everywhere: the same content gives the same bytes.
func (d *databases) freeze() error {
	if err := d.snapshots.MetaStore.Close(); err != nil {
		return err
	}
	d.snapshots = nil
	err := d.bolt.Close()
	d.bolt = nil
	if err != nil {
		return err
	}
	when, err := time.Unix(d.c.UnixTime, 0).UTC().MarshalBinary()
	if err != nil {
		return err
	}
	for _, name := range []string{metaDB, snapshotDB} {
		if err := freezeFile(filepath.Join(d.work, name), filepath.Join(d.c.Directory, name), when); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

func freezeFile(from, to string, when []byte) (err error) {
	src, err := bolt.Open(from, 0o644, &bolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := bolt.Open(to, 0o644, &bolt.Options{FreelistType: bolt.FreelistArrayType, PageSize: 4096, NoSync: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Sync(), dst.Close()) }()
	return src.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error { return copyBucket(dst, [][]byte{name}, b, when) })
	})
}

// copyBucket copies what is in a bucket. Every bucket is a transaction of its
// own: one that changes several gives them their pages in random order.
func copyBucket(dst *bolt.DB, at [][]byte, from *bolt.Bucket, when []byte) error {
	var buckets [][]byte
	err := dst.Update(func(tx *bolt.Tx) error {
		to, err := tx.CreateBucketIfNotExists(at[0])
		for _, name := range at[1:] {
			if err != nil {
				return err
			}
			to, err = to.CreateBucketIfNotExists(name)
		}
		if err != nil {
			return err
		}
		if err := to.SetSequence(from.Sequence()); err != nil {
			return err
		}
		return from.ForEach(func(k, v []byte) error {
			if v == nil && from.Bucket(k) != nil {
				buckets = append(buckets, k)
				return nil
			}
			if string(k) == "createdat" || string(k) == "updatedat" {
				v = when
			}
			return to.Put(k, v)
		})
	})
	if err != nil {
		return err
	}
	for _, k := range buckets {
		if err := copyBucket(dst, append(slices.Clone(at), k), from.Bucket(k), when); err != nil {
			return err
		}
	}
	return nil
}

// backend is the part of the overlayfs snapshotter that keeps records: the
// directories are the business of whoever writes the disk.
type backend struct {
	*storage.MetaStore
	usage snapshots.Usage // of the snapshot that is committed next
	id    string          // of the one that was committed last
}

// Prepare records an active snapshot; there is nothing to mount.
func (b *backend) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, b.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...)
		return err
	})
}

// Commit records that it will not change any more.
func (b *backend) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return b.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		b.id, err = storage.CommitActive(ctx, key, name, b.usage, opts...)
		return err
	})
}

var errNotNeeded = errors.New("BUG: not needed to make a store")

// Stat and the rest are never called while a store is made.
func (b *backend) Stat(context.Context, string) (snapshots.Info, error) {
	return snapshots.Info{}, errNotNeeded
}

func (b *backend) Update(context.Context, snapshots.Info, ...string) (snapshots.Info, error) {
	return snapshots.Info{}, errNotNeeded
}

func (b *backend) Usage(context.Context, string) (snapshots.Usage, error) {
	return snapshots.Usage{}, errNotNeeded
}

func (b *backend) Mounts(context.Context, string) ([]mount.Mount, error) { return nil, errNotNeeded }

func (b *backend) View(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, errNotNeeded
}

func (b *backend) Remove(context.Context, string) error { return errNotNeeded }

func (b *backend) Walk(context.Context, snapshots.WalkFunc, ...string) error { return errNotNeeded }
