package components

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/fetch"
	"github.com/kimage-project/kimage/pkg/gobuild"
	"github.com/kimage-project/kimage/pkg/progress"
)

// Where components come from.
const (
	Auto    = "auto"
	Release = "release"
	Source  = "source"
)

// Which container images go in.
const (
	AllImages    = "all"
	ControlPlane = "control-plane" // what kubeadm config images list names
	NoImages     = "none"
)

// Config says what to resolve.
type Config struct {
	Kubernetes string // version, minor version, or empty for the newest
	Network    string // flannel or none
	Arch       string
	From       string // Auto, Release, Source, or a mirror's directory or URL
	Images     string // AllImages, ControlPlane or NoImages
	Offline    bool
	Fresh      bool   // what may have changed where it comes from is asked for anew
	Mirror     string // Debian archive for the images' userland; empty: the machine's
	Cache      *cache.Cache
	Report     *progress.Reporter
}

// Set is everything that was resolved.
type Set struct {
	From       string // release, source or the mirror
	Mode       string // Release or Source
	Kubernetes string
	Programs   []Program
	Images     []Image
	Versions   map[string]string // column of the catalogue to version
}

// Program is one component of the payload.
type Program struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	Origin     string `json:"origin"`     // URL or module
	VerifiedBy string `json:"verifiedBy"` // who vouches for the content
	Signed     bool   `json:"signed"`     // a signature was checked
	Files      []File `json:"files"`
}

// File is one file of a component.
type File struct {
	Dest      string `json:"path"` // in the payload
	Host      string `json:"-"`
	Entry     string `json:"-"` // of the cache, that holds Host
	SizeBytes int64  `json:"sizeBytes"`
	SHA256    string `json:"sha256"`
}

// Image is one container image.
type Image struct {
	Ref            string `json:"ref"`
	ManifestDigest string `json:"digest"`
	SizeBytes      int64  `json:"sizeBytes"`
	Origin         string `json:"origin"`
	VerifiedBy     string `json:"verifiedBy"`
	Role           string `json:"role,omitempty"` // of the only machines that run it; empty: all that run containers
	Layout         string `json:"-"`              // OCI layout directory with this one image
}

type resolver struct {
	Config
	cat  catalogue
	row  row
	src  fetch.Source
	mode string // Release or Source
	tool string // Go toolchain, in source mode
	cc   string // C compiler, in source mode
}

// Resolve fetches or builds everything that c asks for.
func Resolve(ctx context.Context, c Config) (*Set, error) {
	r, err := newResolver(ctx, c)
	if err != nil {
		return nil, err
	}
	set := &Set{From: r.mode, Mode: r.mode, Kubernetes: r.row["version"], Versions: r.row}
	if r.src.Mirror != "" {
		set.From = r.src.Mirror
	}
	for _, p := range r.cat.Programs {
		if p.Network != "" && p.Network != c.Network {
			continue
		}
		resolve := r.programFromRelease
		if r.mode == Source {
			resolve = r.programFromSource
		}
		got, err := resolve(ctx, p)
		if err != nil {
			return nil, r.remedy(fmt.Errorf("component %s: %w", p.Name, err))
		}
		set.Programs = append(set.Programs, got)
	}
	for _, im := range r.cat.Images {
		if c.Images == NoImages || im.Network != "" && (im.Network != c.Network || c.Images == ControlPlane) {
			continue
		}
		got, err := r.image(ctx, im)
		if err != nil {
			return nil, r.remedy(fmt.Errorf("container image %s: %w", r.row.expand(im.Ref, r.row["version"], c.Arch, ""), err))
		}
		set.Images = append(set.Images, got)
	}
	return set, nil
}

