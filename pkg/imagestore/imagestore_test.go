package imagestore

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/tree"
)

const unixTime = 1700000000

// layout makes an image of the layers.
func layout(t *testing.T, layers ...*tree.Tree) string {
	t.Helper()
	dir := t.TempDir()
	var all []oci.Layer
	for i, l := range layers {
		made, err := oci.WriteLayer(l, filepath.Join(t.TempDir(), "layer"+string(rune('0'+i))), time.Unix(unixTime+int64(i), 0))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, made)
	}
	if err := oci.WriteLayout(dir, oci.Config{Arch: "amd64", Entrypoint: []string{"/program"}}, all); err != nil {
		t.Fatal(err)
	}
	return dir
}

func files(t *testing.T, entries ...tree.Entry) *tree.Tree {
	t.Helper()
	tr := tree.New()
	for _, e := range entries {
		if e.Mode.IsRegular() && !e.Hard {
			content := e.Path
			e.Size, e.Open = int64(len(content)), func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
		}
		if err := tr.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

func twoImages(t *testing.T) []oci.Named {
	t.Helper()
	base := files(t, tree.Entry{Path: "etc", Mode: fs.ModeDir | 0o700, UID: 3, Xattrs: map[string]string{"user.kept": "yes"}}, tree.Entry{Path: "etc/passwd", Mode: 0o644},
		tree.Entry{Path: "bin/su", Mode: 0o755 | fs.ModeSetuid, Xattrs: map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00" + strings.Repeat("\x00", 12)}},
		tree.Entry{Path: "bin/again", Hard: true, Target: "bin/su"}, tree.Entry{Path: "lib", Mode: fs.ModeSymlink | 0o777, Target: "usr/lib"}, tree.Entry{Path: "var/old/file", Mode: 0o600, GID: 7})
	one := files(t, tree.Entry{Path: "etc/shadow", Mode: 0o600}, tree.Entry{Path: "etc/.wh.passwd", Mode: 0o644}, tree.Entry{Path: "var/.wh..wh..opq", Mode: 0o644}, tree.Entry{Path: "var/new", Mode: 0o644})
	two := files(t, tree.Entry{Path: "program", Mode: 0o755})
	return []oci.Named{{Ref: "registry.example/two:2", Layout: layout(t, base, two)}, {Ref: "registry.example/one:1", Layout: layout(t, base, one)}}
}

func write(t *testing.T, images []oci.Named) string {
	t.Helper()
	dir := t.TempDir()
	if err := Write(t.Context(), images, Config{Directory: dir, UnixTime: unixTime, Pinned: true}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string) *tree.Tree {
	t.Helper()
	list, err := os.ReadFile(filepath.Join(dir, ListFile))
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Tree(dir, list)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestLayersBecomeSnapshots: what overlayfs needs is there, as containerd's
// differ would have made it, and a layer that two images share once.
func TestLayersBecomeSnapshots(t *testing.T) {
	tr := open(t, write(t, twoImages(t)))
	const snapshots = snapshotDir + "/snapshots/"
	for path, ok := range map[string]func(e tree.Entry) bool{
		"1/fs/bin/su":     func(e tree.Entry) bool { return e.Mode == 0o755|fs.ModeSetuid && e.Xattrs["security.capability"] != "" },
		"1/fs/bin/again":  func(e tree.Entry) bool { return e.Hard && e.Target == snapshots+"1/fs/bin/su" },
		"1/fs/lib":        func(e tree.Entry) bool { return e.Mode&fs.ModeSymlink != 0 && e.Target == "usr/lib" },
		"1/fs/var/old":    func(e tree.Entry) bool { return e.Mode.IsDir() },
		"1/work":          func(e tree.Entry) bool { return e.Mode == fs.ModeDir|0o711 },
		"2/fs/etc/shadow": func(e tree.Entry) bool { return e.Mode == 0o600 },
		"2/fs/etc/passwd": func(e tree.Entry) bool { return e.Mode&fs.ModeCharDevice != 0 && e.Major == 0 && e.Minor == 0 },
		"2/fs/var":        func(e tree.Entry) bool { return e.Xattrs[opaque] == "y" },
		"2/fs/var/new":    func(e tree.Entry) bool { return e.Size == int64(len("var/new")) },
		"3/fs/program":    func(e tree.Entry) bool { return e.ModTime.Unix() == unixTime+1 },
	} {
		if e, found := tr.Lookup(snapshots + path); !found || !ok(e) {
			t.Errorf("%s: %v %+v", path, found, e)
		}
	}
	seen := 0
	for _, e := range tr.Entries() {
		if strings.HasSuffix(e.Path, "/bin/su") {
			seen++
		}
		if e.Mode.IsRegular() && !e.Hard {
			r, err := e.Open()
			if err != nil {
				t.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); err != nil || n != e.Size {
				t.Errorf("%s: %d bytes of %d, %v", e.Path, n, e.Size, err)
			}
			r.Close()
		}
	}
	if seen != 1 {
		t.Errorf("the shared layer is there %d times", seen)
	}
}

// TestParents: a directory that a layer does not name is what it is below.
func TestParents(t *testing.T) {
	etc := entry{Mode: fs.ModeDir | 0o700, UID: 3, Xattrs: map[string][]byte{"user.kept": nil, opaque: nil}}
	u := unpacking{s: &store{}, entries: map[string]entry{}, below: map[string]entry{"etc": etc}}
	u.parents("etc/new")
	if e := u.entries["etc"]; e.Mode != etc.Mode || e.UID != 3 || len(e.Xattrs) != 1 {
		t.Errorf("%+v", e)
	}
	if e := u.entries["etc/new"]; e.Mode != fs.ModeDir|0o755 {
		t.Errorf("%+v", e)
	}
}

func TestSameBytes(t *testing.T) {
	images := twoImages(t)
	a := write(t, images)
	images[0], images[1] = images[1], images[0]
	b := write(t, images)
	seen := 0
	err := filepath.WalkDir(a, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		seen++
		rel, _ := filepath.Rel(a, p)
		x, err1 := os.ReadFile(p)
		y, err2 := os.ReadFile(filepath.Join(b, rel))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s differs (%v)", rel, err)
		}
		return nil
	})
	if err != nil || seen != 8 {
		t.Errorf("%d files, %v", seen, err)
	}
}

func TestDamage(t *testing.T) {
	images := twoImages(t)
	dir := write(t, images)
	data := filepath.Join(dir, dataFile)
	content, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	content[0] ^= 1
	if err := os.WriteFile(data, content, 0o644); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for _, e := range open(t, dir).Entries() {
		if !e.Mode.IsRegular() || e.Hard {
			continue
		}
		r, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); errors.Is(err, ErrChanged) {
			damaged++
		}
		r.Close()
	}
	if damaged != 1 {
		t.Errorf("%d files are damaged", damaged)
	}

	blobs, err := filepath.Glob(filepath.Join(images[1].Layout, "blobs/sha256/*"))
	if err != nil || len(blobs) != 4 {
		t.Fatal(blobs, err)
	}
	for _, b := range blobs { // of the image that is stored first: layers, config and manifest alike
		good, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)-2] ^= 1
		if err := os.WriteFile(b, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Write(t.Context(), images, Config{Directory: t.TempDir(), UnixTime: unixTime}); err == nil || !strings.Contains(err.Error(), images[1].Ref) {
			t.Errorf("%s: %v", filepath.Base(b), err)
		}
		if err := os.WriteFile(b, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
