package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/sparse"
	"github.com/kimage-project/kimage/pkg/tree"
)

const (
	typeLinux   = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	kimageName  = "KIMAGE"
	mebibyte    = 1 << 20
	kimageSlack = 1 << 30 // room on KIMAGE until it is grown
	// reservedPercent of KIMAGE can be filled only with CAP_SYS_RESOURCE, which
	// pods do not have: they cannot take the room that etcd and the kubelet need.
	reservedPercent = 5
	// reservedUID owns the reserve besides: an account that exists nowhere, so
	// that root in a container is not the owner (the default is uid 0).
	reservedUID = 64999
)

// Where things are on KIMAGE.
const (
	manifestFile    = "manifest.json"
	sbomFile        = "sbom.spdx.json"
	extensionsDir   = "extensions" // HEX.raw and HEX.roothash, by the payload's SHA-256
	currentPayload  = extensionsDir + "/current.raw"
	currentRootHash = extensionsDir + "/current.roothash"
	archivesDir     = "images" // container images, where they are not in containerd's store
)

// disk is the image under construction: a copy of the base, then its root with
// the activation files, then KIMAGE behind all other partitions.
type disk struct {
	builder *Builder
	base    base
	table   *parttable.Table
	root    parttable.Partition
	out     *os.File
	scratch string

	images images              // the container images
	data   parttable.Partition // KIMAGE
	total  int64               // bytes of the disk
}

// baseRoot is the root file system in the base, for reading.
func (d *disk) baseRoot() ext4.Volume {
	return ext4.Volume{File: d.base.disk(), OffsetBytes: d.root.OffsetBytes(), UnixTime: unixTime}
}

// copyBase copies the base and compares what was read with what was stored.
func (d *disk) copyBase(ctx context.Context) error {
	kind, want, _ := strings.Cut(d.base.info.Digest, ":")
	if kind != "sparse" { // a small base, whose digest the copy does not give
		if err := d.builder.cache.Verify(ctx, d.base.entry); err != nil {
			return err
		}
	}
	in, err := os.Open(d.base.disk())
	if err != nil {
		return err
	}
	defer in.Close()
	extents, err := sparse.Extents(in)
	if err != nil {
		return err
	}
	var total int64
	for _, e := range extents {
		total += e.Length
	}
	bar := d.builder.report.Bar("copying the base", total)
	defer bar.Done()
	digest, err := sparse.Copy(ctx, d.out, in, d.base.info.SizeBytes, extents, bar.Add)
	if err != nil {
		return fmt.Errorf("copying the base: %w", err)
	}
	if kind == "sparse" && digest != want {
		return d.builder.cache.Discard(d.base.entry, errors.New(baseDisk+" has changed since it was stored"))
	}
	// The storage would be idle until the final sync, which reports its errors.
	unix.SyncFileRange(int(d.out.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	return nil
}

// assemble writes what depends on the payload, and returns the manifest that
// names it.
func (d *disk) assemble(ctx context.Context, p payload, m manifest) (manifest, error) {
	if err := d.table.Write(d.out, d.total); err != nil {
		return m, err
	}
	group, ctx := errgroup.WithContext(ctx)
	imageID := m.ImageID
	if d.builder.os.editable() {
		group.Go(func() error {
			if err := d.activate(ctx, p, imageID); err != nil {
				return fmt.Errorf("writing activation files: %w", err)
			}
			return nil
		})
	} else {
		d.builder.report.Logf("the root is %s: activation files come with the first-boot config (kimage config)", d.builder.os.Disk.Filesystem)
	}
	group.Go(func() error {
		info, err := d.addPayload(ctx, p)
		if err != nil {
			return fmt.Errorf("filling the data partition: %w", err)
		}
		m.Payload, m.ImageStore = &info, d.images.info()
		return d.finishKIMAGE(ctx, m)
	})
	err := group.Wait()
	return m, err
}

// activate edits the copy's root file system.
func (d *disk) activate(ctx context.Context, p payload, imageID string) error {
	v := ext4.Volume{File: d.out.Name(), OffsetBytes: d.root.OffsetBytes(), UnixTime: unixTime}
	repaired, err := v.Prepare(ctx, d.scratch)
	if err != nil {
		return err
	}
	if repaired {
		d.builder.report.Logf("the base was not shut down cleanly: its file system was repaired (in the copy)")
	}
	t, err := d.builder.os.activationTree(p, imageID)
	if err != nil {
		return err
	}
	var paths []string
	for _, e := range t.Entries() {
		paths = append(paths, e.Path)
	}
	have, err := v.Stat(ctx, paths)
	if err != nil {
		return err
	}
	if err := v.Add(ctx, t, have, d.scratch); err != nil {
		return err
	}
	return v.Check(ctx)
}

// layOut puts KIMAGE behind the gap that the root may grow into, and makes the
// file as long as the disk.
func (d *disk) layOut(images images, programBytes int64) error {
	d.images = images
	// Room for the programs twice, once packed and once as the next payload.
	content := programBytes + images.roomBytes()
	size := (content + kimageSlack + 64*mebibyte - 1) / (64 * mebibyte) * (64 * mebibyte)
	// Also behind what the vendor left behind its last partition: all of the base is copied.
	end := max(int64(d.table.LastLBA()+1)*parttable.SectorBytes, d.base.info.SizeBytes)
	if d.root.LastLBA == d.table.LastLBA() {
		end = max(end, d.root.OffsetBytes()+d.builder.os.RootSizeMiB*mebibyte)
	}
	start := (end + mebibyte - 1) / mebibyte * mebibyte
	d.total = start + size + mebibyte
	var err error
	d.data, err = d.table.Add(parttable.Partition{Name: kimageName, TypeGUID: d.table.LinuxType(), GUID: parttable.DeriveGUID("kimage-partition", d.builder.os.Name),
		FirstLBA: uint64(start / parttable.SectorBytes), LastLBA: uint64((start+size)/parttable.SectorBytes) - 1})
	if err != nil {
		return err
	}
	return d.out.Truncate(d.total)
}

// volume is the file system on KIMAGE.
func (d *disk) volume() ext4.Volume {
	return ext4.Volume{File: d.out.Name(), OffsetBytes: d.data.OffsetBytes(), UnixTime: unixTime}
}

// startKIMAGE makes the file system and writes what does not depend on the payload.
func (d *disk) startKIMAGE(ctx context.Context) error {
	mk := ext4.MakeConfig{File: d.out.Name(), OffsetBytes: d.data.OffsetBytes(), SizeBytes: d.data.SizeBytes(), Label: kimageName,
		UUID: strings.ToLower(parttable.DeriveGUID("kimage-filesystem", d.builder.os.Name)), JournalMiB: 64, ReservedPercent: reservedPercent, ReservedUID: reservedUID,
		UnixTime: unixTime, ScratchDirectory: d.scratch}
	if err := ext4.Make(ctx, mk); err != nil || d.images.entry == "" {
		return err
	}
	t, err := d.images.tree(ctx)
	if err != nil {
		return err
	}
	if err := d.volume().Add(ctx, t, nil, d.scratch); err != nil {
		return fmt.Errorf("filling the data partition: %w", d.images.discard(err))
	}
	return nil
}

// addPayload copies the payload to KIMAGE and names it by the digest of what was
// copied.
func (d *disk) addPayload(ctx context.Context, p payload) (payloadInfo, error) {
	const unnamed = extensionsDir + "/payload.raw"
	in, err := os.Open(p.file)
	if err != nil {
		return payloadInfo{}, err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return payloadInfo{}, err
	}
	digest := sha256.New()
	t := tree.New()
	err = t.Add(tree.Entry{Path: unnamed, Mode: 0o644, Size: fi.Size(), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.TeeReader(in, digest)), nil
	}})
	if err != nil {
		return payloadInfo{}, err
	}
	if err := d.volume().Add(ctx, t, nil, d.scratch); err != nil {
		return payloadInfo{}, err
	}
	info := payloadInfo{SizeBytes: fi.Size(), SHA256: hex.EncodeToString(digest.Sum(nil)), RootHash: p.rootHash}
	return info, d.volume().Rename(ctx, unnamed, extensionsDir+"/"+info.SHA256+".raw")
}

