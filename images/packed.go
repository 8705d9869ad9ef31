package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/progress"
	"github.com/kimage-project/kimage/pkg/squashfs"
)

// Files of a cache entry: one program as it lies in a payload.
const (
	blocksFile = "blocks"
	indexFile  = "index.json"
)

// packPrograms compresses the set's programs for a payload, by their paths in it.
// They are nearly all of it, and the same in most bakes, for every operating
// system: the cache keeps them by their digests.
func (b *Builder) packPrograms(ctx context.Context, set *components.Set) (map[string]squashfs.Packed, error) {
	key := func(f components.File) string { return cache.Key("squashfs", squashfs.Version, f.SHA256) }
	var files []components.File
	var missing int64
	for _, p := range set.Programs {
		for _, f := range p.Files {
			files = append(files, f)
			if _, ok := b.cache.Lookup("packed", key(f)); !ok {
				missing += f.SizeBytes
			}
		}
	}
	var bar *progress.Bar // nil: nothing to do
	if missing > 0 {
		bar = b.report.Bar("compressing programs", missing)
		defer bar.Done()
	}
	entries := make([]string, len(files))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(2) // one is stored while the other is compressed
	for i, f := range files {
		group.Go(func() (err error) {
			entries[i], _, err = b.cache.Dir(gctx, "packed", key(f), func(ctx context.Context, dir string) error {
				return packProgram(ctx, f, dir, bar)
			})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	packed := map[string]squashfs.Packed{}
	for i, f := range files {
		entry := entries[i]
		index, err := readEntry(ctx, b.cache, entry, indexFile)
		if err != nil {
			return nil, err
		}
		p := squashfs.Packed{Open: func() (io.ReadCloser, error) { return b.cache.Open(ctx, entry, blocksFile) }}
		if err := json.Unmarshal(index, &p.Blocks); err != nil {
			return nil, b.cache.Discard(entry, fmt.Errorf("reading %s: %w", indexFile, err))
		}
		packed[f.Dest] = p
	}
	return packed, nil
}

func packProgram(ctx context.Context, f components.File, dir string, bar *progress.Bar) (err error) {
	in, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, blocksFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	blocks, err := squashfs.Pack(ctx, out, bar.Reader(in), f.SizeBytes)
	if err != nil {
		return fmt.Errorf("compressing %s: %w", f.Dest, err)
	}
	index, err := json.Marshal(blocks)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, indexFile), index, 0o644)
}

// readEntry reads a small file of a cache entry and compares it with its digest.
func readEntry(ctx context.Context, c *cache.Cache, entry, name string) ([]byte, error) {
	r, err := c.Open(ctx, entry, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
