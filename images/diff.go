package images

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/ddi"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/progress"
	"github.com/kimage-project/kimage/pkg/squashfs"
)

// Difference is what kimage diff shows: what two images have that is not the same.
type Difference struct {
	APIVersion  string                   `json:"apiVersion"`
	A           DiffSide                 `json:"a"`
	B           DiffSide                 `json:"b"`
	Same        bool                     `json:"same"`
	Options     []Change[string]         `json:"options"` // what the image is of
	Base        []Change[string]         `json:"base"`
	Packages    []Change[string]         `json:"packages"` // of the base: versions
	Components  []Change[ComponentState] `json:"components"`
	Images      []Change[ImageState]     `json:"images"` // container images, without their tags
	Files       []Change[FileState]      `json:"files"`  // of the payload
	Partitions  []Change[PartitionState] `json:"partitions"`
	NotCompared []string                 `json:"notCompared"` // what one of the images does not tell
}

// DiffSide is one of the two.
type DiffSide struct {
	File    string `json:"file"`
	Name    string `json:"name"`
	ImageID string `json:"imageID"`
}

// Change is a thing that is not the same in A and in B; null: it is not there.
type Change[T any] struct {
	Name string `json:"name"`
	A    *T     `json:"a"`
	B    *T     `json:"b"`
}

// ComponentState is a component.
type ComponentState struct {
	Version    string `json:"version"`
	Origin     string `json:"origin"`
	VerifiedBy string `json:"verifiedBy"`
}

// ImageState is a container image.
type ImageState struct {
	Tag    string `json:"tag"`
	Digest string `json:"digest"`
}

// FileState is a file or link in the payload.
type FileState struct {
	Mode      string `json:"mode"`
	SizeBytes int64  `json:"sizeBytes"`
	SHA256    string `json:"sha256,omitempty"` // of a regular file
	Target    string `json:"target,omitempty"` // of a link
}

// PartitionState is a partition.
type PartitionState struct {
	Number      int    `json:"number"`
	Type        string `json:"type"`
	OffsetBytes int64  `json:"offsetBytes"`
	SizeBytes   int64  `json:"sizeBytes"`
	Filesystem  string `json:"filesystem,omitempty"`
}

// Diff compares two images, whatever formats their files are of: what their manifests
// and partition tables say, and the files of their payloads, unless these have the same
// digest. Whether an image is what it says is Verify's business.
func Diff(ctx context.Context, a, b string, report *progress.Reporter) (*Difference, error) {
	if err := doctor.Check(doctor.Read); err != nil {
		return nil, err
	}
	var sides [2]side
	for i, file := range []string{a, b} {
		d, err := openImage(file)
		if err != nil {
			return nil, err
		}
		defer d.close()
		sides[i] = side{image: d, report: report}
		if err := sides[i].read(ctx); err != nil {
			return nil, err
		}
	}
	x, y := &sides[0], &sides[1]
	d := &Difference{APIVersion: APIVersion, A: x.name(), B: y.name(), NotCompared: []string{},
		Options: changes(x.options(), y.options()), Base: changes(x.base(), y.base()), Components: changes(x.components(), y.components()),
		Images: changes(x.images(), y.images()), Partitions: changes(x.partitions(), y.partitions()), Files: []Change[FileState]{}, Packages: []Change[string]{}}
	if x.m.Payload == nil || y.m.Payload == nil || *x.m.Payload != *y.m.Payload {
		var files [2]map[string]FileState
		for i := range sides {
			var err error
			if files[i], err = sides[i].files(ctx); err != nil {
				return nil, fmt.Errorf("%s: reading the payload (kimage verify says what is wrong with an image): %w", sides[i].image.file, err)
			}
		}
		d.Files = changes(files[0], files[1])
	}
	var packages [2]map[string]string
	var none []string
	for i := range sides {
		var err error
		if packages[i], err = sides[i].packages(ctx); err != nil {
			return nil, fmt.Errorf("%s: reading the packages of the base: %w", sides[i].image.file, err)
		}
		if packages[i] == nil {
			none = append(none, sides[i].image.file)
		}
	}
	if len(none) == 0 {
		d.Packages = changes(packages[0], packages[1])
	} else {
		d.NotCompared = append(d.NotCompared, "packages of the base: no list of them that kimage can read is in "+strings.Join(none, " and "))
	}
	d.Same = len(d.Options)+len(d.Base)+len(d.Packages)+len(d.Components)+len(d.Images)+len(d.Files)+len(d.Partitions) == 0
	return d, nil
}

// changes are the things that are not the same, by name.
func changes[T comparable](a, b map[string]T) []Change[T] {
	out := []Change[T]{}
	names := maps.Clone(a)
	maps.Copy(names, b)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		c := Change[T]{Name: name}
		x, inA := a[name]
		y, inB := b[name]
		if inA && inB && x == y {
			continue
		}
		if inA {
			c.A = &x
		}
		if inB {
			c.B = &y
		}
		out = append(out, c)
	}
	return out
}

