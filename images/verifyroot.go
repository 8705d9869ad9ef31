package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/tree"
)

// dpkgStatus is where dpkg keeps what is installed.
const dpkgStatus = "var/lib/dpkg/status"

// checkRoot judges what kimage knows of the root: the activation files that it baked into
// it, and the packages of a base that it made.
func (v *verifier) checkRoot(ctx context.Context) error {
	if m := v.reference(); m != nil && v.root != nil {
		if err := v.activation(ctx, m); err != nil {
			return err
		}
		if len(m.Base.Packages) > 0 {
			if err := v.packages(ctx, m.Base.Packages); err != nil {
				return err
			}
		}
	}
	v.notJudged("files of the base", "the image records the digest of the base that was copied, not of the copy: neither the root's other files, nor other partitions, nor boot code in sector 0 are compared")
	return nil
}

// activation compares the files that activate the payload with those that this kimage
// would bake.
func (v *verifier) activation(ctx context.Context, m *manifest) error {
	const thing = "activation files"
	o, same := v.sameKimage()
	if _, err := small(ctx, *v.root, rootImageID); errors.Is(err, fs.ErrNotExist) && !(same && o.Config.EditableRoot) {
		v.notJudged(thing, "nothing was baked into the root: its first boot brings them along")
		return nil
	}
	if err := v.recorded(ctx, "imageID in the root", rootImageID, "the manifest", m.ImageID+"\n"); err != nil {
		return err
	}
	if !same {
		v.notJudged(thing, otherKimage)
		return nil
	}
	t, err := o.activationTree(v.payload, m.ImageID)
	if err != nil {
		return err
	}
	var paths []string
	for _, e := range t.Entries() {
		paths = append(paths, e.Path)
	}
	have, err := v.root.Inodes(ctx, paths)
	if err != nil {
		return err
	}
	n, good := 0, true
	for _, e := range t.Entries() {
		if e.Mode.IsDir() || slices.Contains([]string{rootImageID, rootRootHash, rootPayloadSum}, e.Path) {
			continue // the base's business, or judged by itself
		}
		n++
		got, want, err := v.entry(ctx, e, have)
		if err != nil {
			return err
		}
		if got != want {
			good = false
			v.differs("/"+e.Path, "what this kimage, which baked the image, writes", got, want)
		}
	}
	if good {
		v.ok(thing, fmt.Sprintf("content, mode and owner of %d files and links with what this kimage, which baked the image, writes", n))
	}
	return nil
}

// entry says what a file or link of the root is, and what it should be.
func (v *verifier) entry(ctx context.Context, e tree.Entry, have map[string]ext4.Inode) (got, want string, err error) {
	want = fmt.Sprintf("%v, owner %d:%d", e.Mode, e.UID, e.GID)
	n, ok := have[e.Path]
	if !ok {
		return "it is missing", want, nil
	}
	got = fmt.Sprintf("%v, owner %d:%d", n.Mode, n.UID, n.GID)
	if got != want {
		return got, want, nil
	}
	if e.Mode&fs.ModeSymlink != 0 {
		return fmt.Sprintf("a link to %q", n.Target), fmt.Sprintf("a link to %q", e.Target), nil
	}
	content, err := small(ctx, *v.root, e.Path)
	if cannotTell(err) {
		return "", "", err
	}
	r, err := e.Open()
	if err != nil {
		return "", "", err
	}
	defer r.Close()
	expected, err := io.ReadAll(r)
	if err != nil || string(content) == string(expected) {
		return got, want, err
	}
	got, want = aroundDifference(content, expected)
	return got, want, nil
}

// packages compares dpkg's list in the root with the manifest's.
func (v *verifier) packages(ctx context.Context, want []string) error {
	const thing, with = "packages of the base", "names and versions in dpkg's list with the manifest"
	status, err := small(ctx, *v.root, dpkgStatus)
	if err != nil {
		return v.failed(thing, with, err)
	}
	got := dpkgPackages(status)
	less, more := without(want, got), without(got, want)
	if len(less)+len(more) > 0 {
		v.differs(thing, with, some(more), some(less))
		return nil
	}
	v.ok(thing, with)
	return nil
}
