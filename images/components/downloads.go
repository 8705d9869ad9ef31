package components

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Download is one file that a mirror for --components DIR or URL must hold,
// at MIRROR/HOST/PATH.
type Download struct {
	URL      string
	Checksum string   // URL of the file with its digest, which the mirror must hold too
	Members  []string // files that are taken out of the archive; none: the download itself
}

// Downloads lists what --components release fetches, and the container images
// that it pulls (at MIRROR/REGISTRY/v2/NAME/manifests/TAG and .../blobs/DIGEST).
func Downloads(kubernetes, network, arch string) (downloads []Download, images []string, err error) {
	c, err := load()
	if err != nil {
		return nil, nil, err
	}
	versions, ok := c.row(kubernetes)
	if !ok {
		return nil, nil, fmt.Errorf("unknown Kubernetes version %q", kubernetes)
	}
	for _, p := range c.Programs {
		if p.Network != "" && p.Network != network {
			continue
		}
		v := versions[p.Column]
		for _, rel := range p.Release {
			url := versions.expand(rel.URL, v, arch, "")
			d := Download{URL: url, Checksum: versions.expand(rel.Checksum, v, arch, url)}
			for _, m := range slices.Sorted(maps.Keys(rel.Files)) {
				if m = versions.expand(m, v, arch, ""); m != "" {
					d.Members = append(d.Members, m)
				}
			}
			downloads = append(downloads, d)
		}
	}
	for _, im := range c.Images {
		if im.Network == "" || im.Network == network {
			images = append(images, versions.expand(im.Ref, versions["version"], arch, ""))
		}
	}
	return downloads, images, nil
}

// String is what kimage list downloads prints.
func (d Download) String() string { return strings.Join([]string{d.URL, d.Checksum}, "\n") }
