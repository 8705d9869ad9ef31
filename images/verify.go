package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/progress"
	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/tree"
)

// VerifyStages is how many numbered stages Verify reports.
const VerifyStages = 5

// Verify reads the image in file again, and compares every digest in it with what it
// is of. Whatever differs is part of the answer; an error means that there is none:
// the file cannot be read, is no image of kimage, or a program is missing. Nothing is
// written but to a private directory.
func Verify(ctx context.Context, file string, report *progress.Reporter) (*Verification, error) {
	if err := doctor.Check(doctor.Read); err != nil {
		return nil, err
	}
	d, err := openImage(file)
	if err != nil {
		return nil, err
	}
	defer d.close()
	v := &verifier{Verification: &Verification{APIVersion: APIVersion, File: file, Format: d.format, Checks: []Check{}}, image: d, report: report}
	if v.data, err = d.kimage(); err != nil {
		return nil, err
	}
	for _, stage := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"partition table and file systems", v.fileSystems},
		{"payload", v.checkPayload},
		{"manifest and bill of materials", v.checkManifest},
		{"container images", v.checkImages},
		{"root file system", v.checkRoot},
	} {
		report.Stage("%s", stage.what)
		if err := stage.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", file, stage.what, diskFull(err))
		}
	}
	if m := v.reference(); m != nil {
		v.Name, v.ImageID = m.Name, m.ImageID
	}
	v.Verified = len(v.of(CheckDiffers)) == 0
	return v.Verification, nil
}

// verifier is a verification under way. Its stages return an error only if there can
// be no answer.
type verifier struct {
	*Verification
	image  *diskImage
	report *progress.Reporter

	data   parttable.Partition
	kimage ext4.Volume
	root   *ext4.Volume // nil: there is no ext4 root

	raw      []byte     // manifest.json; nil: it could not be read
	manifest *manifest  // of raw; nil: it is none
	copied   []byte     // the payload's own copy of it
	inner    *manifest  // of copied
	payload  payload    // what was found of it
	tree     *tree.Tree // what is in it
}

// reference is the manifest that things are compared with: the payload's own copy,
// which a hash tree protects, or else the other one.
func (v *verifier) reference() *manifest {
	if v.inner != nil {
		return v.inner
	}
	return v.manifest
}

// sameKimage says whether the image is of a kimage whose files are this one's, which
// can therefore make again what that one wrote; the OS is what it needs for that.
func (v *verifier) sameKimage() (OS, bool) {
	m := v.reference()
	if m == nil {
		return OS{}, false
	}
	o, err := FindOS(m.OS)
	if err != nil {
		return o, false
	}
	id, err := m.id(o)
	return o, err == nil && id == m.ImageID
}

// otherKimage is why something is not compared.
const otherKimage = "the image was baked by another kimage than this one, which writes it in its own way"

// cannotTell picks the errors that say nothing of an image: an unreadable file, a
// program that did not run, an interruption.
func cannotTell(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return true
	}
	e, ok := errors.AsType[*run.Error](err)
	return ok && e.Status < 0
}

// failed makes of an error what differs, unless it says nothing of the image.
func (v *verifier) failed(thing, with string, err error) error {
	if cannotTell(err) {
		return fmt.Errorf("%s: %w", thing, err)
	}
	v.differs(thing, with, strings.ReplaceAll(err.Error(), "\n", "; "), "")
	return nil
}

