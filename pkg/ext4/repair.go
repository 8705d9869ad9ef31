package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/sparse"
)

// Prepare makes v safe to edit: features are checked, and a filesystem with a
// pending journal, orphans or errors is repaired by e2fsck -fp or refused.
// It returns whether a repair was necessary. scratch is a private directory.
func (v Volume) Prepare(ctx context.Context, scratch string) (repaired bool, err error) {
	sb, err := v.superblock()
	if err != nil {
		return false, err
	}
	if err := sb.Editable(); err != nil {
		return false, err
	}
	if !sb.NeedsRepair() {
		return false, nil
	}
	if err := v.repair(ctx, sb, scratch); err != nil {
		return false, fmt.Errorf("repairing the filesystem of the base image (boot the base once and shut it down cleanly, or take another): %w", err)
	}
	if sb, err = v.superblock(); err != nil {
		return false, err
	}
	if sb.NeedsRepair() {
		return false, errors.New("the base image's filesystem still needs repair after e2fsck -fp: take another base image")
	}
	return true, nil
}

// repair works on a copy in a file of its own: when e2fsck has replayed a
// journal it opens the file again, and forgets the offset.
func (v Volume) repair(ctx context.Context, sb Superblock, scratch string) error {
	f, err := os.OpenFile(v.File, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	out, err := os.OpenFile(filepath.Join(scratch, "repair"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	part := io.NewSectionReader(f, v.OffsetBytes, sb.SizeBytes())
	if _, err := sparse.Copy(ctx, out, part, sb.SizeBytes(), nil, nil); err != nil {
		return err
	}
	err = run.Run(ctx, run.Cmd{Argv: []string{"e2fsck", "-fp", out.Name()}, Env: fakeTime(v.UnixTime)})
	// Status 1: it corrected something.
	if e, ok := errors.AsType[*run.Error](err); err != nil && !(ok && e.Status == 1) {
		return err
	}
	return copyChanges(ctx, io.NewOffsetWriter(f, v.OffsetBytes), part, out, sb.SizeBytes())
}

// copyChanges writes what differs between old and changed.
func copyChanges(ctx context.Context, to io.WriterAt, old, changed io.ReaderAt, size int64) error {
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(a)) {
		n := min(int64(len(a)), size-off)
		if _, err := old.ReadAt(a[:n], off); err != nil {
			return err
		}
		if _, err := changed.ReadAt(b[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			if _, err := to.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
