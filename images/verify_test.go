package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/tree"
)

// dataVolume is a small KIMAGE with the files.
func dataVolume(t *testing.T, content *tree.Tree) ext4.Volume {
	t.Helper()
	v := ext4.Volume{File: filepath.Join(t.TempDir(), "fs"), UnixTime: unixTime}
	if err := errors.Join(os.WriteFile(v.File, nil, 0o600), os.Truncate(v.File, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if err := ext4.Make(t.Context(), ext4.MakeConfig{File: v.File, SizeBytes: 16 << 20, Label: kimageName, UUID: "11111111-2222-8333-8444-555555555555", JournalMiB: 4,
		UnixTime: unixTime, ScratchDirectory: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if err := v.Add(t.Context(), content, nil, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVerifyArchives: where the container images are archives, every blob is judged.
func TestVerifyArchives(t *testing.T) {
	const ref = "registry.example/program:1"
	content, layout := tree.New(), t.TempDir()
	if err := content.Bytes("program", 0o755, []byte("text")); err != nil {
		t.Fatal(err)
	}
	layer, err := oci.WriteLayer(content, filepath.Join(t.TempDir(), "layer"), fixedTime(unixTime))
	if err != nil {
		t.Fatal(err)
	}
	if err := oci.WriteLayout(layout, oci.Config{Arch: "amd64", Entrypoint: []string{"/program"}}, []oci.Layer{layer}); err != nil {
		t.Fatal(err)
	}
	digest, _, err := oci.Manifest(layout)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "archive")
	if err := writeArchive(t.Context(), file, []oci.Named{{Ref: ref, Layout: layout}}); err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(archive)
	damaged[strings.Index(string(archive), `"rootfs"`)] ^= 1
	m := &manifest{Images: []components.Image{{Ref: ref, ManifestDigest: digest}}, ImageStore: &storeInfo{Format: storeArchive}}
	for _, tt := range []struct {
		name    string
		archive []byte
		format  string
		want    []string
	}{
		{"good", archive, storeArchive, nil},
		{"a changed blob", damaged, storeArchive, []string{ref}},
		{"none", nil, storeArchive, []string{"form of the image store", "container images"}},
		{"another form", archive, storeContainerd, []string{"form of the image store"}},
	} {
		content := tree.New()
		if tt.archive != nil {
			if err := content.Bytes(archivesDir+"/"+archiveFile(digest), 0o644, tt.archive); err != nil {
				t.Fatal(err)
			}
		}
		m.ImageStore.Format = tt.format
		v := &verifier{Verification: &Verification{}, kimage: dataVolume(t, content), manifest: m}
		if err := v.checkImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := v.of(CheckDiffers); !slices.Equal(got, tt.want) {
			t.Errorf("%s: differs %q, want %q: %+v", tt.name, got, tt.want, v.Checks)
		}
	}
}

// TestSameKimage: an imageID that this kimage would not give says that another one baked.
func TestSameKimage(t *testing.T) {
	o, err := FindOS("debian-13")
	if err != nil {
		t.Fatal(err)
	}
	m := manifest{APIVersion: APIVersion, Kind: manifestKind, OS: o.Name, Images: []components.Image{}}
	if m.ImageID, err = m.id(o); err != nil {
		t.Fatal(err)
	}
	same := func(m manifest) bool {
		_, same := (&verifier{Verification: &Verification{}, manifest: &m}).sameKimage()
		return same
	}
	m.Payload, m.ImageStore = &payloadInfo{SHA256: "known later"}, &storeInfo{}
	if !same(m) {
		t.Error("the same inputs give another imageID")
	}
	other, unknown := m, m
	other.Network, unknown.OS = "none", "plan9"
	if same(other) || same(unknown) {
		t.Error("other inputs give the same imageID")
	}
}

// TestVerifyOfAnotherKimage: what only the kimage that baked an image can write again is
// not judged by another one, the rest is.
func TestVerifyOfAnotherKimage(t *testing.T) {
	o, err := FindOS("debian-13")
	if err != nil {
		t.Fatal(err)
	}
	m := manifest{APIVersion: APIVersion, Kind: manifestKind, OS: o.Name, Components: []components.Program{{Name: "tool", Version: "v1"}}, Images: []components.Image{}}
	if m.ImageID, err = m.id(o); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name          string
		imageID       string
		old, new      string // in the bill of materials
		differs, ok   []string
		skippedChecks []string
	}{
		{name: "this one", imageID: m.ImageID, ok: []string{"imageID", "bill of materials"}, skippedChecks: []string{"manifest beside the image"}},
		{name: "this one, another field", imageID: m.ImageID, old: "NOASSERTION", new: "SOMEBODY", differs: []string{"bill of materials"}, ok: []string{"imageID"}, skippedChecks: []string{"manifest beside the image"}},
		{name: "another one", imageID: "0123456789ab", old: "NOASSERTION", new: "SOMEBODY", ok: []string{"bill of materials"}, skippedChecks: []string{"manifest beside the image", "imageID"}},
		{name: "another one, another version", imageID: "0123456789ab", old: `"v1"`, new: `"v2"`, differs: []string{"bill of materials"}, skippedChecks: []string{"manifest beside the image", "imageID"}},
	} {
		m := m
		m.ImageID = tt.imageID
		sbom, err := m.sbom()
		if err != nil {
			t.Fatal(err)
		}
		content := tree.New()
		if err := content.Bytes(sbomFile, 0o644, []byte(strings.Replace(string(sbom), tt.old, tt.new, 1))); err != nil {
			t.Fatal(err)
		}
		raw, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		v := &verifier{Verification: &Verification{File: filepath.Join(t.TempDir(), "x.raw")}, kimage: dataVolume(t, content), raw: raw, manifest: &m, copied: raw, inner: &m}
		if err := v.checkManifest(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(v.of(CheckDiffers), tt.differs) || !slices.Equal(v.of(CheckOK), append([]string{"manifest"}, tt.ok...)) || !slices.Equal(v.of(CheckNotJudged), tt.skippedChecks) {
			t.Errorf("%s: %+v", tt.name, v.Checks)
		}
	}
}

func TestCannotTell(t *testing.T) {
	for err, want := range map[error]bool{
		&fs.PathError{Op: "read", Path: "disk", Err: fs.ErrInvalid}: true,
		fmt.Errorf("x: %w", context.Canceled):                       true,
		fmt.Errorf("x: %w", fs.ErrNotExist):                         false,
		&run.Error{Argv: []string{"e2fsck"}, Status: -1}:            true,
		&run.Error{Argv: []string{"e2fsck"}, Status: 4}:             false,
	} {
		if got := cannotTell(err); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
}

func TestManifestsAreCompared(t *testing.T) {
	o, err := FindOS("debian-13")
	if err != nil {
		t.Fatal(err)
	}
	m := manifest{APIVersion: APIVersion, Kind: manifestKind, OS: o.Name, Images: []components.Image{}}
	if m.ImageID, err = m.id(o); err != nil {
		t.Fatal(err)
	}
	copied, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	m.Payload = &payloadInfo{SizeBytes: 5, SHA256: "abc"}
	raw, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ old, new, want string }{
		"the same":             {},
		"a value":              {`"debian-13"`, `"debian-12"`, `os "\"debian-12`},
		"a key":                {`"arch"`, `"Arch"`, "Arch"},
		"a key of the payload": {`"sizeBytes": 5`, `"SizeBytes": 5`, "does not write"},
		"a space":              {`"os": `, `"os":	`, "spaces"},
		"no JSON":              {`"os"`, `os`, "invalid character"},
		"another kind":         {manifestKind, "ImageManifesu", "kind"},
		"a field more":         {`"kind"`, `"more": 1, "kind"`, "more"},
	} {
		v := &verifier{Verification: &Verification{}, raw: []byte(strings.Replace(string(raw), tt.old, tt.new, 1)), copied: copied, inner: &m}
		v.manifest, _ = decodeManifest(v.raw)
		v.manifests()
		if c := v.Checks[0]; len(v.Checks) != 1 || (tt.want == "") != (c.Result == CheckOK) || !strings.Contains(c.Got, tt.want) {
			t.Errorf("%s: %+v", name, v.Checks)
		}
	}
}

func TestChanges(t *testing.T) {
	got := changes(map[string]string{"a": "1", "b": "1", "c": "1"}, map[string]string{"b": "1", "c": "2", "d": "1"})
	text := ""
	for _, c := range got {
		text += c.Name + " "
		for _, x := range []*string{c.A, c.B} {
			if x == nil {
				text += "- "
			} else {
				text += *x + " "
			}
		}
	}
	if want := "a 1 - c 1 2 d - 1 "; text != want {
		t.Errorf("got %q, want %q", text, want)
	}
}

// TestDiffText: the list for people.
func TestDiffText(t *testing.T) {
	a := &side{m: &manifest{Images: []components.Image{{Ref: "host:5000/one:1", ManifestDigest: "sha256:aaaaaaaaaaaaaaaaaaaa"}}, Components: []components.Program{{Name: "tool", Version: "v1", Origin: "here"}}}, in: &Inspection{}}
	b := &side{m: &manifest{Images: []components.Image{{Ref: "host:5000/one:2", ManifestDigest: "sha256:bbbbbbbbbbbbbbbbbbbb"}}, Components: []components.Program{{Name: "tool", Version: "v1", Origin: "there"}}},
		in: &Inspection{Partitions: []PartitionInfo{{Number: 2, Name: kimageName, SizeBytes: 1 << 30, OffsetBytes: 6 << 30, Filesystem: "ext4"}}}}
	d := Difference{A: DiffSide{"a.raw", "a", "1"}, B: DiffSide{"b.raw", "b", "2"}, Images: changes(a.images(), b.images()), Components: changes(a.components(), b.components()), Partitions: changes(a.partitions(), b.partitions()),
		Files: changes(map[string]FileState{"usr/bin/x": {Mode: "-rwxr-xr-x", SizeBytes: 2048, SHA256: "abc"}, "usr/l": {Target: "x"}}, map[string]FileState{"usr/bin/x": {Mode: "-rw-r--r--", SizeBytes: 2049, SHA256: "abd"}})}
	const want = `- a.raw  a  imageID 1
+ b.raw  b  imageID 2

components
  ~ tool  v1 from here, verified by   ->  v1 from there, verified by 

container images
  ~ host:5000/one  1 aaaaaaaaaaaa  ->  2 bbbbbbbbbbbb

files of the payload
  ~ usr/bin/x  -rwxr-xr-x 2048 bytes abc  ->  -rw-r--r-- 2049 bytes abd
  - usr/l      a link to x

partitions
  + KIMAGE  number 2, 1.0 GiB at 6.0 GiB, ext4

different: 1 component, 1 container image, 2 files, 1 partition
`
	if got := d.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
