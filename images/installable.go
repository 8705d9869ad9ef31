package images

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/parttable"
)

// Installable is what an installation over the network needs of a baked image besides its
// bytes.
type Installable struct {
	OS, Arch                     string
	Kubernetes, Runtime, Network string
	ImageID                      string
	DiskBytes                    int64
	Seed                         install.Place // where a machine's config goes
}

// seedDirectory is where cloud-init's datasource NoCloud looks on the root.
const seedDirectory = "var/lib/cloud/seed/nocloud"

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
			i := &Installable{OS: m.OS, Arch: m.Arch, Kubernetes: m.Kubernetes, Runtime: m.Runtime, Network: m.Network, ImageID: m.ImageID, DiskBytes: d.sizeBytes}
			i.Seed, err = seedPlace(d.table, m.OS, p.Number)
			return i, err
		}
	}
	return nil, fmt.Errorf("%s: the root of %s is no file system that kimage can put a machine's config into", file, m.OS)
}

// seedPlace is where a disk of the OS has the config of its machine; root is the number of
// its root.
func seedPlace(table *parttable.Table, name string, root int) (install.Place, error) {
	o, err := FindOS(name)
	if err != nil {
		return install.Place{}, err
	}
	seed := o.Disk.Seed
	if seed.Partition == "" {
		return install.Place{Partition: root, Type: "ext4", Directory: seedDirectory}, nil
	}
	p, ok := table.FindName(seed.Partition)
	if !ok {
		return install.Place{}, fmt.Errorf("the image has no partition %s, where %s looks for its config", seed.Partition, o.Title)
	}
	return install.Place{Partition: p.Number, Type: seed.Filesystem, Directory: seed.Directory}, nil
}
