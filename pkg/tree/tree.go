// Package tree holds the content of a filesystem as a value: built first,
// written after, by whichever writer (tar stream, ext4 through debugfs).
//
// Regular files are opened only when a writer reaches them, so a tree of
// gigabytes costs a few kilobytes. Two entries with one path are an error, as
// is a file below something that is not a directory. The package does not read
// or write the host's filesystem.
package tree

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Entry is one file, directory, link or device.
type Entry struct {
	Path     string      // slash-separated, relative to the root, clean; "." is the root itself
	Mode     fs.FileMode // type, permissions, setuid, setgid, sticky
	UID, GID int
	ModTime  time.Time // zero: the writer's fixed time
	Target   string    // symbolic link: its text; hard link (Mode type regular, Hard set): path of the file in the tree
	Hard     bool      // a further name of Target
	Size     int64     // bytes; regular files
	Open     func() (io.ReadCloser, error)
	Host     string            // host file that Open reads from its first byte to its last; empty: content is made elsewhere
	Xattrs   map[string]string // full name (security.capability) to raw value
	Major    uint32            // devices
	Minor    uint32
}

// Tree is a set of entries. Parents that were not added are made as
// directories 0755 owned by root.
type Tree struct {
	entries map[string]*Entry
}

// New returns an empty tree.
func New() *Tree {
	return &Tree{entries: map[string]*Entry{".": {Path: ".", Mode: fs.ModeDir | 0o755}}}
}

// Add puts e into the tree. An implied or equal directory may be added again
// (the later one's owner and mode count); anything else that exists is an error.
func (t *Tree) Add(e Entry) error {
	p := clean(e.Path)
	e.Path = p
	if old, ok := t.entries[p]; ok && !(old.Mode.IsDir() && e.Mode.IsDir()) {
		return fmt.Errorf("adding %s: the path is in the tree already", p)
	}
	if p != "." {
		if err := t.parents(path.Dir(p)); err != nil {
			return fmt.Errorf("adding %s: %w", p, err)
		}
	}
	t.entries[p] = &e
	return nil
}

// clean makes p relative to the root; it cannot climb out of it.
func clean(p string) string {
	if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p != "" {
		return p
	}
	return "."
}

func (t *Tree) parents(dir string) error {
	if e, ok := t.entries[dir]; ok {
		if !e.Mode.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	}
	if err := t.parents(path.Dir(dir)); err != nil {
		return err
	}
	t.entries[dir] = &Entry{Path: dir, Mode: fs.ModeDir | 0o755}
	return nil
}

// Bytes adds a regular file owned by root with the given content.
func (t *Tree) Bytes(p string, perm fs.FileMode, content []byte) error {
	return t.Add(Entry{Path: p, Mode: perm, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}})
}

// File adds a regular file owned by root whose content is read from host.
func (t *Tree) File(p string, perm fs.FileMode, host string) error {
	fi, err := os.Stat(host)
	if err != nil {
		return fmt.Errorf("adding %s: %w", p, err)
	}
	return t.Add(Entry{Path: p, Mode: perm, Size: fi.Size(), Host: host,
		Open: func() (io.ReadCloser, error) { return os.Open(host) }})
}

// Symlink adds a symbolic link owned by root.
func (t *Tree) Symlink(p, target string) error {
	return t.Add(Entry{Path: p, Mode: fs.ModeSymlink | 0o777, Target: target})
}

// Dir adds a directory owned by root.
func (t *Tree) Dir(p string, perm fs.FileMode) error {
	return t.Add(Entry{Path: p, Mode: fs.ModeDir | perm})
}

// Graft adds all of other below dir, which becomes other's root.
func (t *Tree) Graft(dir string, other *Tree) error {
	for _, e := range other.Entries() {
		e.Path = path.Join(dir, e.Path)
		if e.Hard {
			e.Target = path.Join(dir, e.Target)
		}
		if err := t.Add(e); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes the entry at p out; a directory's children stay.
func (t *Tree) Remove(p string) { delete(t.entries, clean(p)) }

// Lookup returns the entry at p.
func (t *Tree) Lookup(p string) (Entry, bool) {
	e, ok := t.entries[p]
	if !ok {
		return Entry{}, false
	}
	return *e, true
}

// Entries returns all entries sorted by path, parents before children, the root first.
func (t *Tree) Entries() []Entry {
	out := make([]Entry, 0, len(t.entries))
	for _, e := range t.entries {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return comparePaths(a.Path, b.Path) })
	return out
}

// SizeBytes is the sum of the regular files' sizes.
func (t *Tree) SizeBytes() int64 {
	var n int64
	for _, e := range t.entries {
		if e.Mode.IsRegular() && !e.Hard {
			n += e.Size
		}
	}
	return n
}

// comparePaths sorts component by component, so that a directory's children
// follow it directly.
func comparePaths(a, b string) int {
	if a == b {
		return 0
	}
	if a == "." {
		return -1
	}
	if b == "." {
		return 1
	}
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}
