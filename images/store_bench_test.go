package images

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/imagestore"
	"github.com/kimage-project/kimage/pkg/tree"
)

// BenchmarkStore writes the image store of the last bake to a data partition,
// and the same bytes as one tar, each in a new file that is synced.
func BenchmarkStore(b *testing.B) {
	home, err := os.UserCacheDir()
	if err != nil {
		b.Fatal(err)
	}
	c, err := cache.Open(filepath.Join(home, "kimage"), b.Logf)
	if err != nil {
		b.Fatal(err)
	}
	lists, _ := filepath.Glob(filepath.Join(c.Root, "entries/store/*", imagestore.ListFile))
	if len(lists) == 0 {
		b.Fatal("no image store in the cache: bake an image first")
	}
	im := images{cache: c, entry: filepath.Dir(lists[0])}
	store, err := im.tree(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	packed := filepath.Join(b.TempDir(), "store.tar")
	f, err := os.Create(packed)
	if err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(store.WriteTar(f, fixedTime(unixTime)), f.Close()); err != nil {
		b.Fatal(err)
	}
	// A cache entry is verified when it is read: so is the tar.
	entry, _, err := c.Dir(b.Context(), "bench", cache.Key(im.entry), func(_ context.Context, dir string) error {
		return copyFile(filepath.Join(dir, "store.tar"), packed)
	})
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(entry)
	fi, err := os.Stat(packed)
	if err != nil {
		b.Fatal(err)
	}
	one := tree.New()
	err = one.Add(tree.Entry{Path: "store.tar", Mode: 0o644, Size: fi.Size(), Open: func() (io.ReadCloser, error) { return c.Open(b.Context(), entry, "store.tar") }})
	if err != nil {
		b.Fatal(err)
	}
	for name, t := range map[string]*tree.Tree{"store": store, "tar": one} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				write(b, t)
			}
		})
	}
}

// write makes a data partition with t on it.
func write(b *testing.B, t *tree.Tree) {
	b.Helper()
	dir := b.TempDir()
	file := filepath.Join(dir, "disk")
	const size = 2 << 30
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	defer os.Remove(file)
	defer f.Close()
	mk := ext4.MakeConfig{File: file, SizeBytes: size, Label: kimageName, UUID: "11111111-2222-8333-8444-555555555555", JournalMiB: 64, UnixTime: unixTime, ScratchDirectory: dir}
	err = errors.Join(f.Truncate(size), ext4.Make(b.Context(), mk))
	if err == nil {
		err = ext4.Volume{File: file, UnixTime: unixTime}.Add(b.Context(), t, nil, dir)
	}
	if err := errors.Join(err, f.Sync()); err != nil {
		b.Fatal(err)
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fs.FileMode(0o644))
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