// remedy adds to an error of the network where else components can come from.
func (r *resolver) remedy(err error) error {
	_, network := errors.AsType[*url.Error](err)
	_, registry := errors.AsType[*transport.Error](err)
	if !network && !registry && !errors.Is(err, fetch.ErrUnavailable) && !errors.Is(err, gobuild.ErrDownload) {
		return err
	}
	switch {
	case r.src.Mirror != "":
		return fmt.Errorf("%w; is --components %s right? kimage list downloads shows what a mirror must hold", err, r.From)
	case r.mode == Source:
		return fmt.Errorf("%w; without a way to a Go module proxy (GOPROXY) use --components DIR or URL, a mirror", err)
	}
	return fmt.Errorf("%w; without a way to that server use --components source, or --components DIR or URL, a mirror", err)
}

// newResolver decides, before any work, where things come from.
func newResolver(ctx context.Context, c Config) (*resolver, error) {
	cat, err := load()
	if err != nil {
		return nil, err
	}
	versions, ok := cat.row(c.Kubernetes)
	if !ok {
		known, _ := Versions()
		return nil, fmt.Errorf("unknown Kubernetes version %q: the catalogue has %s", c.Kubernetes, strings.Join(known, ", "))
	}
	r := &resolver{Config: c, cat: cat, row: versions, mode: c.From}
	r.src = fetch.Source{Cache: c.Cache, Offline: c.Offline, Fresh: c.Fresh, Report: c.Report}
	switch c.From {
	case Release, Source:
	case Auto, "":
		r.mode = r.choose(ctx)
	default:
		if !strings.Contains(c.From, "://") {
			if fi, err := os.Stat(c.From); err != nil || !fi.IsDir() {
				return nil, fmt.Errorf("--components %s: not auto, release, source, a URL, or a directory that exists", c.From)
			}
			if r.src.Mirror, err = filepath.Abs(c.From); err != nil {
				return nil, err
			}
		} else {
			r.src.Mirror = c.From
		}
		r.mode = Release
	}
	if r.mode == Source {
		if err := doctor.Check(doctor.Source, doctor.SourceImages); err != nil {
			return nil, fmt.Errorf("building components from source: %w", err)
		}
		if r.tool, err = gobuild.Toolchain(ctx); err != nil {
			return nil, err
		}
		r.cc = compiler(ctx)
	}
	return r, nil
}

// choose implements Auto. What an earlier run chose stays chosen while it is in
// the cache, so that --offline and a flapping network give the same image.
func (r *resolver) choose(ctx context.Context) string {
	const probe = "https://dl.k8s.io/release/stable.txt"
	if !r.Offline && fetch.Reachable(ctx, probe) {
		r.Report.Logf("components: upstream's releases")
		return Release
	}
	p := r.cat.Programs[0]
	url := r.row.expand(p.Release[0].URL, r.row["version"], r.Arch, "")
	if _, ok := r.Cache.Lookup("small", cache.Key("", r.row.expand(p.Release[0].Checksum, "", r.Arch, url))); ok && r.Offline {
		return Release
	}
	r.Report.Logf("components: dl.k8s.io cannot be reached, so they are built from source (about 15 minutes the first time on two cores, seconds afterwards)")
	return Source
}

func (r *resolver) version(p program) string { return r.row[p.Column] }

func (r *resolver) programFromRelease(ctx context.Context, p program) (Program, error) {
	v := r.version(p)
	out := Program{Name: p.Name, Version: v, VerifiedBy: "SHA-256 published beside the download"}
	for _, rel := range p.Release {
		url := r.row.expand(rel.URL, v, r.Arch, "")
		if out.Origin == "" {
			out.Origin = url
		}
		sums, err := r.src.FetchSmall(ctx, r.row.expand(rel.Checksum, v, r.Arch, url))
		if err != nil {
			return out, err
		}
		sum, err := fetch.Checksum(sums, filepath.Base(url), sha256.Size*2)
		if err != nil {
			return out, err
		}
		local, err := r.src.Get(ctx, fetch.Request{URL: url, SHA256: sum})
		if err != nil {
			return out, err
		}
		files := map[string]string{}
		for member, dest := range rel.Files {
			files[r.row.expand(member, v, r.Arch, "")] = dest
		}
		got, err := r.unpack(ctx, local, sum, files)
		if err != nil {
			return out, err
		}
		out.Files = append(out.Files, got...)
	}
	sortFiles(out.Files)
	return out, nil
}

