package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/run"
)

const (
	archiveDir   = Data + "/images" // DIGEST.tar, one image each
	importedFile = Data + "/images/imported"
)

// Import puts those container images of the node image that this machine's
// roles need into the runtime's store, unless it has them. They are in it when
// the disk is written, but for a runtime whose store that kimage did not know.
func Import(ctx context.Context) error {
	m, err := readManifest()
	if err != nil {
		return err
	}
	wanted, err := wantedImages(m)
	if err != nil {
		return err
	}
	missing, err := missingImages(ctx, wanted)
	if err != nil {
		return err
	}
	if err := importAll(ctx, missing, archiveDir, run.Run); err != nil {
		return err
	}
	return noteImported(m)
}

// importAll imports several images at once: unpacking one is work for one
// processor, and waits for the disk.
func importAll(ctx context.Context, images []Image, dir string, do func(context.Context, run.Cmd) error) error {
	var absent []string
	for _, im := range images {
		if _, err := os.Stat(archive(dir, im)); errors.Is(err, fs.ErrNotExist) {
			absent = append(absent, im.Ref)
		}
	}
	if len(absent) > 0 {
		return fmt.Errorf("container images are missing, and %s has no archives of them: %s", dir, strings.Join(absent, ", "))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.NumCPU()))
	for _, im := range images {
		g.Go(func() error {
			if err := do(ctx, ctr("images", "import", "--no-unpack=false", archive(dir, im))); err != nil {
				return fmt.Errorf("importing %s: %w", im.Ref, err)
			}
			// The kubelet's garbage collector spares what is pinned.
			return do(ctx, ctr("images", "label", im.Ref, "io.cri-containerd.pinned=pinned"))
		})
	}
	return g.Wait()
}

func ctr(args ...string) run.Cmd {
	return run.Cmd{Argv: append([]string{"ctr", "--namespace", "k8s.io"}, args...)}
}

// archive is where the bake puts an image.
func archive(dir string, im Image) string {
	return filepath.Join(dir, strings.TrimPrefix(im.Digest, "sha256:")+".tar")
}

// wantedImages are those that this machine's roles run; all, where no config
// says what it is.
func wantedImages(m Manifest) ([]Image, error) {
	data, err := os.ReadFile(nodeconf.File)
	if errors.Is(err, fs.ErrNotExist) {
		return m.Images, nil
	}
	if err != nil {
		return nil, err
	}
	conf, err := nodeconf.Decode(data)
	if err != nil {
		return nil, err
	}
	return m.imagesOf(conf.Node.Roles), nil
}

func (m Manifest) imagesOf(roles []string) (out []Image) {
	for _, im := range m.Images {
		if im.Role == "" || slices.Contains(roles, im.Role) {
			out = append(out, im)
		}
	}
	return out
}

// noteImported writes the ID of the image whose images the runtime has.
func noteImported(m Manifest) error {
	if imported(m) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(importedFile), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(importedFile, []byte(m.ImageID+"\n"), 0o644)
}

func imported(m Manifest) bool {
	data, err := os.ReadFile(importedFile)
	return err == nil && strings.TrimSpace(string(data)) == m.ImageID
}

// awaitImages waits until the runtime has what kubeadm starts: without them it
// would try to pull. What is noted before the first look may be older than the
// runtime's store, so the runtime is asked; and now and then in any case.
func (a *Agent) awaitImages(ctx context.Context) error {
	old := imported(a.image)
	why := "the container images are being imported (journalctl -u kimage-images)"
	ask, every := time.Now(), pauseMoving
	if !old {
		every = pauseSettled
		ask = ask.Add(every)
	}
	wanted := a.image.imagesOf(a.conf.Node.Roles)
	for {
		if !old && imported(a.image) {
			return nil
		}
		if !time.Now().Before(ask) {
			missing, err := missingImages(ctx, wanted)
			if err == nil && len(missing) == 0 {
				return nil
			}
			why = fmt.Sprintf("%d container images are being imported (journalctl -u kimage-images)", len(missing))
			if err != nil {
				why = err.Error()
			}
			ask = time.Now().Add(every)
		}
		a.clock.looked(awaitsImages)
		a.phase.set(partKube, PhaseWaiting, why)
		if err := sleep(ctx, pauseLook); err != nil {
			return err
		}
	}
}

// missingImages are those that the runtime does not list.
func missingImages(ctx context.Context, wanted []Image) ([]Image, error) {
	out, err := run.Output(ctx, ctr("images", "list", "--quiet"))
	if err != nil {
		return nil, fmt.Errorf("asking containerd for its images: %w", err)
	}
	have := strings.Fields(string(bytes.TrimSpace(out)))
	var missing []Image
	for _, im := range wanted {
		if !slices.Contains(have, im.Ref) {
			missing = append(missing, im)
		}
	}
	return missing, nil
}

// imagesPresent says whether the runtime has the images of this machine's roles.
func imagesPresent(ctx context.Context, m Manifest) Check {
	wanted, err := wantedImages(m)
	if err != nil {
		return check(err, "")
	}
	missing, err := missingImages(ctx, wanted)
	if err != nil {
		return check(err, "")
	}
	if len(missing) > 0 {
		return Check{false, "not imported: " + strings.Join(refs(missing), ", ") + " (journalctl -u kimage-images)"}
	}
	return Check{true, fmt.Sprintf("%d images", len(wanted))}
}

func refs(images []Image) (out []string) {
	for _, im := range images {
		out = append(out, im.Ref)
	}
	return out
}
