package images

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/images/vendors"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/fetch"
)

// LockFile is what a lock is called.
const LockFile = "kimage.lock"

// Lock pins what images are made from. It is written by the first bake and
// enforced by every later one, until kimage lock --update writes another.
type Lock struct {
	APIVersion string                   `yaml:"apiVersion"`
	Kind       string                   `yaml:"kind"`
	Vendors    map[string]vendors.Image `yaml:"vendors,omitempty"`    // OS/arch/platform, or one of the live system's files
	Bases      map[string]string        `yaml:"bases,omitempty"`      // OS/arch/packages, a file's name or a URL: digest of the disk
	Components map[string]*lockedSet    `yaml:"components,omitempty"` // Kubernetes version/arch
	Tools      map[string]string        `yaml:"tools,omitempty"`      // versions of what makes the bytes of the same inputs
}

type lockedSet struct {
	From     string                   `yaml:"from"` // release or source
	Programs map[string]lockedProgram `yaml:"programs,omitempty"`
	Images   map[string]lockedImage   `yaml:"images,omitempty"` // by reference
}

type lockedProgram struct {
	Version string            `yaml:"version"`
	Origin  string            `yaml:"origin"`
	Files   map[string]string `yaml:"files"` // path in the payload: SHA-256
}

// lockedImage is a container image. Who vouched for it when it was pinned does so wherever
// the same bytes come from later.
type lockedImage struct {
	Digest     string `yaml:"digest"` // of the manifest
	VerifiedBy string `yaml:"verifiedBy"`
}

// How a bake treats its lock.
const (
	LockEnforce = ""       // what the lock has must be so, what it lacks is added
	LockFixed   = "locked" // it must have everything
	LockUpdate  = "update" // what it has of this image is replaced
)

// ErrLock says that what is pinned is not so, or that not everything is.
var ErrLock = errors.New("the lock does not fit")

// LockStages is how many numbered stages Builder.Lock reports.
const LockStages = 2

// MirrorStages is how many Builder.Mirror reports.
const MirrorStages = 3

// Lock finds everything that an image is made from and pins it.
func (b *Builder) Lock(ctx context.Context) (changed bool, err error) {
	if err := b.lock.do(forgetTools); err != nil {
		return false, err
	}
	if _, _, err = b.inputs(ctx); err == nil && b.livePinned() {
		_, err = b.Live(ctx)
	}
	return b.lock.changed, err
}

// Mirror writes what the image is made from below dir, as --base DIR and --components DIR
// read it, with the lock that pins it.
func (b *Builder) Mirror(ctx context.Context, dir string) error {
	if b.lock.file == "" {
		return errors.New("BUG: a mirror without a lock")
	}
	found, set, err := b.inputs(ctx)
	switch {
	case err != nil:
		return err
	case found.file == "":
		return errors.New("the base is no vendor's image, which a mirror could have: --base vendor, or bring the file and name it by --base FILE")
	case set.Mode == components.Source:
		return errors.New("what is built from source is no file that a mirror could have: --components release, or a mirror's DIR or URL")
	}
	b.report.Stage("mirror: %s", dir)
	at, err := fetch.MirrorPath(dir, found.info.Origin)
	if err != nil {
		return err
	}
	if err := atomicfile.CopyFile(at, found.file); err != nil {
		return err
	}
	if err := b.mirrorLive(ctx, dir); err != nil {
		return err
	}
	if err := components.Mirror(ctx, b.componentsConfig(), set, dir); err != nil {
		return err
	}
	return atomicfile.CopyFile(filepath.Join(dir, LockFile), b.lock.file)
}

// step compares part of an image with a lock, adds what the lock lacks, and names that.
// With replace it puts what is now in place of what is pinned.
type step func(k *Lock, replace bool) (added []string, err error)

// lock is a Lock and where it lies.
type lock struct {
	Lock
	file    string // empty: nowhere, and nothing is pinned
	mode    string
	steps   []step // what was done to Lock
	changed bool   // the file was written
}

// openLock reads the lock in file; a file that does not exist pins nothing yet.
func openLock(file, mode string) (*lock, error) {
	l := &lock{file: file, mode: mode}
	found := false
	if file != "" {
		var err error
		if found, err = readLock(file, &l.Lock); err != nil {
			return nil, err
		}
	}
	if mode == LockFixed && !found {
		return nil, fmt.Errorf("%w: %s does not exist: kimage lock writes it", ErrLock, file)
	}
	return l, nil
}