func (r *resolver) programFromSource(ctx context.Context, p program) (Program, error) {
	v := r.version(p)
	out := Program{Name: p.Name, Version: v, VerifiedBy: "Go checksum database", Origin: p.Source.Module + "@" + v}
	if p.Source.Version != "" {
		out.Version = r.row.expand(p.Source.Version, v, r.Arch, "")
		out.Origin = p.Source.Module + "@" + out.Version
	}
	for _, s := range append([]source{p.Source}, p.MoreSources...) {
		files, err := r.build(ctx, s, v)
		if err != nil {
			return out, err
		}
		out.Files = append(out.Files, files...)
	}
	sortFiles(out.Files)
	return out, nil
}

// build builds the packages of one source, each into a cache entry of its own.
func (r *resolver) build(ctx context.Context, s source, version string) ([]File, error) {
	if s.Version != "" {
		version = r.row.expand(s.Version, version, r.Arch, "")
	}
	var out []File
	for _, pkg := range slices.Sorted(maps.Keys(s.Packages)) {
		b := gobuild.Build{Module: s.Module, Version: etcdModule(version), Package: pkg, Replace: s.Replace, Tags: s.Tags, CGO: s.CGO, Static: s.Static, Arch: r.Arch,
			LDFlags: r.row.expand(s.LDFlags, version, r.Arch, ""), StagingVersion: r.row.expand(s.Staging, version, r.Arch, "")}
		name := filepath.Base(s.Packages[pkg])
		cc := ""
		if s.CGO {
			cc = r.cc
		}
		key := cache.Key("program-1", r.tool, fmt.Sprintf("%+v", b), cc)
		entry, _, err := r.Cache.Dir(ctx, "program", key, func(ctx context.Context, dir string) error {
			if r.Offline {
				return fmt.Errorf("%s %s: %w", name, version, fetch.ErrOffline)
			}
			work, err := r.Cache.Scratch()
			if err != nil {
				return err
			}
			defer work.Remove()
			r.Report.Logf("building %s %s", name, version)
			defer r.Report.Step("building " + name)()
			return b.Run(ctx, work.Path, filepath.Join(dir, name), s.Unused)
		})
		if err != nil {
			return nil, err
		}
		f, err := r.file(entry, name, s.Packages[pkg])
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// file describes a file of a cache entry by what was recorded of it.
func (r *resolver) file(entry, name, dest string) (File, error) {
	digest, err := r.Cache.Digest(entry, name)
	if err != nil {
		return File{}, err
	}
	host := filepath.Join(entry, name)
	fi, err := os.Stat(host)
	if err != nil {
		return File{}, err
	}
	return File{Dest: dest, Host: host, Entry: entry, SizeBytes: fi.Size(), SHA256: strings.TrimPrefix(digest, "sha256:")}, nil
}

// Damaged says that a file of the cache is not what was stored.
type Damaged struct{ File File }

func (d *Damaged) Error() string {
	return filepath.Base(d.File.Host) + " has changed since it was stored"
}

// Open reads the file and compares it with its digest on the way: what goes
// into an image is verified when it goes in, not only when it was stored. Instead
// of the end of a file that has changed comes the error *Damaged.
func (f File) Open() (io.ReadCloser, error) {
	in, err := os.Open(f.Host)
	if err != nil {
		return nil, err
	}
	return cache.Verifying(in, f.SHA256, func() error { return &Damaged{f} }), nil
}

func sortFiles(files []File) {
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Dest, b.Dest) })
}
