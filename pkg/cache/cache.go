// Package cache keeps what was fetched, built or assembled, named by what it
// was made from. It is safe for any number of processes: one makes an entry,
// the others wait for it; a killed maker leaves nothing that blocks or misleads.
//
// Layout below the root:
//
//	entries/KIND/KEY/…      complete entries, read-only by convention
//	entries/KIND/KEY/.index size and digest of each file in the entry
//	locks/KIND-KEY          flock while an entry is made
//	scratch/RANDOM/         work in progress, removed with its process
//
// The package does not know what is in an entry and never deletes a good one
// unless told to.
package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/sparse"
)

const indexName = ".index"

// largeBytes is the size above which a file is a disk image, whose holes are
// not worth hashing.
const largeBytes = 1 << 30

// Cache is one cache directory.
type Cache struct {
	Root string
	logf func(format string, args ...any)
}

// Open opens the cache at dir; empty: $KIMAGE_CACHE, $XDG_CACHE_HOME/kimage or
// ~/.cache/kimage. logf (may be nil) is told about entries that are discarded.
func Open(dir string, logf func(string, ...any)) (*Cache, error) {
	if dir == "" {
		dir = os.Getenv("KIMAGE_CACHE")
	}
	if dir == "" {
		d, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no place for the cache: name one with --cache DIR: %w", err)
		}
		dir = filepath.Join(d, "kimage")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"entries", "locks", "scratch"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("opening the cache (choose another with --cache DIR): %w", err)
		}
	}
	if logf == nil {
		logf = func(string, ...any) {}
	}
	return &Cache{Root: dir, logf: logf}, nil
}

