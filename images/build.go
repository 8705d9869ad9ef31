// Package images bakes node images: a base, a payload of components, a disk
// that holds both, in the formats that are asked for.
//
//	cfg -> New (names are checked) -> Build (stages) -> Result
//
// What was baked is read again by Inspect, Verify and Diff.
//
// What differs between operating systems and between Kubernetes versions is
// data, under os/ and components/. The package runs no VM and needs no root,
// loop device or user namespace (but for a base from packages).
package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/images/vendors"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/nearest"
	"github.com/kimage-project/kimage/pkg/progress"
	"github.com/kimage-project/kimage/pkg/sparse"
)

// Version is that of kimage itself.
const Version = "0.1.0"

// diskVersion changes when the same inputs give another disk.
const diskVersion = 8

// unixTime is when everything in an image says it was made: an image's age is
// that of its inputs, and the same inputs give the same bytes.
const unixTime = 1700000000

// Stages is how many numbered stages Build reports.
const Stages = 5

// What can be asked for.
var (
	Runtimes = []string{"containerd"}
	Networks = []string{"flannel", "none"}
)

// Config says what to bake. Empty fields take the default that is named.
type Config struct {
	OS         string
	Kubernetes string   // newest of the catalogue
	Runtime    string   // containerd
	Network    string   // flannel
	Arch       string   // amd64
	Formats    []string // the platform's own, raw for metal
	For        string   // platform that it is to run on; metal
	Base       string   // auto, vendor, packages, a file, a URL or a mirror's directory; auto
	Mirror     string   // directory or URL where the vendor's hosts are; empty: the hosts themselves
	Lock       string   // file that pins what goes in; empty: nothing is pinned
	LockMode   string   // LockEnforce, LockFixed or LockUpdate
	Components string   // auto, release, source, a directory or a URL; auto
	Images     string   // all, control-plane or none; all
	Name       string   // OS-KUBERNETES-ARCH
	Output     string   // directory; out
	AptMirror  string   // Debian archive; the machine's
	Agent      string   // file with kimage-agent for Arch; Build needs it
	Offline    bool
	Checksums  bool // compute the artifacts' SHA-256, which takes longer than all else: of a raw disk the holes count too
	Cache      *cache.Cache
	Report     *progress.Reporter
}

// Artifact is a file that was written.
type Artifact struct {
	Format    string `json:"format"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"sizeBytes"`
	SHA256    string `json:"sha256"` // empty without Config.Checksums
}

// Result is what kimage build --json prints.
type Result struct {
	APIVersion string        `json:"apiVersion"`
	Name       string        `json:"name"`
	ImageID    string        `json:"imageID"`
	OS         string        `json:"os"`
	Kubernetes string        `json:"kubernetes"`
	Runtime    string        `json:"runtime"`
	Network    string        `json:"network"`
	Arch       string        `json:"arch"`
	Artifacts  []Artifact    `json:"artifacts"`
	Manifest   string        `json:"manifest"` // path
	Took       time.Duration `json:"-"`

	manifest manifest
}

// Builder bakes one image.
type Builder struct {
	config Config
	os     OS
	name   string
	agent  string
	cache  *cache.Cache
	report *progress.Reporter
	lock   *lock

	payload string // file of the payload, once it is written
}

var nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$`)

// New checks c and fills in its defaults. Everything that is wrong is told at once.
func New(c Config) (*Builder, error) {
	if c.OS == "" {
		return nil, errors.New("which operating system? name one with --os (kimage list os)")
	}
	var wrong []error
	o, err := FindOS(c.OS)
	if err != nil {
		wrong = append(wrong, err)
	}
	versions, err := components.Versions()
	if err != nil {
		return nil, err
	}
	if c.Kubernetes == "" {
		c.Kubernetes = versions[0]
	}
	if v, ok := matchVersion(c.Kubernetes, versions); ok {
		c.Kubernetes = v
	} else {
		wrong = append(wrong, nearest.Unknown("Kubernetes version", c.Kubernetes, versions))
	}
	choose := func(what string, value *string, known []string) {
		if *value == "" {
			*value = known[0]
		}
		if !slices.Contains(known, *value) {
			wrong = append(wrong, nearest.Unknown(what, *value, known))
		}
	}
	choose("runtime", &c.Runtime, Runtimes)
	choose("network", &c.Network, Networks)
	choose("set of images", &c.Images, []string{components.AllImages, components.ControlPlane, components.NoImages})
	if len(o.Arches) > 0 {
		choose("architecture of "+o.Title, &c.Arch, o.Arches)
	}
	platforms := vendors.Platforms
	if o.Vendor.Known() {
		platforms = o.Vendor.For()
	}
	platform := c.For
	if platform == "" && !o.Vendor.OneForAll() {
		if c.For, err = platformOf(c.Formats); err != nil {
			wrong = append(wrong, err)
		}
	}
	choose("platform that "+o.Title+" is for", &c.For, platforms)
	if len(c.Formats) == 0 {
		c.Formats = []string{formatFor(c.For)}
	}
	for i := range c.Formats {
		choose("format", &c.Formats[i], Formats)
	}
	if c.Output == "" {
		c.Output = "out"
	}
	given := c.Name != ""
	if !given {
		c.Name = o.Name + "-" + c.Kubernetes + "-" + c.Arch
		if platform != "" {
			c.Name += "-" + platform
		}
	}
	if (o.Name != "" || given) && !nameRule.MatchString(c.Name) {
		wrong = append(wrong, fmt.Errorf("--name %q: use lower-case letters, digits, dots and dashes, at most 64", c.Name))
	}
	if c.Agent != "" {
		if fi, err := os.Stat(c.Agent); err != nil {
			wrong = append(wrong, fmt.Errorf("--agent: %w", err))
		} else if !fi.Mode().IsRegular() || fi.Size() == 0 {
			wrong = append(wrong, fmt.Errorf("--agent %s is not a program", c.Agent))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	l, err := openLock(c.Lock, c.LockMode)
	if err != nil {
		return nil, err
	}
	return &Builder{config: c, os: o, name: c.Name, agent: c.Agent, cache: c.Cache, report: c.Report, lock: l}, nil
}

// matchVersion finds v among the known versions: exact, without its v, or the
// newest of a minor version.
func matchVersion(v string, known []string) (string, bool) {
	want := "v" + strings.TrimPrefix(v, "v")
	for _, k := range known {
		if k == want || strings.Count(want, ".") == 1 && strings.HasPrefix(k, want+".") {
			return k, true
		}
	}
	return "", false
}

// Build bakes the image. After an error nothing new lies under a final name.
func (b *Builder) Build(ctx context.Context) (*Result, error) {
	started := time.Now()
	if b.agent == "" {
		return nil, errors.New("this kimage was built without kimage-agent: build it with make, or name the agent's file with --agent")
	}
	if err := doctor.Check(doctor.Bake); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.config.Output, 0o755); err != nil {
		return nil, fmt.Errorf("output directory: %w", err)
	}
	atomicfile.Sweep(b.config.Output)
	// The raw image is made beside its final name even if only another format
	// is wanted: same file system, same room.
	raw, err := atomicfile.Create(filepath.Join(b.config.Output, b.name+".raw"), 0o644)
	if err != nil {
		return nil, fmt.Errorf("the output directory cannot be written to (choose another with -o): %w", err)
	}
	defer raw.Abort()
	scratch, err := b.cache.Scratch()
	if err != nil {
		return nil, err
	}
	defer scratch.Remove()

	found, set, err := b.inputs(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.pinTools(ctx); err != nil {
		return nil, err
	}
	if b.lock.changed {
		b.report.Logf("%s pins what went in", b.config.Lock)
	}
	table, rootPart, err := b.findRoot(ctx, found.disk())
	if err != nil {
		return nil, err
	}
	agentSum, agentBytes, err := fileSHA256(ctx, b.agent)
	if err != nil {
		return nil, fmt.Errorf("--agent: %w", err)
	}
	m, err := b.newManifest(found.info, set, agentSum, agentBytes)
	if err != nil {
		return nil, err
	}

	b.report.Stage("payload: %s of programs, verified by dm-verity", progress.FormatBytes(programBytes(m)))
	images, err := b.containerImages(ctx, set)
	if err != nil {
		return nil, diskFull(err)
	}
	d := &disk{builder: b, base: found, table: table, root: rootPart, out: raw.File, scratch: scratch.Path}
	if err := d.layOut(images, programBytes(m)); err != nil {
		return nil, err
	}
	var p payload
	group, gctx := errgroup.WithContext(ctx)
	// Copying waits for the disk, packing for the processor.
	group.Go(func() error { return d.copyBase(gctx) })
	group.Go(func() error { return d.startKIMAGE(gctx) })
	group.Go(func() error {
		t, err := b.payloadTree(set, m)
		if err != nil {
			return err
		}
		verity, err := d.lookIntoUSR(gctx, t)
		if err != nil {
			return err
		}
		if !verity {
			b.report.Logf("the base has no libcryptsetup: the payload is a plain squashfs, compared with its digest at every boot")
		}
		p, err = b.writePayload(gctx, set, t, scratch.Path, verity)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, diskFull(err)
	}
	b.report.Stage("disk: activation files, partition KIMAGE")
	if m, err = d.assemble(ctx, p, m); err != nil {
		return nil, diskFull(err)
	}
	b.payload = p.file
	b.report.Stage("artifacts: %s", strings.Join(b.config.Formats, ", "))
	r, err := b.artifacts(ctx, raw, m)
	if err != nil {
		return nil, diskFull(err)
	}
	r.Took = time.Since(started)
	return r, nil
}

// inputs finds all that goes into an image but the agent, and pins it.
func (b *Builder) inputs(ctx context.Context) (base, *components.Set, error) {
	b.report.Stage("base: %s", b.os.Title)
	if b.os.Successor != "" && b.config.OS != b.os.Name {
		b.report.Logf("%s is %s now: %s", b.config.OS, b.os.Name, b.os.Successor)
	}
	found, err := b.findBase(ctx)
	if err != nil {
		return base{}, nil, err
	}
	b.report.Stage("components: Kubernetes %s, %s, %s", b.config.Kubernetes, b.config.Runtime, b.config.Network)
	if err := b.lock.lacks(b.lock.Components[b.componentsKey()] != nil, "Kubernetes "+b.componentsKey()); err != nil {
		return base{}, nil, err
	}
	set, err := components.Resolve(ctx, b.componentsConfig())
	if err != nil {
		return base{}, nil, err
	}
	if err := b.lock.do(pinComponents(b.componentsKey(), set)); err != nil {
		return base{}, nil, err
	}
	b.lock.vouched(b.componentsKey(), set.Images)
	if err := b.lock.save(); err != nil {
		return base{}, nil, err
	}
	return found, set, nil
}

// pinTools pins what makes bytes of the inputs: kimage, which packs, and e2fsprogs, which
// decide where a file system has its files. They are those of the computer that bakes: a
// lock that another one wrote says nothing of them yet.
func (b *Builder) pinTools(ctx context.Context) error {
	e2fsprogs, err := ext4.Version(ctx)
	if err != nil {
		return err
	}
	tools := map[string]string{"kimage": Version, "e2fsprogs": e2fsprogs}
	if others := b.lock.otherTools(tools); len(others) > 0 {
		b.report.Logf("%s: the image may have other bytes than where %s was written", strings.Join(others, ", "), b.lock.file)
	}
	if b.lock.mode == LockFixed {
		return nil
	}
	if err := b.lock.do(pinTools(tools)); err != nil {
		return err
	}
	return b.lock.save()
}

func (b *Builder) componentsKey() string { return lockKey(b.config.Kubernetes, b.config.Arch) }

func (b *Builder) componentsConfig() components.Config {
	from := b.config.Components
	if from == "" || from == components.Auto {
		from = cmp.Or(b.lock.from(b.componentsKey()), components.Auto)
	}
	return components.Config{Kubernetes: b.config.Kubernetes, Network: b.config.Network, Arch: b.config.Arch, From: from,
		Images: b.config.Images, Offline: b.config.Offline, Fresh: b.config.LockMode == LockUpdate, Mirror: b.config.AptMirror, Cache: b.cache, Report: b.report}
}

// artifacts gives the formats their final names, the manifest last.
func (b *Builder) artifacts(ctx context.Context, raw *atomicfile.File, m manifest) (*Result, error) {
	r := &Result{APIVersion: APIVersion, Name: b.name, ImageID: m.ImageID, OS: b.os.Name, Kubernetes: m.Kubernetes, Runtime: m.Runtime, Network: m.Network, Arch: m.Arch, manifest: m}
	var pending []*atomicfile.File
	defer func() {
		for _, f := range pending {
			f.Abort()
		}
	}()
	formats := slices.Compact(slices.Sorted(slices.Values(b.config.Formats)))
	for _, format := range formats {
		f := raw
		if format != formatRaw {
			var err error
			if f, err = b.convert(ctx, raw.File, format); err != nil {
				return nil, err
			}
			pending = append(pending, f)
		}
		fi, err := f.Stat()
		if err != nil {
			return nil, err
		}
		a := Artifact{Format: format, Path: filepath.Join(b.config.Output, b.name+extension(format)), SizeBytes: fi.Size()}
		// The disk is written back while the processor hashes.
		var group errgroup.Group
		group.Go(f.Sync)
		if b.config.Checksums {
			bar := b.report.Bar("checksum of "+format, fi.Size())
			a.SHA256, _, err = sparse.SHA256(ctx, f.File, bar.Add)
			bar.Done()
		}
		if err := errors.Join(err, group.Wait()); err != nil {
			return nil, err
		}
		r.Artifacts = append(r.Artifacts, a)
	}
	for i, format := range formats {
		f := raw
		if format != formatRaw {
			f, pending = pending[0], pending[1:]
		}
		if err := f.Rename(); err != nil {
			return nil, fmt.Errorf("naming %s: %w", r.Artifacts[i].Path, err)
		}
	}
	r.Manifest = filepath.Join(b.config.Output, b.name+".json")
	data, err := m.encode()
	if err != nil {
		return nil, err
	}
	return r, atomicfile.Write(r.Manifest, data, 0o644)
}

func programBytes(m manifest) (n int64) {
	for _, c := range m.Components {
		for _, f := range c.Files {
			n += f.SizeBytes
		}
	}
	return n
}

func fileSHA256(ctx context.Context, name string) (string, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	return sparse.SHA256(ctx, f, nil)
}