func readLock(file string, k *Lock) (found bool, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		*k = Lock{APIVersion: APIVersion, Kind: "Lock"}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(k); err != nil {
		return false, fmt.Errorf("reading %s: %w", file, err)
	}
	if k.APIVersion != APIVersion || k.Kind != "Lock" {
		return false, fmt.Errorf("%s is %s of %s, not Lock of %s: was it written by another kimage?", file, cmp.Or(k.Kind, "nothing"), cmp.Or(k.APIVersion, "nobody"), APIVersion)
	}
	return true, nil
}

// do takes a step, and keeps it for save.
func (l *lock) do(s step) error {
	if l.file == "" {
		return nil
	}
	added, err := s(&l.Lock, l.mode == LockUpdate)
	if err != nil {
		return fmt.Errorf("%w: %s: %w (kimage lock --update takes what is now)", ErrLock, l.file, err)
	}
	if l.mode == LockFixed && len(added) > 0 {
		return l.lacks(false, strings.Join(added, ", "))
	}
	if len(added) > 0 {
		l.steps = append(l.steps, s)
	}
	return nil
}

// save writes what was added. Another kimage may have done the same meanwhile: what it has
// pinned counts.
func (l *lock) save() error {
	if len(l.steps) == 0 {
		return nil
	}
	dir, err := os.Open(filepath.Dir(l.file))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", dir.Name(), err)
	}
	var now Lock
	if _, err := readLock(l.file, &now); err != nil {
		return err
	}
	for _, s := range l.steps {
		if _, err := s(&now, l.mode == LockUpdate); err != nil {
			return fmt.Errorf("%w: %s, which was written meanwhile: %w", ErrLock, l.file, err)
		}
	}
	var text bytes.Buffer
	text.WriteString("# What images are made from: written by kimage, to be committed, and changed by kimage lock --update.\n")
	enc := yaml.NewEncoder(&text)
	enc.SetIndent(2)
	if err := enc.Encode(now); err != nil {
		return err
	}
	if err := atomicfile.Write(l.file, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("the lock cannot be written (choose another place with --lock FILE): %w", err)
	}
	l.changed = true
	return nil
}

// lacks is the error for what has to be pinned and is not; nil in other modes.
func (l *lock) lacks(pinned bool, what string) error {
	if pinned || l.mode != LockFixed {
		return nil
	}
	return fmt.Errorf("%w: %s does not pin %s: kimage lock adds it", ErrLock, l.file, what)
}

func lockKey(parts ...string) string { return strings.Join(parts, "/") }

// vendor returns the pinned image, unless another is to be pinned.
func (l *lock) vendor(key string) (vendors.Image, bool) {
	i, ok := l.Vendors[key]
	return i, ok && l.mode != LockUpdate
}

// pinVendor is for an image of a key OS/arch/platform, which takes the place of a base that
// was made from packages.
func pinVendor(key string, i vendors.Image) step {
	return func(k *Lock, replace bool) ([]string, error) {
		was, ok := k.Vendors[key]
		switch {
		case was == i:
			return nil, nil
		case ok && !replace:
			return nil, fmt.Errorf("%s is pinned as %s, and %s is another", key, was.Version, i.Version)
		}
		if k.Vendors == nil {
			k.Vendors = map[string]vendors.Image{}
		}
		k.Vendors[key] = i
		if replace {
			delete(k.Bases, lockKey(key[:strings.LastIndex(key, "/")], basePackages))
		}
		return []string{"the vendor's image " + key}, nil
	}
}

// pinBase is for a base that is not a vendor's, of a key OS/arch/where from. When it replaces
// what is pinned, it does so in place of the vendor's image of a key.
func pinBase(key, digest, vendor string) step {
	return func(k *Lock, replace bool) ([]string, error) {
		was, ok := k.Bases[key]
		switch {
		case was == digest:
			return nil, nil
		case ok && !replace && strings.HasSuffix(key, "/"+basePackages):
			return nil, fmt.Errorf("the base %s is pinned as %s, and is %s: the archive has moved on", key, was, digest)
		case ok && !replace:
			return nil, fmt.Errorf("the base %s is pinned as %s, and is %s", key, was, digest)
		}
		if k.Bases == nil {
			k.Bases = map[string]string{}
		}
		k.Bases[key] = digest
		if replace {
			delete(k.Vendors, vendor)
		}
		return []string{"the base " + key}, nil
	}
}

