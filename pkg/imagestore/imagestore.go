// Package imagestore makes what containerd keeps of images that it has pulled
// and unpacked: content, metadata and the snapshots of overlayfs. A node that
// finds it in its place has the images without importing anything.
//
// The databases are written by containerd's own packages, so they are what that
// version of containerd writes. Nothing is mounted, no daemon runs, and nobody
// needs to be root: what is not a plain file is an entry of a tree.
//
// The packed layers are left out, as containerd itself drops them when
// discard_unpacked_layers is set: an image is complete without them, it only
// cannot be pushed from the node.
//
// The same images give the same bytes. Only overlayfs, only namespace k8s.io.
package imagestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/tree"
)

// Where containerd keeps things below its root.
const (
	contentDir   = "io.containerd.content.v1.content"
	metadataFile = "io.containerd.metadata.v1.bolt/meta.db"
	snapshotDir  = "io.containerd.snapshotter.v1.overlayfs"
)

// ListFile lists everything below containerd's root, of a store that is not in
// its place yet. It names the digest of every other file.
const ListFile = "entries.json"

const (
	dataFile   = "data" // the content of all regular files of layers, one after the other
	metaDB     = "meta.db"
	snapshotDB = "snapshots.db"
	blobDir    = "blobs"
)

// Supported says whether what this package writes is what that version of
// containerd reads and writes.
func Supported(containerd string) bool {
	return strings.HasPrefix(containerd, "v2.4.")
}

// Config says how a store is made.
type Config struct {
	Directory string // empty; gets the store's files
	UnixTime  int64  // when everything was made, seconds
	Pinned    bool   // the kubelet's garbage collector spares the images
}

// entry is tree.Entry in JSON.
type entry struct {
	Path        string            `json:"path"`
	Mode        fs.FileMode       `json:"mode"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	UnixTime    int64             `json:"unixTime"`
	Target      string            `json:"target,omitempty"`
	Hard        bool              `json:"hard,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Major       uint32            `json:"major,omitempty"`
	Minor       uint32            `json:"minor,omitempty"`
	File        string            `json:"file,omitempty"` // where its content is
	OffsetBytes int64             `json:"offsetBytes,omitempty"`
	SizeBytes   int64             `json:"sizeBytes,omitempty"`
	SHA256      string            `json:"sha256,omitempty"`
}

// Write makes a store of images in c.Directory.
func Write(ctx context.Context, images []oci.Named, c Config) (err error) {
	data, err := os.OpenFile(filepath.Join(c.Directory, dataFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	db, err := openDatabases(c)
	if err != nil {
		return err
	}
	defer db.close()
	s := &store{c: c, data: data, db: db, layers: map[digest.Digest]*layer{}}
	s.add(entry{Path: contentDir + "/ingest", Mode: fs.ModeDir | 0o755})
	images = slices.SortedFunc(slices.Values(images), func(a, b oci.Named) int { return strings.Compare(a.Ref, b.Ref) })
	for _, im := range images {
		if err := s.image(ctx, im); err != nil {
			return fmt.Errorf("storing image %s: %w", im.Ref, err)
		}
	}
	if err := s.db.freeze(); err != nil {
		return err
	}
	for name, to := range map[string]string{metaDB: metadataFile, snapshotDB: snapshotDir + "/metadata.db"} {
		if err := s.addFile(name, to, 0o644); err != nil {
			return err
		}
	}
	slices.SortFunc(s.entries, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	list, err := json.Marshal(s.entries)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Directory, ListFile), list, 0o644)
}

// store is a store under construction.
type store struct {
	c       Config
	data    *os.File
	size    int64 // of data
	db      *databases
	entries []entry
	layers  map[digest.Digest]*layer // by chain ID
}

func (s *store) add(e entry) {
	if e.UnixTime == 0 {
		e.UnixTime = s.c.UnixTime
	}
	s.entries = append(s.entries, e)
}

// addFile adds a file of the directory.
func (s *store) addFile(name, to string, mode fs.FileMode) error {
	content, err := os.ReadFile(filepath.Join(s.c.Directory, name))
	if err != nil {
		return err
	}
	s.add(entry{Path: to, Mode: mode, File: name, SizeBytes: int64(len(content)), SHA256: digest.FromBytes(content).Encoded()})
	return nil
}

// Tree is the store that Write left in directory, as it has to lie below
// containerd's root; list is its ListFile. A file whose content is not what was
// written is ErrChanged at its end.
func Tree(directory string, list []byte) (*tree.Tree, error) {
	var entries []entry
	if err := json.Unmarshal(list, &entries); err != nil {
		return nil, fmt.Errorf("reading the image store %s: %w", directory, err)
	}
	t := tree.New()
	for _, top := range []string{contentDir, path.Dir(metadataFile), snapshotDir, snapshotDir + "/snapshots"} {
		if err := t.Dir(top, 0o700); err != nil {
			return nil, err
		}
	}
	for _, e := range entries {
		x := tree.Entry{Path: e.Path, Mode: e.Mode, UID: e.UID, GID: e.GID, ModTime: time.Unix(e.UnixTime, 0), Target: e.Target, Hard: e.Hard,
			Major: e.Major, Minor: e.Minor, Size: e.SizeBytes}
		for name, value := range e.Xattrs {
			if x.Xattrs == nil {
				x.Xattrs = map[string]string{}
			}
			x.Xattrs[name] = string(value)
		}
		if e.Mode.IsRegular() && !e.Hard {
			x.Open = func() (io.ReadCloser, error) { return openPart(directory, e) }
		}
		if err := t.Add(x); err != nil {
			return nil, fmt.Errorf("reading the image store %s: %w", directory, err)
		}
	}
	return t, nil
}

// openPart opens the part of a file that is e's content.
func openPart(directory string, e entry) (io.ReadCloser, error) {
	if e.SizeBytes == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	f, err := os.Open(filepath.Join(directory, e.File))
	if err != nil {
		return nil, err
	}
	part := struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, e.OffsetBytes, e.SizeBytes), f}
	return cache.Verifying(part, e.SHA256, func() error { return fmt.Errorf("%w: %s", ErrChanged, e.Path) }), nil
}

// ErrChanged says that a store is not what was written.
var ErrChanged = errors.New("the image store has changed since it was made")
