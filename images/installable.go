package images

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kimage-project/kimage/pkg/ext4"
)

// Installable is what an installation over the network needs of a baked image besides its
// bytes: the kernel that writes it is its own.
type Installable struct {
	OS, Arch                     string
	Kubernetes, Runtime, Network string
	ImageID                      string
	DiskBytes                    int64
	Root                         ext4.Volume // its root file system
	Partition                    int         // the number of the root
}

// OpenInstallable reads the raw image in file.
func OpenInstallable(ctx context.Context, file string) (*Installable, error) {
	d, err := openImage(file)
	if err != nil {
		return nil, err
	}
	defer d.close()
	if d.format != formatRaw {
		return nil, fmt.Errorf("%s is %s: machines are installed from raw images (kimage build --format raw)", file, d.format)
	}
	data, err := d.kimage()
	if err != nil {
		return nil, err
	}
	v, err := d.volume(ctx, data, nil)
	if err != nil {
		return nil, err
	}
	raw, err := v.ReadFile(ctx, manifestFile)
	if err != nil {
		return nil, fmt.Errorf("%s: partition KIMAGE: %w", file, err)
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", file, manifestFile, err)
	}
	for _, p := range d.rootPartitions() {
		root, err := d.volume(ctx, p, nil)
		if err != nil {
			return nil, err
		}
		if found, err := root.Stat(ctx, []string{rootImageID}); err != nil {
			return nil, err
		} else if len(found) > 0 {
			return &Installable{OS: m.OS, Arch: m.Arch, Kubernetes: m.Kubernetes, Runtime: m.Runtime, Network: m.Network, ImageID: m.ImageID, DiskBytes: d.sizeBytes, Root: root, Partition: p.Number}, nil
		}
	}
	return nil, fmt.Errorf("%s: the root of %s is no file system that kimage can put a machine's config into", file, m.OS)
}
