package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kimage-project/kimage/pkg/local"
)

// TestPruneByLink: an image that machines boot from stays, by whatever path they know it.
func TestPruneByLink(t *testing.T) {
	top := t.TempDir()
	dir, link := filepath.Join(top, "real"), filepath.Join(top, "link")
	images := filepath.Join(dir, "cluster.local/images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"used.raw", "unused.raw"} {
		write(t, images, name, name)
	}
	l, err := localOf(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	now := local.Spec{Machines: []local.Machine{{Name: "a", Image: filepath.Join(link, "cluster.local/images/used.raw")}}}
	lost := local.Spec{Machines: []local.Machine{{Name: "a", Image: filepath.Join(top, "gone.raw")}}}
	for _, c := range []struct {
		now  local.Spec
		want string
	}{{lost, "[unused.raw used.raw]"}, {now, "[used.raw]"}} {
		if err := l.prune(c.now); err != nil {
			t.Fatal(err)
		}
		if got := listing(t, images); got != c.want {
			t.Errorf("left are %s, not %s", got, c.want)
		}
	}
}

// TestUndo: what one kimage made it takes back, unless another works on it, or has made
// it anew.
func TestUndo(t *testing.T) {
	l, err := localOf(filepath.Join(t.TempDir(), "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	claim := func() *os.File {
		t.Helper()
		f, err := l.claim()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	made := claim()
	if err := letGo(made); err != nil {
		t.Fatal(err)
	}
	other := claim()
	if err := l.undo(io.Discard, made); !errors.Is(err, errClaimed) {
		t.Errorf("while another works on it: %v", err)
	}
	if err := l.discard(io.Discard); err != nil {
		t.Fatal(err)
	}
	other.Close()
	again := claim()
	if err := letGo(again); err != nil {
		t.Fatal(err)
	}
	if err := l.undo(io.Discard, made); !errors.Is(err, errRemoved) {
		t.Errorf("after another made it anew: %v", err)
	}
	if _, err := os.Stat(l.in(claimFile)); err != nil {
		t.Error(err)
	}
	if err := l.undo(io.Discard, again); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its own: %v", err)
	}
}