// finishKIMAGE writes the rest.
func (d *disk) finishKIMAGE(ctx context.Context, m manifest) error {
	t := tree.New()
	name := extensionsDir + "/" + m.Payload.SHA256
	if err := t.Symlink(currentPayload, m.Payload.SHA256+".raw"); err != nil {
		return err
	}
	if hash := m.Payload.RootHash; hash != "" {
		if err := errors.Join(t.Bytes(name+".roothash", 0o644, []byte(hash)), t.Symlink(currentRootHash, m.Payload.SHA256+".roothash")); err != nil {
			return err
		}
	}
	data, err := m.encode()
	if err != nil {
		return err
	}
	sbom, err := m.sbom()
	if err != nil {
		return err
	}
	if err := errors.Join(t.Bytes(manifestFile, 0o644, data), t.Bytes(sbomFile, 0o644, sbom)); err != nil {
		return err
	}
	v := d.volume()
	have := ext4.Listing{extensionsDir: fs.ModeDir} // since addPayload
	if err := v.Add(ctx, t, have, d.scratch); err != nil {
		return fmt.Errorf("filling the data partition: %w", err)
	}
	return v.Check(ctx)
}

func (m manifest) encode() ([]byte, error) {
	data, err := json.MarshalIndent(m, "", "  ")
	return append(data, '\n'), err
}

// lookIntoUSR makes sure that the base's /usr can take the payload, and says whether its
// systemd opens dm-verity. Of a /usr that kimage cannot read the OS file has to say it.
func (d *disk) lookIntoUSR(ctx context.Context, payload *tree.Tree) (verity bool, err error) {
	if d.builder.os.opaque() {
		return d.builder.os.Disk.Verity, nil
	}
	if err := checkBase(ctx, d.baseRoot(), payload); err != nil {
		return false, err
	}
	return hasCryptsetup(ctx, d.baseRoot())
}

// hasCryptsetup says whether systemd in the base can open dm-verity: it loads
// libcryptsetup when it needs it, and small installations leave it out.
func hasCryptsetup(ctx context.Context, root ext4.Volume) (bool, error) {
	found, err := root.Stat(ctx, []string{"usr/lib/x86_64-linux-gnu/libcryptsetup.so.12", "usr/lib/aarch64-linux-gnu/libcryptsetup.so.12", "usr/lib64/libcryptsetup.so.12", "usr/lib/libcryptsetup.so.12"})
	return len(found) > 0, err
}

// diskFull adds the remedy to the error that a full disk causes somewhere below.
func diskFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "No space left on device") {
		return fmt.Errorf("the disk is full (an image takes about 3 GiB in the output directory and 1 GiB in the cache; choose others with -o and --cache): %w", err)
	}
	return err
}
