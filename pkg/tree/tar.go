package tree

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// WriteTar writes the tree as a PAX tar stream, root entry left out, in path
// order. Entries without a time get mtime; extended attributes travel as
// SCHILY.xattr records, which containerd reads. Hard links come
// after all other entries, because a reader needs their target first.
func (t *Tree) WriteTar(w io.Writer, mtime time.Time) error {
	tw, buf := tar.NewWriter(w), make([]byte, 1<<20)
	entries := t.Entries()
	for _, hard := range []bool{false, true} {
		for _, e := range entries {
			if e.Path == "." || e.Hard != hard {
				continue
			}
			if e.Hard {
				// Readers set what they find here on the file of both names.
				target, ok := t.Lookup(e.Target)
				if !ok {
					return fmt.Errorf("writing %s to tar: it is a link to %s, which is not there", e.Path, e.Target)
				}
				e.Mode, e.UID, e.GID, e.ModTime, e.Xattrs = target.Mode, target.UID, target.GID, target.ModTime, target.Xattrs
			}
			if err := writeTarEntry(tw, e, mtime, buf); err != nil {
				return fmt.Errorf("writing %s to tar: %w", e.Path, err)
			}
		}
	}
	return tw.Close()
}

func writeTarEntry(tw *tar.Writer, e Entry, mtime time.Time, buf []byte) error {
	h := &tar.Header{
		Name: e.Path, Uid: e.UID, Gid: e.GID, ModTime: e.ModTime, Format: tar.FormatPAX,
		Mode: Perm(e.Mode), Linkname: e.Target, Devmajor: int64(e.Major), Devminor: int64(e.Minor),
	}
	if h.ModTime.IsZero() {
		h.ModTime = mtime
	}
	h.ModTime = h.ModTime.Truncate(time.Second)
	switch {
	case e.Hard:
		h.Typeflag = tar.TypeLink
	case e.Mode.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case e.Mode.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case e.Mode&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
	case e.Mode&fs.ModeCharDevice != 0:
		h.Typeflag = tar.TypeChar
	case e.Mode&fs.ModeDevice != 0:
		h.Typeflag = tar.TypeBlock
	case e.Mode&fs.ModeNamedPipe != 0:
		h.Typeflag = tar.TypeFifo
	default:
		return fmt.Errorf("files of type %v cannot be in an image", e.Mode.Type())
	}
	for name, value := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	// Only a Reader: *os.File would copy in pieces of 32 KiB.
	_, err = io.CopyBuffer(tw, struct{ io.Reader }{r}, buf)
	return err
}

// AddTar adds the entries of a tar stream. A regular file's content is handed
// to keep, which stores it and returns the host file that holds it.
func (t *Tree) AddTar(r io.Reader, keep func(h *tar.Header, content io.Reader) (host string, err error)) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading tar: %w", err)
		}
		e := Entry{Path: h.Name, Mode: h.FileInfo().Mode(), UID: h.Uid, GID: h.Gid, ModTime: h.ModTime,
			Major: uint32(h.Devmajor), Minor: uint32(h.Devminor)}
		switch h.Typeflag {
		case tar.TypeReg:
			e.Size = h.Size
			host, err := keep(h, tr)
			if err != nil {
				return fmt.Errorf("reading %s from tar: %w", h.Name, err)
			}
			e.Host, e.Open = host, func() (io.ReadCloser, error) { return os.Open(host) }
		case tar.TypeLink:
			e.Hard, e.Mode, e.Target = true, e.Mode.Perm(), clean(h.Linkname)
		case tar.TypeSymlink:
			e.Target = h.Linkname
		}
		for name, value := range h.PAXRecords {
			if len(name) > 13 && name[:13] == "SCHILY.xattr." {
				if e.Xattrs == nil {
					e.Xattrs = map[string]string{}
				}
				e.Xattrs[name[13:]] = value
			}
		}
		if err := t.Add(e); err != nil {
			return err
		}
	}
}

// Perm is the mode's permissions with setuid, setgid and sticky in their Unix places.
func Perm(m fs.FileMode) int64 {
	p := int64(m.Perm())
	if m&fs.ModeSetuid != 0 {
		p |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		p |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		p |= 0o1000
	}
	return p
}
