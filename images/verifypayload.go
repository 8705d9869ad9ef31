package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/ddi"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/squashfs"
	"github.com/kimage-project/kimage/pkg/tree"
	"github.com/kimage-project/kimage/pkg/verity"
)

var payloadName = regexp.MustCompile(`^[0-9a-f]{64}\.raw$`)

// squashfsMagic begins a payload that has no hash tree.
const squashfsMagic = "hsqs"

// checkPayload judges the payload's digest, its hash tree with every root hash that is
// written down, and the programs in it.
func (v *verifier) checkPayload(ctx context.Context) error {
	var err error
	if v.raw, err = small(ctx, v.kimage, manifestFile); cannotTell(err) {
		return err
	}
	if m, err := decodeManifest(v.raw); err == nil {
		v.manifest = m
	}
	f, err := openPayload(ctx, v.kimage)
	if err != nil {
		return v.failed("payload", "/"+currentPayload, err)
	}
	defer f.Close()
	v.payload.file = f.name
	if err := v.payloadDigest(ctx, f); err != nil {
		return err
	}
	data, size, err := v.payloadData(ctx, f)
	if err != nil || data == nil {
		return err
	}
	if v.tree, err = squashfs.Read(data, size); err != nil {
		return v.failed("files of the payload", "the form of a squashfs", err)
	}
	if v.copied, err = readEntryOf(v.tree, payloadManifest); cannotTell(err) {
		return err
	}
	if m, err := decodeManifest(v.copied); err == nil {
		v.inner = m
	}
	return v.programs(ctx)
}

// payloadOnDisk is the payload of an image.
type payloadOnDisk struct {
	*ext4.File
	name string // HEX.raw
}

// openPayload follows the link on KIMAGE to the payload that is used.
func openPayload(ctx context.Context, kimage ext4.Volume) (*payloadOnDisk, error) {
	found, err := kimage.Inodes(ctx, []string{currentPayload})
	if err != nil {
		return nil, err
	}
	link, ok := found[currentPayload]
	if !ok {
		return nil, fmt.Errorf("/%s: %w", currentPayload, fs.ErrNotExist)
	}
	if !payloadName.MatchString(link.Target) {
		return nil, fmt.Errorf("/%s is no link to a payload: %q", currentPayload, link.Target)
	}
	f, err := kimage.Open(ctx, path.Join(extensionsDir, link.Target))
	if err != nil {
		return nil, err
	}
	return &payloadOnDisk{f, link.Target}, nil
}

// payloadDigest compares the digest that the payload has with its name and the manifest.
func (v *verifier) payloadDigest(ctx context.Context, f *payloadOnDisk) error {
	const with = "SHA-256 with its file name"
	bar := v.report.Bar("reading the payload", f.SizeBytes)
	defer bar.Done()
	h := sha256.New()
	if _, err := io.Copy(h, bar.Reader(stoppable{ctx, io.NewSectionReader(f, 0, f.SizeBytes)})); err != nil {
		return v.failed("payload", with, err)
	}
	v.payload.sha256 = hex.EncodeToString(h.Sum(nil))
	v.compare("payload", with, v.payload.sha256, strings.TrimSuffix(v.payload.file, ".raw"))
	if m := v.manifest; m != nil {
		want := payloadInfo{}
		if m.Payload != nil {
			want = *m.Payload
		}
		v.compare("payload in the manifest", "SHA-256 and size with the payload", fmt.Sprintf("%s, %d bytes", want.SHA256, want.SizeBytes), fmt.Sprintf("%s, %d bytes", v.payload.sha256, f.SizeBytes))
	}
	return nil
}

// payloadData finds the squashfs in the payload and judges what protects it: a hash
// tree, or its digest in the root. nil: there is none.
func (v *verifier) payloadData(ctx context.Context, f *payloadOnDisk) (io.ReaderAt, int64, error) {
	head := make([]byte, len(squashfsMagic))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, 0, v.failed("files of the payload", "the form of a squashfs", err)
	}
	if string(head) == squashfsMagic {
		return f, f.SizeBytes, v.recorded(ctx, "payload's digest in the root", rootPayloadSum, "the payload", v.payload.sha256+"  /var/lib/kimage/"+currentPayload+"\n")
	}
	err := v.partitionTable("partition table of the payload", f, f.SizeBytes)
	if err != nil {
		return nil, 0, err
	}
	im, err := ddi.Open(f, f.SizeBytes)
	if err != nil {
		return nil, 0, v.failed("files of the payload", "the form of a discoverable disk image", err)
	}
	err = v.hashTree(ctx, im)
	return im.Data, im.Data.Size(), err
}