// pinTools is for the versions of what writes an image. Others are no error: the image has
// the same in it, if not the same bytes.
func pinTools(tools map[string]string) step {
	return func(k *Lock, replace bool) (added []string, err error) {
		if k.Tools == nil {
			k.Tools = map[string]string{}
		}
		for _, name := range slices.Sorted(maps.Keys(tools)) {
			if was, ok := k.Tools[name]; !ok || replace && was != tools[name] {
				k.Tools[name], added = tools[name], append(added, "the version of "+name)
			}
		}
		return added, nil
	}
}

// forgetTools is for a lock that is made anew: the next bake says what it was done with.
func forgetTools(k *Lock, replace bool) (added []string, err error) {
	if !replace || len(k.Tools) == 0 {
		return nil, nil
	}
	k.Tools = nil
	return []string{"tools"}, nil
}

// otherTools says which versions of tools are not those that are pinned.
func (l *lock) otherTools(tools map[string]string) (others []string) {
	for _, name := range slices.Sorted(maps.Keys(tools)) {
		if was := l.Tools[name]; was != "" && was != tools[name] {
			others = append(others, fmt.Sprintf("%s %s in place of %s", name, tools[name], was))
		}
	}
	return others
}

// from returns where the pinned components come from: "" if nothing says.
func (l *lock) from(key string) string {
	if set := l.Components[key]; set != nil && l.mode != LockUpdate {
		return set.From
	}
	return ""
}

// pinComponents is for what was resolved for a key Kubernetes version/arch.
func pinComponents(key string, set *components.Set) step {
	return func(k *Lock, replace bool) (added []string, err error) {
		have := k.Components[key]
		if have == nil || replace && have.From != set.Mode {
			have = &lockedSet{From: set.Mode}
		}
		programs, images := maps.Clone(have.Programs), maps.Clone(have.Images)
		if programs == nil {
			programs = map[string]lockedProgram{}
		}
		if images == nil {
			images = map[string]lockedImage{}
		}
		var wrong []error
		for _, p := range set.Programs {
			now := lockedProgram{Version: p.Version, Origin: p.Origin, Files: map[string]string{}}
			for _, f := range p.Files {
				now.Files[f.Dest] = f.SHA256
			}
			was, ok := programs[p.Name]
			switch {
			case ok && was.Version == now.Version && maps.Equal(was.Files, now.Files):
			case ok && !replace:
				wrong = append(wrong, was.differs(p.Name, now))
			default:
				programs[p.Name], added = now, append(added, p.Name)
			}
		}
		for _, im := range set.Images {
			was, ok := images[im.Ref]
			switch {
			case ok && was.Digest == im.ManifestDigest:
			case ok && !replace:
				wrong = append(wrong, fmt.Errorf("%s is pinned as %s, and is %s", im.Ref, was.Digest, im.ManifestDigest))
			default:
				images[im.Ref], added = lockedImage{im.ManifestDigest, im.VerifiedBy}, append(added, im.Ref)
			}
		}
		if len(wrong) > 0 {
			if set.Mode == components.Source {
				return nil, fmt.Errorf("another compiler makes other programs: %w", errors.Join(wrong...))
			}
			return nil, errors.Join(wrong...)
		}
		if k.Components == nil {
			k.Components = map[string]*lockedSet{}
		}
		k.Components[key] = &lockedSet{have.From, programs, images}
		return added, nil
	}
}

// vouched has container images say who vouched for them when they were pinned.
func (l *lock) vouched(key string, images []components.Image) {
	set := l.Components[key]
	for i := range images {
		if set != nil && set.Images[images[i].Ref].VerifiedBy != "" {
			images[i].VerifiedBy = set.Images[images[i].Ref].VerifiedBy
		}
	}
}

// differs says in what the program is another now.
func (p lockedProgram) differs(name string, now lockedProgram) error {
	if p.Version != now.Version {
		return fmt.Errorf("%s is pinned as %s, and is %s", name, p.Version, now.Version)
	}
	short := func(sum string) string { return cmp.Or(sum[:min(12, len(sum))], "missing") }
	for _, f := range slices.Sorted(maps.Keys(now.Files)) {
		if p.Files[f] != now.Files[f] {
			return fmt.Errorf("%s of %s %s is pinned as %s, and is %s", f, name, p.Version, short(p.Files[f]), short(now.Files[f]))
		}
	}
	return fmt.Errorf("of %s %s more files are pinned than there are", name, p.Version)
}