// side is one of the images that are compared.
type side struct {
	image  *diskImage
	report *progress.Reporter
	in     *Inspection
	m      *manifest
}

func (s *side) read(ctx context.Context) (err error) {
	if _, err := s.image.kimage(); err != nil {
		return err
	}
	if s.in, err = s.image.inspect(ctx); err == nil {
		s.m = s.in.Manifest
	}
	return err
}

func (s *side) name() DiffSide {
	return DiffSide{File: s.image.file, Name: s.m.Name, ImageID: s.m.ImageID}
}

func (s *side) options() map[string]string {
	store := "none"
	if s.m.ImageStore != nil {
		store = s.m.ImageStore.Format
	}
	verity := map[bool]string{true: "dm-verity", false: "its SHA-256"}[s.m.Payload != nil && s.m.Payload.RootHash != ""]
	return map[string]string{"name": s.m.Name, "imageID": s.m.ImageID, "os": s.m.OS, "for": s.m.For, "kubernetes": s.m.Kubernetes, "runtime": s.m.Runtime, "network": s.m.Network,
		"arch": s.m.Arch, "catalogue of": s.m.NotBefore.Format("2006-01-02"), "image store": store, "payload verified by": verity}
}

func (s *side) base() map[string]string {
	b := s.m.Base
	return map[string]string{"origin": b.Origin, "version": b.Version, "verified by": b.VerifiedBy, "digest": b.Digest, "size": progress.FormatBytes(b.SizeBytes)}
}

func (s *side) components() map[string]ComponentState {
	out := map[string]ComponentState{}
	for _, c := range s.m.Components {
		out[c.Name] = ComponentState{c.Version, c.Origin, c.VerifiedBy}
	}
	return out
}

func (s *side) images() map[string]ImageState {
	out := map[string]ImageState{}
	for _, im := range s.m.Images {
		name, tag := im.Ref, ""
		if i := strings.LastIndex(im.Ref, ":"); i > strings.LastIndex(im.Ref, "/") { // not a registry's port
			name, tag = im.Ref[:i], im.Ref[i+1:]
		}
		if _, twice := out[name]; twice {
			name, tag = im.Ref, ""
		}
		out[name] = ImageState{tag, im.ManifestDigest}
	}
	return out
}

func (s *side) partitions() map[string]PartitionState {
	out := map[string]PartitionState{}
	for _, p := range s.in.Partitions {
		name := p.Name
		if _, twice := out[name]; twice || name == "" {
			name = fmt.Sprintf("%s %d", p.Name, p.Number)
		}
		out[strings.TrimSpace(name)] = PartitionState{p.Number, p.Type, p.OffsetBytes, p.SizeBytes, p.Filesystem}
	}
	return out
}

// packages are the versions of the base's packages: by the manifest, if kimage made the
// base, or else by the root's own list. nil: nothing tells.
func (s *side) packages(ctx context.Context) (map[string]string, error) {
	list := s.m.Base.Packages
	for _, p := range s.image.rootPartitions() {
		if len(list) > 0 {
			break
		}
		volume, err := s.image.volume(ctx, p, nil)
		if err != nil {
			return nil, err
		}
		if status, err := small(ctx, volume, dpkgStatus); err == nil {
			list = dpkgPackages(status)
		} else if cannotTell(err) {
			return nil, err
		}
	}
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, p := range list {
		name, version, _ := strings.Cut(p, " ")
		if old, twice := out[name]; twice { // of several architectures
			version = old + ", " + version
		}
		out[name] = version
	}
	return out, nil
}

// files are those of the payload, by path.
func (s *side) files(ctx context.Context) (map[string]FileState, error) {
	p, err := s.image.kimage()
	if err != nil {
		return nil, err
	}
	volume, err := s.image.volume(ctx, p, nil)
	if err != nil {
		return nil, err
	}
	f, err := openPayload(ctx, volume)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, size := io.ReaderAt(f), f.SizeBytes
	if s.m.Payload != nil && s.m.Payload.RootHash != "" {
		im, err := ddi.Open(f, f.SizeBytes)
		if err != nil {
			return nil, err
		}
		data, size = im.Data, im.Data.Size()
	}
	t, err := squashfs.Read(data, size)
	if err != nil {
		return nil, err
	}
	bar := s.report.Bar("reading the payload of "+s.m.Name, t.SizeBytes())
	defer bar.Done()
	out := map[string]FileState{}
	for _, e := range t.Entries() {
		state := FileState{Mode: e.Mode.String(), Target: e.Target}
		if e.Mode.IsDir() {
			continue
		}
		if e.Mode&fs.ModeSymlink == 0 {
			got, err := readProgram(t, e.Path, func(r io.Reader) io.Reader { return bar.Reader(stoppable{ctx, r}) })
			if err != nil {
				return nil, fmt.Errorf("/%s: %w", e.Path, err)
			}
			state.SizeBytes, state.SHA256 = got.SizeBytes, got.SHA256
		}
		out[e.Path] = state
	}
	return out, nil
}
