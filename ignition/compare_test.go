package ignition

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/cluster"
)

// TestSameBytes: the same cluster file and state give the same bytes, and the
// output directory appears as a whole.
func TestSameBytes(t *testing.T) {
	for osName := range testOSes {
		c := makeCluster(t, whole, osName)
		dir := filepath.Join(c.file.Dir(), "config")
		var runs []string
		for range 2 {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			c.state.Close()
			c = makeFrom(t, c.file, osName)
			if err := c.g.Write(t.Context(), dir, c.all, testOSes[osName].Variant == ""); err != nil {
				t.Fatal(err)
			}
			runs = append(runs, treeDigest(t, dir))
		}
		if runs[0] != runs[1] {
			t.Errorf("%s: two runs differ", osName)
		}
	}
}

func treeDigest(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if want := map[bool]os.FileMode{true: 0o700, false: 0o600}[e.IsDir()]; fi.Mode().Perm() != want {
			t.Errorf("%s has mode %o", p, fi.Mode().Perm())
		}
		if e.IsDir() {
			return nil
		}
		data, err := os.ReadFile(p)
		fmt.Fprintf(&b, "%s %x\n", strings.TrimPrefix(p, dir), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCompareAndReplace(t *testing.T) {
	c := makeCluster(t, whole, "debian-13")
	dir := filepath.Join(c.file.Dir(), "config")
	if changes, err := c.g.Compare(dir, c.all); err != nil || !changes.First {
		t.Fatalf("%+v, %v", changes, err)
	}
	if err := c.g.Write(t.Context(), dir, c.all, false); err != nil {
		t.Fatal(err)
	}
	if changes, err := c.g.Compare(dir, c.all); err != nil || changes.Any() || changes.First {
		t.Errorf("%+v, %v", changes, err)
	}
	// A label of one machine, a machine more, and one less.
	text := strings.NewReplacer("OSNAME", "debian-13", "name: hand, roles: [worker]", "name: foot, roles: [worker]", "size: 3", "size: 3, machine: {labels: {b: c}}").Replace(whole)
	f, err := cluster.Parse([]byte(text), c.file.Path, testSupport)
	if err != nil {
		t.Fatal(err)
	}
	c.state.Close()
	next := makeFrom(t, f, "debian-13")
	changes, err := next.g.Compare(dir, next.all)
	if err != nil || fmt.Sprint(changes.Added) != "[nodes/foot]" || fmt.Sprint(changes.Removed) != "[nodes/hand]" {
		t.Errorf("%+v, %v", changes, err)
	}
	// The list of machines, which all have, reaches those that run.
	if fmt.Sprint(changes.Changed) != "[pools/crowd]" {
		t.Errorf("changed: %v", changes.Changed)
	}
	if err := next.g.Write(t.Context(), dir, next.all, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "nodes/hand")); !os.IsNotExist(err) {
		t.Error("the machine that left still has a config")
	}
	if entries, _ := os.ReadDir(c.file.Dir()); len(entries) != 3 { // config, secrets, state
		t.Errorf("left beside: %v", entries)
	}
	// Somebody else's directory is left alone.
	other := filepath.Join(t.TempDir(), "other")
	if err := os.MkdirAll(other, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := next.g.Write(t.Context(), other, next.all, false); err == nil || !strings.Contains(err.Error(), "did not write") {
		t.Errorf("error %v", err)
	}
}
