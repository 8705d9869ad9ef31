package tree

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"slices"
	"testing"
	"time"
)

func paths(t *Tree) (out []string) {
	for _, e := range t.Entries() {
		out = append(out, e.Path)
	}
	return out
}

func TestAdd(t *testing.T) {
	tr := New()
	for _, p := range []string{"b/c", "./a", "/b-x", "b/../../d"} {
		if err := tr.Bytes(p, 0o644, nil); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing climbs out, parents are made, a directory's children follow it.
	if got, want := paths(tr), []string{".", "a", "b", "b/c", "b-x", "d"}; !slices.Equal(got, want) {
		t.Errorf("paths %q, want %q", got, want)
	}
	if err := tr.Bytes("a", 0o644, nil); err == nil {
		t.Error("a path was added twice")
	}
	if err := tr.Bytes("a/below", 0o644, nil); err == nil {
		t.Error("a file got a child")
	}
	if err := tr.Add(Entry{Path: "b", Mode: fs.ModeDir | 0o700}); err != nil {
		t.Errorf("an implied directory cannot be described: %v", err)
	}
}

func TestTarRoundTrip(t *testing.T) {
	tr := New()
	for _, err := range []error{
		tr.Bytes("z/file", 0o4755&0o777, []byte("content")),
		tr.Symlink("a", "z/file"),
		tr.Add(Entry{Path: "0hard", Hard: true, Target: "z/file"}), // sorts before its target
		tr.Add(Entry{Path: "setuid", Mode: 0o755 | fs.ModeSetuid, UID: 3, GID: 4, Xattrs: map[string]string{"security.capability": "\x01\x00\xff"},
			Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(nil)), nil }}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var first, second bytes.Buffer
	at := time.Unix(1700000000, 0)
	if err := tr.WriteTar(&first, at); err != nil {
		t.Fatal(err)
	}
	if err := tr.WriteTar(&second, at); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("two streams of one tree differ (%v)", err)
	}
	back := New()
	contents := map[string]string{}
	err := back.AddTar(&first, func(h *tar.Header, r io.Reader) (string, error) {
		b, err := io.ReadAll(r)
		contents[h.Name] = string(b)
		return "/nonexistent/" + h.Name, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(paths(back), paths(tr)) || contents["z/file"] != "content" {
		t.Errorf("%q %q", paths(back), contents)
	}
	e, _ := back.Lookup("setuid")
	if e.Mode&fs.ModeSetuid == 0 || e.UID != 3 || e.GID != 4 || e.Xattrs["security.capability"] != "\x01\x00\xff" || !e.ModTime.Equal(at) {
		t.Errorf("%+v", e)
	}
	if h, _ := back.Lookup("0hard"); !h.Hard || h.Target != "z/file" {
		t.Errorf("%+v", h)
	}
}

func TestWriteTarFailsOnShortContent(t *testing.T) {
	tr := New()
	if err := tr.Add(Entry{Path: "f", Size: 10, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte("short"))), nil }}); err != nil {
		t.Fatal(err)
	}
	if err := tr.WriteTar(io.Discard, time.Unix(0, 0)); err == nil {
		t.Error("a short file was accepted")
	}
}
