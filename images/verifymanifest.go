package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// decodeManifest decodes a manifest of an image.
func decodeManifest(raw []byte) (*manifest, error) {
	m := &manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, err
	}
	if m.Kind != manifestKind {
		return nil, fmt.Errorf("it is of kind %q, not %s", m.Kind, manifestKind)
	}
	return m, nil
}

// checkManifest judges the manifest by its copies, the imageID by the inputs that the
// manifest lists, and the bill of materials by the manifest.
func (v *verifier) checkManifest(ctx context.Context) error {
	v.manifests()
	if err := v.besideImage(); err != nil {
		return err
	}
	m := v.reference()
	if m == nil {
		v.notJudged("imageID", "no manifest can be read")
		v.notJudged("bill of materials", "no manifest can be read")
		return nil
	}
	_, same := v.sameKimage()
	if same {
		v.ok("imageID", "the digest of all inputs, computed again")
	} else {
		v.notJudged("imageID", otherKimage)
	}
	return v.billOfMaterials(ctx, m, same)
}

// manifests compares the manifest on KIMAGE with the payload's own copy, which lacks what
// became known later.
func (v *verifier) manifests() {
	const thing, with = "manifest", "the payload's own copy, and the form that kimage gives it"
	switch _, err := decodeManifest(v.raw); {
	case v.raw == nil:
		v.differs(thing, with, "/"+manifestFile+" cannot be read", "")
	case err != nil:
		v.differs(thing, with, "/"+manifestFile+": "+err.Error(), "")
	case v.copied == nil:
		v.notJudged(thing, "the payload's own copy cannot be read")
	default:
		got, want := differentFields(v.raw, v.copied, "payload", "imageStore")
		if got == "" && !canonical(v.raw) {
			got, want = "it was written over: its spaces and lines are others", ""
		}
		if again, err := v.manifest.encode(); got == "" && err == nil && !bytes.Equal(again, v.raw) {
			if _, same := v.sameKimage(); same {
				got = "it has fields that this kimage, which baked it, does not write"
			}
		}
		if got != "" {
			v.differs(thing, with, got, want)
			return
		}
		v.ok(thing, with)
	}
}

// differentFields are the fields of JSON objects that are not the same, but for some;
// empty: none.
func differentFields(a, b []byte, but ...string) (inA, inB string) {
	var x, y map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		return err.Error(), ""
	}
	names := maps.Clone(x)
	maps.Copy(names, y)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !slices.Contains(but, name) && !bytes.Equal(x[name], y[name]) {
			got, want := aroundDifference(x[name], y[name])
			inA, inB = inA+", "+name+" "+got, inB+", "+name+" "+want
		}
	}
	return strings.TrimPrefix(inA, ", "), strings.TrimPrefix(inB, ", ")
}

// aroundDifference quotes two texts where they begin to differ.
func aroundDifference(a, b []byte) (string, string) {
	at := 0
	for at < len(a) && at < len(b) && a[at] == b[at] {
		at++
	}
	quote := func(t []byte) string {
		if len(t) == 0 {
			return "(missing)"
		}
		from := max(0, at-20)
		return fmt.Sprintf("%q", t[min(from, len(t)):min(at+40, len(t))])
	}
	return quote(a), quote(b)
}

// canonical says whether JSON has the form that manifest.encode gives it.
func canonical(raw []byte) bool {
	var compact, indented bytes.Buffer
	if json.Compact(&compact, raw) != nil || json.Indent(&indented, compact.Bytes(), "", "  ") != nil {
		return false
	}
	return bytes.Equal(append(indented.Bytes(), '\n'), raw)
}

// besideImage compares the manifest with the file that kimage build writes beside an
// image, if it is there: the only record outside of it.
func (v *verifier) besideImage() error {
	const thing = "manifest beside the image"
	file := strings.TrimSuffix(v.File, filepath.Ext(v.File)) + ".json"
	beside, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		v.notJudged(thing, "there is no "+filepath.Base(file)+", which kimage build writes there: all records are in the image itself")
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := decodeManifest(beside); err != nil || v.raw == nil {
		v.notJudged(thing, filepath.Base(file)+" is no manifest of an image, or the image's own cannot be read")
		return nil
	}
	got, want := differentFields(v.raw, beside)
	if got == "" && !bytes.Equal(v.raw, beside) {
		got = "its spaces and lines are others"
	}
	if got == "" {
		v.ok(thing, filepath.Base(file)+" with the image's own")
	} else {
		v.differs(thing, filepath.Base(file)+" with the image's own", got, want)
	}
	return nil
}

// billOfMaterials compares the SBOM with what the manifest lists; to the byte, if this
// kimage would have written it.
func (v *verifier) billOfMaterials(ctx context.Context, m *manifest, same bool) error {
	const thing, with = "bill of materials", "name, version and SHA-256 of everything in the manifest"
	raw, err := small(ctx, v.kimage, sbomFile)
	if err != nil {
		return v.failed(thing, with, err)
	}
	want, err := m.sbom()
	if err != nil {
		return err
	}
	listed, err := materials(raw)
	if err != nil {
		return v.failed(thing, with, err)
	}
	expected, err := materials(want)
	if err != nil {
		return err
	}
	less, more := without(expected, listed), without(listed, expected)
	switch {
	case len(less)+len(more) > 0:
		v.differs(thing, with, some(more), some(less))
	case same && !bytes.Equal(raw, want):
		got, want := aroundDifference(raw, want)
		v.differs(thing, with, got, want)
	default:
		v.ok(thing, with)
	}
	return nil
}

// materials are what an SPDX document lists, as text.
func materials(spdx []byte) (list []string, err error) {
	var d struct {
		Name     string `json:"name"`
		Packages []struct {
			Name      string `json:"name"`
			Version   string `json:"versionInfo"`
			Checksums []struct {
				Value string `json:"checksumValue"`
			} `json:"checksums"`
		} `json:"packages"`
	}
	if err := json.Unmarshal(spdx, &d); err != nil {
		return nil, err
	}
	list = append(list, "document "+d.Name)
	for _, p := range d.Packages {
		text := p.Name + " " + p.Version
		for _, c := range p.Checksums {
			text += " " + c.Value
		}
		list = append(list, text)
	}
	return list, nil
}

// without are those of a that b does not have.
func without(a, b []string) (out []string) {
	have := map[string]bool{}
	for _, x := range b {
		have[x] = true
	}
	for _, x := range a {
		if !have[x] {
			out = append(out, x)
		}
	}
	return out
}

// some names a few of a list.
func some(list []string) string {
	const few = 3
	switch {
	case len(list) == 0:
		return "nothing"
	case len(list) > few:
		return strings.Join(list[:few], ", ") + fmt.Sprintf(" and %d more", len(list)-few)
	}
	return strings.Join(list, ", ")
}
