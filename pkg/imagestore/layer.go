package imagestore

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names by which a layer's tar takes away what lower layers have.
// https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // of AUFS, meaningless elsewhere
)

// opaque is what hides a directory of lower layers in overlayfs.
const opaque = "trusted.overlay.opaque"

// layer is an unpacked layer.
type layer struct {
	chainID digest.Digest
	id      string           // of the snapshot
	dirs    map[string]entry // its directories, as overlayfs shows them: those below them included
}

// layer unpacks a layer over those below it.
func (s *store) layer(ctx context.Context, l *layer, below []*layer, layout string, d ocispec.Descriptor, diffID digest.Digest) error {
	r, done, err := openLayer(layout, d, diffID)
	if err != nil {
		return err
	}
	u := unpacking{s: s, entries: map[string]entry{}, below: map[string]entry{}}
	parent := ""
	if len(below) > 0 {
		top := below[len(below)-1]
		u.below, parent = top.dirs, top.chainID.String()
	}
	err = u.read(ctx, r)
	if err2 := done(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	root := u.entries["."]
	if root.Mode == 0 {
		root = u.parent(".")
	}
	u.entries["."] = root
	var usage Usage
	for _, e := range u.entries {
		if !e.Hard {
			usage.Add(e.SizeBytes)
		}
	}
	if l.id, err = s.db.snapshot(ctx, l.chainID.String(), parent, usage.Inodes, usage.SizeBytes); err != nil {
		return err
	}
	l.dirs = maps.Clone(u.below)
	at := path.Join(snapshotDir, "snapshots", l.id)
	s.add(entry{Path: at, Mode: fs.ModeDir | 0o700})
	s.add(entry{Path: at + "/work", Mode: fs.ModeDir | 0o711})
	for _, p := range slices.Sorted(maps.Keys(u.entries)) {
		e := u.entries[p]
		if e.Mode.IsDir() {
			l.dirs[p] = e
		} else {
			forget(l.dirs, p)
		}
		e.Path = path.Join(at, "fs", p)
		if e.Hard {
			e.Target = path.Join(at, "fs", e.Target)
		}
		s.add(e)
	}
	return nil
}

// forget removes what is at p and below it.
func forget(m map[string]entry, p string) {
	maps.DeleteFunc(m, func(k string, _ entry) bool { return k == p || strings.HasPrefix(k, p+"/") })
}

// unpacking is a layer that is being read.
type unpacking struct {
	s       *store
	entries map[string]entry // by path in the layer
	below   map[string]entry // directories of the layers below
}

func (u *unpacking) read(ctx context.Context, r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading its tar: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func clean(name string) string {
	if p := strings.TrimPrefix(path.Clean("/"+name), "/"); p != "" {
		return p
	}
	return "."
}

func (u *unpacking) entry(h *tar.Header, content io.Reader) error {
	p := clean(h.Name)
	dir, base := path.Dir(p), path.Base(p)
	u.parents(dir)
	switch {
	case base == whiteoutOpaque:
		e := u.entries[dir]
		if e.Xattrs = maps.Clone(e.Xattrs); e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[opaque] = []byte("y")
		u.entries[dir] = e
		return nil
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	case strings.HasPrefix(base, whiteout):
		gone := path.Join(dir, strings.TrimPrefix(base, whiteout))
		u.put(gone, entry{Mode: fs.ModeDevice | fs.ModeCharDevice, UnixTime: u.s.c.UnixTime})
		return nil
	}
	e := entry{Mode: h.FileInfo().Mode(), UID: h.Uid, GID: h.Gid, UnixTime: h.ModTime.Unix(), Major: uint32(h.Devmajor), Minor: uint32(h.Devminor)}
	for name, value := range h.PAXRecords {
		if x, ok := strings.CutPrefix(name, "SCHILY.xattr."); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			e.Xattrs[x] = []byte(value)
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if err := u.content(&e, h.Size, content); err != nil {
			return err
		}
	case tar.TypeLink:
		var err error
		if e, err = u.link(e, clean(h.Linkname)); err != nil {
			return err
		}
	case tar.TypeSymlink:
		e.Target = h.Linkname
	case tar.TypeDir:
		if old, ok := u.entries[p]; ok && old.Mode.IsDir() && old.Xattrs[opaque] != nil {
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			e.Xattrs[opaque] = old.Xattrs[opaque]
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return nil // what is no file: containerd ignores it too
	}
	u.put(p, e)
	return nil
}

// link makes a further name of target. Like containerd it gives the file what the
// link's own header says; a change of owner takes capabilities away.
func (u *unpacking) link(said entry, target string) (entry, error) {
	t, ok := u.entries[target]
	if ok && t.Hard {
		target = t.Target
		t = u.entries[target]
	}
	if !ok || t.Mode.IsDir() {
		return entry{}, fmt.Errorf("it is a link to %s, which this layer does not have", target)
	}
	t.UID, t.GID, t.UnixTime = said.UID, said.GID, said.UnixTime
	t.Mode = t.Mode.Type() | said.Mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)
	if t.Xattrs = maps.Clone(t.Xattrs); t.Xattrs == nil {
		t.Xattrs = map[string][]byte{}
	}
	delete(t.Xattrs, "security.capability")
	maps.Copy(t.Xattrs, said.Xattrs)
	u.entries[target] = t
	return entry{Mode: said.Mode.Perm(), Hard: true, Target: target, UnixTime: said.UnixTime}, nil
}

// put puts e at p, in place of what the same layer had there before.
func (u *unpacking) put(p string, e entry) {
	if old, ok := u.entries[p]; ok && !(old.Mode.IsDir() && e.Mode.IsDir()) {
		forget(u.entries, p)
	}
	u.entries[p] = e
}

// content appends a file's content to the store's data.
func (u *unpacking) content(e *entry, size int64, r io.Reader) error {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(u.s.data, h), r)
	if err != nil {
		return err
	}
	e.File, e.OffsetBytes, e.SizeBytes, e.SHA256 = dataFile, u.s.size, n, hex.EncodeToString(h.Sum(nil))
	u.s.size += n
	return nil
}

// parents makes sure that dir and those above it are directories of the layer: as
// they are below, or else root's.
func (u *unpacking) parents(dir string) {
	for d := dir; ; d = path.Dir(d) {
		if e, ok := u.entries[d]; !ok || !e.Mode.IsDir() {
			u.put(d, u.parent(d))
		}
		if d == "." {
			return
		}
	}
}

func (u *unpacking) parent(d string) entry {
	if e, ok := u.below[d]; ok {
		e.Xattrs = maps.Clone(e.Xattrs)
		delete(e.Xattrs, opaque)
		return e
	}
	return entry{Mode: fs.ModeDir | 0o755, UnixTime: u.s.c.UnixTime}
}
