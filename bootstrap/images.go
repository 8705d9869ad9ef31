package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/run"
)

const (
	imageArchive = Data + "/images/images.tar"
	importedFile = Data + "/images/imported" // holds the ID of the image whose import ended
)

// Import puts the container images of the node image into the runtime's
// store, unless it has them all.
func Import(ctx context.Context) error {
	m, err := readManifest()
	if err != nil {
		return err
	}
	missing, err := missingImages(ctx, m)
	if err != nil {
		return err
	}
	if len(missing) == 0 {
		return noteImported(m)
	}
	if _, err := os.Stat(imageArchive); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container images are missing (%s), and so is %s", strings.Join(missing, ", "), imageArchive)
	}
	if err := run.Run(ctx, run.Cmd{Argv: []string{"ctr", "--namespace", "k8s.io", "images", "import", "--no-unpack=false", imageArchive}}); err != nil {
		return fmt.Errorf("importing container images: %w", err)
	}
	// The kubelet's garbage collector spares what is pinned.
	for _, im := range m.Images {
		if err := run.Run(ctx, run.Cmd{Argv: []string{"ctr", "--namespace", "k8s.io", "images", "label", im.Ref, "io.cri-containerd.pinned=pinned"}}); err != nil {
			return err
		}
	}
	return noteImported(m)
}

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
	for {
		if !old && imported(a.image) {
			return nil
		}
		if !time.Now().Before(ask) {
			missing, err := missingImages(ctx, a.image)
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
func missingImages(ctx context.Context, m Manifest) ([]string, error) {
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"ctr", "--namespace", "k8s.io", "images", "list", "--quiet"}})
	if err != nil {
		return nil, fmt.Errorf("asking containerd for its images: %w", err)
	}
	have := strings.Fields(string(bytes.TrimSpace(out)))
	var missing []string
	for _, im := range m.Images {
		if !slices.Contains(have, im.Ref) {
			missing = append(missing, im.Ref)
		}
	}
	return missing, nil
}
