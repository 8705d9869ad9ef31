package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

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
		return nil
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
	return atomicfile.Write(importedFile, []byte(m.ImageID+"\n"), 0o644)
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

// awaitImport returns when an import has ended, or after a while. The runtime is
// not asked meanwhile: on a slow machine that takes as long as the import.
func awaitImport(ctx context.Context, m Manifest) error {
	for range 15 {
		if err := sleep(ctx, pauseMoving); err != nil {
			return err
		}
		if id, err := os.ReadFile(importedFile); err == nil && string(bytes.TrimSpace(id)) == m.ImageID {
			return nil
		}
	}
	return nil
}
