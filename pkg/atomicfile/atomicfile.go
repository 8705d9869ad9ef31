// Package atomicfile writes files that appear under their final name complete
// or not at all, and directories that vanish with the process that made them.
//
// A file under construction is held by a flock, so a later run can tell the
// leavings of a killed process (no lock: removed) from another process's work
// (locked: left alone). No pid is recorded and no lock file can go stale.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const suffix = ".partial"

// File is a file under construction.
type File struct {
	*os.File
	final string
	done  bool
}

// Create starts a file that Commit will put at path, replacing what is there.
func Create(path string, perm os.FileMode) (*File, error) {
	for {
		tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+strings.ToLower(rand.Text()[:10])+suffix)
		f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_RDWR, perm)
		if err != nil {
			return nil, err
		}
		held, err := lock(f)
		if err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(tmp))
		}
		if !held { // a sweep came between creation and lock
			f.Close()
			continue
		}
		// The caller's umask must not decide who can read an artifact.
		if err := f.Chmod(perm); err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(tmp))
		}
		return &File{File: f, final: path}, nil
	}
}

// lock takes the file's lock and says whether the file still has a name.
func lock(f *os.File) (bool, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	return st.Nlink > 0, nil
}

// Commit makes the content durable and gives the file its final name.
func (f *File) Commit() error {
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Rename()
}

// Rename is Commit for content that the caller has synced already.
func (f *File) Rename() error {
	if err := os.Rename(f.Name(), f.final); err != nil {
		return err
	}
	f.done = true
	if err := f.Close(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(f.final))
}

// Abort removes the file unless it was committed; it is for defer.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	os.Remove(f.Name())
	f.Close()
}

// Write puts content at path, atomically and durably.
func Write(path string, content []byte, perm os.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Commit()
}

// CopyFile puts the content of the file from at path, and makes the directories to it.
func CopyFile(path, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := io.Copy(f.File, in); err != nil {
		return err
	}
	return f.Commit()
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

// Sweep removes files in dir whose makers are gone.
func Sweep(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, ".*"+suffix))
	for _, p := range left {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if held, err := lock(f); err == nil && held {
			os.Remove(p)
		}
		f.Close()
	}
}

// TempDir is a private directory that lives as long as it is held open.
type TempDir struct {
	Path string
	dir  *os.File
}

// NewTempDir makes a directory below parent and removes those whose makers are gone.
func NewTempDir(parent string) (*TempDir, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	if old, err := os.ReadDir(parent); err == nil {
		for _, e := range old {
			sweepDir(filepath.Join(parent, e.Name()))
		}
	}
	for {
		p := filepath.Join(parent, strings.ToLower(rand.Text()[:10]))
		if err := os.Mkdir(p, 0o700); err != nil {
			return nil, err
		}
		d, err := os.Open(p)
		if errors.Is(err, os.ErrNotExist) {
			continue // swept between creation and lock
		}
		if err != nil {
			return nil, err
		}
		held, err := lock(d)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		if held {
			return &TempDir{p, d}, nil
		}
		d.Close()
	}
}

func sweepDir(p string) {
	d, err := os.Open(p)
	if err != nil {
		return
	}
	defer d.Close()
	if held, err := lock(d); err == nil && held {
		RemoveAll(p)
	}
}

// Remove removes the directory and what is in it.
func (t *TempDir) Remove() {
	RemoveAll(t.Path)
	t.dir.Close()
}

// RemoveAll is os.RemoveAll that is not stopped by read-only directories,
// which the Go module cache is full of.
func RemoveAll(p string) {
	if os.RemoveAll(p) == nil {
		return
	}
	filepath.WalkDir(p, func(q string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(q, 0o700)
		}
		return nil
	})
	os.RemoveAll(p)
}