// fileSystems judges what everything else is read through.
func (v *verifier) fileSystems(ctx context.Context) error {
	err := v.partitionTable("partition table", v.image.disk, v.image.sizeBytes)
	if err != nil {
		return err
	}
	if v.kimage, err = v.fileSystem(ctx, "file system of KIMAGE", v.data); err != nil {
		return err
	}
	candidates := v.image.rootPartitions()
	for _, p := range candidates {
		root, err := v.open(ctx, p)
		if err != nil {
			return err
		}
		if found, err := root.Stat(ctx, []string{"usr/lib/os-release", rootImageID}); err != nil {
			return err
		} else if len(found) == 0 {
			continue
		}
		if _, err := v.fileSystem(ctx, "file system of the root", p); err != nil {
			return err
		}
		v.root = &root
		return nil
	}
	if m := v.manifestOS(ctx); m != nil && !m.Config.EditableRoot {
		v.notJudged("file system of the root", "it is no ext4, and nothing was baked into it")
		return nil
	}
	if len(candidates) == 1 { // so damaged that nothing is found in it?
		if _, err := v.fileSystem(ctx, "file system of the root", candidates[0]); err != nil {
			return err
		}
	}
	v.differs("root", "an ext4 with usr/lib/os-release or "+rootImageID, "there is none", "")
	return nil
}

func (v *verifier) partitionTable(thing string, disk io.ReaderAt, sizeBytes int64) error {
	with := "both copies, each with its checksums and with the other"
	if table, err := parttable.Read(disk, sizeBytes); err == nil && table.Scheme == parttable.MBR {
		with = "an MBR, which has no checksums: the partitions lie on the disk, side by side"
	}
	if err := parttable.Check(disk, sizeBytes); err != nil {
		return v.failed(thing, with, err)
	}
	v.ok(thing, with)
	return nil
}

// manifestOS is the OS that the manifest names; nil: it cannot be read yet, or is not known.
func (v *verifier) manifestOS(ctx context.Context) *OS {
	raw, err := small(ctx, v.kimage, manifestFile)
	if err != nil {
		return nil
	}
	m, err := decodeManifest(raw)
	if err != nil {
		return nil
	}
	o, err := FindOS(m.OS)
	if err != nil {
		return nil
	}
	return &o
}

// open copies a partition out if e2fsprogs need that, and says how far it is.
func (v *verifier) open(ctx context.Context, p parttable.Partition) (ext4.Volume, error) {
	if v.image.format != formatQcow2 {
		return v.image.volume(ctx, p, nil)
	}
	bar := v.report.Bar(fmt.Sprintf("copying partition %d", p.Number), p.SizeBytes())
	defer bar.Done()
	return v.image.volume(ctx, p, bar.Add)
}

// fileSystem judges an ext4 by e2fsck, which does not know what files should hold.
func (v *verifier) fileSystem(ctx context.Context, thing string, p parttable.Partition) (ext4.Volume, error) {
	const with = "its own checksums and counts, by e2fsck -fn"
	volume, err := v.open(ctx, p)
	if err != nil {
		return volume, err
	}
	sb, err := ext4.ReadSuperblock(v.image.disk, p.OffsetBytes())
	if err == nil && sb.NeedsRepair() {
		v.add(Check{Thing: thing, Result: CheckDiffers, With: with, Got: "it was mounted, and not unmounted", Remedy: remedyBooted})
		return volume, nil
	}
	if err == nil {
		stop := v.report.Step("checking the " + thing)
		err = volume.Check(ctx)
		stop()
	}
	if err != nil {
		return volume, v.failed(thing, with, err)
	}
	v.ok(thing, with)
	return volume, nil
}

// small reads a file of a file system whole, if it is as small as it should be. It does
// not use debugfs's own cat, which mixes its complaints into what it prints.
func small(ctx context.Context, volume ext4.Volume, p string) ([]byte, error) {
	const limit = 32 << 20
	f, err := volume.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.SizeBytes > limit {
		return nil, fmt.Errorf("/%s has more than %s", p, progress.FormatBytes(limit))
	}
	return io.ReadAll(io.NewSectionReader(f, 0, f.SizeBytes))
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context
	io.Reader
}

func (s stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Reader.Read(p)
}

// scratchDir makes an empty directory in the image's private one.
func (v *verifier) scratchDir(name string) (string, error) {
	parent, err := v.image.scratch()
	if err != nil {
		return "", err
	}
	return os.MkdirTemp(parent, name)
}