// Key names an entry by everything it is made from.
func Key(inputs ...string) string {
	h := sha256.New()
	for _, in := range inputs {
		fmt.Fprintf(h, "%d:%s;", len(in), in)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// Scratch makes a private directory on the cache's file system.
func (c *Cache) Scratch() (*atomicfile.TempDir, error) {
	t, err := atomicfile.NewTempDir(filepath.Join(c.Root, "scratch"))
	if err != nil {
		return nil, fmt.Errorf("making a working directory in the cache: %w", err)
	}
	return t, nil
}

// file is one line of an index.
type file struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"sizeBytes"`
	Digest    string `json:"digest"` // "sha256:HEX", or "sparse:HEX" (sparse.Digest) above largeBytes
}

// Dir returns the directory of entry KIND/KEY, making it with make (which fills
// the directory it is given) if it is missing or damaged in its sizes.
func (c *Cache) Dir(ctx context.Context, kind, key string, make func(ctx context.Context, dir string) error) (path string, hit bool, err error) {
	path = c.path(kind, key)
	if c.intact(path) {
		c.touch(path)
		return path, true, nil
	}
	unlock, err := c.lock(ctx, kind+"-"+key)
	if err != nil {
		return "", false, err
	}
	defer unlock()
	if c.intact(path) { // made while this process waited
		return path, true, nil
	}
	if _, err := os.Lstat(path); err == nil {
		c.logf("cache entry %s/%s is damaged: discarded and made again", kind, key)
	}
	tmp, err := c.Scratch()
	if err != nil {
		return "", false, err
	}
	defer tmp.Remove()
	dir := filepath.Join(tmp.Path, "entry")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", false, err
	}
	if err := make(ctx, dir); err != nil {
		return "", false, err
	}
	if err := writeIndex(ctx, dir); err != nil {
		return "", false, fmt.Errorf("storing cache entry %s/%s: %w", kind, key, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", false, err
	}
	atomicfile.RemoveAll(path)
	if err := os.Rename(dir, path); err != nil {
		return "", false, fmt.Errorf("storing cache entry %s/%s: %w", kind, key, err)
	}
	return path, false, atomicfile.SyncDir(filepath.Dir(path))
}

// Lookup returns the directory of an entry if it is there and not truncated.
func (c *Cache) Lookup(kind, key string) (string, bool) {
	p := c.path(kind, key)
	return p, c.intact(p)
}

func (c *Cache) path(kind, key string) string { return filepath.Join(c.Root, "entries", kind, key) }

// Digest returns the recorded digest of a file in an entry: "sha256:HEX", or
// for files of more than 1 GiB "sparse:HEX", which sparse.Copy returns.
func (c *Cache) Digest(entry, name string) (string, error) {
	index, err := readIndex(entry)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(index, func(f file) bool { return f.Path == name })
	if i < 0 {
		return "", fmt.Errorf("cache entry %s has no file %s", entry, name)
	}
	return index[i].Digest, nil
}

// Verify reads every file of an entry again. A damaged entry is discarded.
func (c *Cache) Verify(ctx context.Context, entry string) error {
	index, err := readIndex(entry)
	if err != nil {
		return c.Discard(entry, err)
	}
	for _, f := range index {
		digest, err := digestFile(ctx, filepath.Join(entry, f.Path))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return c.Discard(entry, err)
		}
		if digest != f.Digest {
			return c.Discard(entry, fmt.Errorf("%s has changed since it was stored", f.Path))
		}
	}
	return nil
}

// Open opens a file of an entry for one reading from its first byte to its
// last: the end is an error if the content is not what was stored, and the entry
// is then discarded. Larger files, whose holes their digest skips, are read
// beforehand.
func (c *Cache) Open(ctx context.Context, entry, name string) (io.ReadCloser, error) {
	digest, err := c.Digest(entry, name)
	if err != nil {
		return nil, c.Discard(entry, err)
	}
	want, plain := strings.CutPrefix(digest, "sha256:")
	if !plain {
		if err := c.Verify(ctx, entry); err != nil {
			return nil, err
		}
	}
	f, err := os.Open(filepath.Join(entry, name))
	if err != nil || !plain {
		return f, err
	}
	return Verifying(f, want, func() error {
		return c.Discard(entry, fmt.Errorf("%s has changed since it was stored", name))
	}), nil
}

// Verifying reads f; where its end should be, other content than that of the
// digest (hex) is the error that changed returns.
func Verifying(f io.ReadCloser, sha256Hex string, changed func() error) io.ReadCloser {
	return &verifying{f, sha256.New(), sha256Hex, changed}
}

// verifying does not embed what it reads: io.Copy would read a file directly.
type verifying struct {
	file    io.ReadCloser
	digest  hash.Hash
	want    string
	changed func() error
}

func (v *verifying) Read(p []byte) (int, error) {
	n, err := v.file.Read(p)
	v.digest.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(v.digest.Sum(nil)) != v.want {
		err = v.changed()
	}
	return n, err
}

func (v *verifying) Close() error { return v.file.Close() }

// Discard removes a damaged entry and returns the error that says so.
func (c *Cache) Discard(entry string, why error) error {
	rel, err := filepath.Rel(filepath.Join(c.Root, "entries"), entry)
	if err != nil || strings.HasPrefix(rel, "..") {
		return fmt.Errorf("BUG: %s is not in the cache", entry)
	}
	c.discard(entry)
	return fmt.Errorf("cache entry %s was corrupt and is discarded; run the command again to make it anew: %w", rel, why)
}

// Forget removes an entry: what it was made from may have changed.
func (c *Cache) Forget(kind, key string) {
	c.discard(c.path(kind, key))
}

func (c *Cache) discard(entry string) {
	// Renamed first: a half-removed entry must not be found.
	gone := filepath.Join(c.Root, "scratch", "discarded-"+Key(entry, fmt.Sprint(time.Now().UnixNano())))
	if err := os.Rename(entry, gone); err == nil {
		atomicfile.RemoveAll(gone)
	}
}

// intact checks that every file of the index is there in its size.
func (c *Cache) intact(dir string) bool {
	index, err := readIndex(dir)
	if err != nil {
		return false
	}
	for _, f := range index {
		fi, err := os.Lstat(filepath.Join(dir, f.Path))
		if err != nil || !fi.Mode().IsRegular() || fi.Size() != f.SizeBytes {
			return false
		}
	}
	return true
}

func readIndex(dir string) ([]file, error) {
	data, err := os.ReadFile(filepath.Join(dir, indexName))
	if err != nil {
		return nil, err
	}
	var index []file
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("reading index of cache entry %s: %w", dir, err)
	}
	return index, nil
}

func writeIndex(ctx context.Context, dir string) error {
	var index []file
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is not a regular file", p)
		}
		digest, err := digestFile(ctx, p)
		if err != nil {
			return err
		}
		// An entry that is found after a power cut must be whole.
		if err := syncFile(p); err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		index = append(index, file{rel, fi.Size(), digest})
		return err
	})
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, indexName), data, 0o644)
}

func digestFile(ctx context.Context, p string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	digest, name := "", "sha256:"
	if fi.Size() > largeBytes {
		name = "sparse:"
		digest, err = sparse.DigestFile(ctx, f)
	} else {
		digest, _, err = sparse.SHA256(ctx, f, nil)
	}
	return name + digest, err
}

func syncFile(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// touch records the use of an entry, for people who clean up by age.
func (c *Cache) touch(dir string) {
	now := time.Now()
	os.Chtimes(filepath.Join(dir, indexName), now, now)
}

// lock waits for the lock of that name.
func (c *Cache) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.Root, "locks", name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	for waited := 0; ; waited++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		if waited == 10 {
			c.logf("waiting for another kimage that is making %s", name)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Usage is the size of one kind of entries.
type Usage struct {
	Kind    string `json:"kind"`
	Entries int    `json:"entries"`
	Bytes   int64  `json:"sizeBytes"` // as allocated on disk
}

// Usage sums up the entries by kind.
func (c *Cache) Usage() ([]Usage, error) {
	kinds, err := os.ReadDir(filepath.Join(c.Root, "entries"))
	if err != nil {
		return nil, err
	}
	var all []Usage
	for _, k := range kinds {
		u := Usage{Kind: k.Name()}
		keys, err := os.ReadDir(filepath.Join(c.Root, "entries", k.Name()))
		if err != nil {
			return nil, err
		}
		u.Entries = len(keys)
		err = filepath.WalkDir(filepath.Join(c.Root, "entries", k.Name()), func(p string, d fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && unix.Lstat(p, &st) == nil {
				u.Bytes += st.Blocks * 512
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

// Clean removes every entry of the kinds, or of all kinds if none is named,
// except those that are being made.
func (c *Cache) Clean(kinds ...string) error {
	all, err := os.ReadDir(filepath.Join(c.Root, "entries"))
	if err != nil {
		return err
	}
	for _, k := range all {
		if len(kinds) > 0 && !slices.Contains(kinds, k.Name()) {
			continue
		}
		gone := filepath.Join(c.Root, "scratch", "cleaned-"+Key(k.Name(), fmt.Sprint(time.Now().UnixNano())))
		if err := os.Rename(filepath.Join(c.Root, "entries", k.Name()), gone); err != nil {
			return fmt.Errorf("cleaning the cache: %w", err)
		}
		atomicfile.RemoveAll(gone)
	}
	return nil
}