// hashTree makes the payload's hash tree again. The root hash that comes out is right if
// any is written down that is the same: then the data are what they were, and what else
// differs is named. If none is, the data are others.
func (v *verifier) hashTree(ctx context.Context, im *ddi.Image) error {
	stop := v.report.Step("computing the hash tree")
	sum, treeErr := verity.Check(ctx, im.Tree, im.Data, im.Data.Size())
	stop()
	if treeErr != nil && !errors.Is(treeErr, verity.ErrTree) {
		return v.failed("hash tree of the payload", "its data", treeErr)
	}
	got := hex.EncodeToString(sum)
	inManifest := ""
	if v.manifest != nil && v.manifest.Payload != nil {
		inManifest = v.manifest.Payload.RootHash
	}
	beside, err := v.besidePayload(ctx)
	if cannotTell(err) {
		return err
	}
	var inRoot []byte
	if v.root != nil {
		if inRoot, err = small(ctx, *v.root, rootRootHash); cannotTell(err) {
			return err
		}
	}
	known := slices.DeleteFunc([]string{inManifest, beside, string(inRoot), im.RootHash}, func(h string) bool { return len(h) != 64 })
	want := got
	switch {
	case sum != nil && slices.Contains(known, got):
		if treeErr == nil {
			v.ok("hash tree of the payload", "its data, block by block")
		} else {
			v.differs("hash tree of the payload", "its data, block by block", treeErr.Error(), "")
		}
	case len(known) > 0:
		want = known[0]
		v.differs("data of the payload", "its root hash, which was computed again", got, want)
	}
	v.payload.rootHash = want
	v.compare("root hash in the payload's GUIDs", "root hash of the payload", im.RootHash, want)
	if v.manifest != nil {
		v.compare("root hash in the manifest", "root hash of the payload", inManifest, want)
	}
	v.compare("root hash beside the payload", "root hash of the payload", beside, want)
	return v.recorded(ctx, "root hash in the root", rootRootHash, "that of the payload", want)
}

// besidePayload is the root hash in the file beside the payload; a link must lead to it.
func (v *verifier) besidePayload(ctx context.Context) (string, error) {
	found, err := v.kimage.Inodes(ctx, []string{currentRootHash})
	if err != nil {
		return "", err
	}
	name := strings.TrimSuffix(v.payload.file, ".raw") + ".roothash"
	if link := found[currentRootHash]; link.Target != name {
		return fmt.Sprintf("/%s is no link to %s", currentRootHash, name), nil
	}
	hash, err := small(ctx, v.kimage, path.Join(extensionsDir, name))
	if err != nil && !cannotTell(err) {
		return err.Error(), nil
	}
	return string(hash), err
}

// recorded compares a file that a root has if it could be edited when the image was baked.
func (v *verifier) recorded(ctx context.Context, thing, file, other, want string) error {
	with := "/" + file + " with " + other
	if v.root == nil {
		v.notJudged(thing, "there is no root that can be read")
		return nil
	}
	got, err := small(ctx, *v.root, file)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := small(ctx, *v.root, rootImageID); errors.Is(err, fs.ErrNotExist) {
			v.notJudged(thing, "nothing was baked into the root: its first boot brings it along")
			return nil
		}
	}
	if err != nil {
		return v.failed(thing, with, err)
	}
	v.compare(thing, with, string(got), want)
	return nil
}

// programs compares every program in the payload with the manifest, and looks for others.
func (v *verifier) programs(ctx context.Context) error {
	m := v.reference()
	if m == nil {
		v.notJudged("programs in the payload", "no manifest can be read")
		return nil
	}
	bar := v.report.Bar("reading programs", programBytes(*m))
	defer bar.Done()
	listed := map[string]bool{}
	for _, c := range m.Components {
		good := true
		for _, f := range c.Files {
			listed[f.Dest] = true
			got, err := readProgram(v.tree, f.Dest, func(r io.Reader) io.Reader { return bar.Reader(stoppable{ctx, r}) })
			if err != nil {
				if err := v.failed("/"+f.Dest, "size and SHA-256 with the manifest", err); err != nil {
					return err
				}
				good = false
			} else if got, want := stateOf(got), stateOf(f); got != want {
				v.differs("/"+f.Dest, "size and SHA-256 with the manifest", got, want)
				good = false
			}
		}
		if good {
			v.ok(c.Name+" "+c.Version, count(len(c.Files), "program")+": size and SHA-256 with the manifest")
		}
	}
	for _, e := range v.tree.Entries() {
		if e.Mode.IsRegular() && e.Mode.Perm()&0o111 != 0 && !listed[e.Path] {
			v.differs("/"+e.Path, "the programs of the manifest", "it is a program in the payload, and not in the manifest", "")
		}
	}
	return nil
}

func stateOf(f components.File) string { return fmt.Sprintf("%s, %d bytes", f.SHA256, f.SizeBytes) }

// readProgram reads a file of the payload and says what it is.
func readProgram(t *tree.Tree, p string, through func(io.Reader) io.Reader) (f components.File, err error) {
	e, ok := t.Lookup(p)
	if !ok || !e.Mode.IsRegular() {
		return f, errors.New("the payload does not have it")
	}
	r, err := e.Open()
	if err != nil {
		return f, err
	}
	defer r.Close()
	h := sha256.New()
	f.SizeBytes, err = io.Copy(h, through(r))
	f.SHA256 = hex.EncodeToString(h.Sum(nil))
	return f, err
}

// readEntryOf reads a small file of a tree.
func readEntryOf(t *tree.Tree, p string) ([]byte, error) {
	e, ok := t.Lookup(p)
	if !ok || !e.Mode.IsRegular() || e.Size > 32<<20 {
		return nil, fmt.Errorf("/%s: %w", p, fs.ErrNotExist)
	}
	r, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
