package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Described is what the manifest beside an artifact says of it.
type Described struct {
	OS, For, Arch                string
	Kubernetes, Runtime, Network string
	ImageID                      string
}

// BesideArtifact reads the manifest that kimage build wrote beside file.
func BesideArtifact(file string) (Described, error) {
	if _, err := os.Stat(file); err != nil {
		return Described{}, err
	}
	longest := ""
	for _, f := range Formats {
		if e := extension(f); strings.HasSuffix(file, e) && len(e) > len(longest) {
			longest = e
		}
	}
	beside := strings.TrimSuffix(file, longest) + ".json"
	data, err := os.ReadFile(beside)
	if errors.Is(err, fs.ErrNotExist) {
		return Described{}, fmt.Errorf("%s: what is in it says %s, which kimage build wrote beside it: put it there, or bake again", file, beside)
	}
	if err != nil {
		return Described{}, err
	}
	m, err := decodeManifest(data)
	if err != nil {
		return Described{}, fmt.Errorf("%s: %w", beside, err)
	}
	return Described{m.OS, m.For, m.Arch, m.Kubernetes, m.Runtime, m.Network, m.ImageID}, nil
}
