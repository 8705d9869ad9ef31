// Package components resolves what goes into an image: the programs of the
// payload and the container images, from upstream's releases, a mirror of
// them, or the sources.
//
// What exists is data (catalogue.yaml); the code knows only how a release is
// verified, a Go program is built and an image is assembled. Every result is
// kept in the cache under a name made of all its inputs.
package components

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed catalogue.yaml
var catalogueYAML []byte

type catalogue struct {
	Date       string              `yaml:"date"`
	Kubernetes []map[string]string `yaml:"kubernetes"`
	Programs   []program           `yaml:"programs"`
	Images     []imageRecipe       `yaml:"images"`
}

// program is a component whose files go into the payload.
type program struct {
	Name        string    `yaml:"name"`
	Column      string    `yaml:"column"`
	Network     string    `yaml:"network"` // only with this plugin
	Release     []release `yaml:"release"`
	Source      source    `yaml:"source"`
	MoreSources []source  `yaml:"moreSources"`
}

// release is one download.
type release struct {
	URL      string            `yaml:"url"`
	Checksum string            `yaml:"checksum"`
	Files    map[string]string `yaml:"files"` // member of the archive ("": the download itself) to path in the payload
}

// source is a Go module and its main packages.
type source struct {
	Module   string            `yaml:"module"`
	Version  string            `yaml:"version"` // empty: the component's
	Staging  string            `yaml:"staging"`
	Unused   []string          `yaml:"unused"` // staging modules of which no package is imported
	LDFlags  string            `yaml:"ldflags"`
	Tags     string            `yaml:"tags"`
	CGO      bool              `yaml:"cgo"`
	Static   bool              `yaml:"static"`
	Replace  map[string]string `yaml:"replace"`
	Packages map[string]string `yaml:"packages"` // import path to path in the payload or image
}

// imageRecipe is a container image.
type imageRecipe struct {
	Ref          string            `yaml:"ref"`
	Network      string            `yaml:"network"`
	Role         string            `yaml:"role"`     // of the only machines that run it; empty: all that run containers
	Userland     bool              `yaml:"userland"` // on top of Debian's iptables, nftables and coreutils
	Pause        bool              `yaml:"pause"`    // pause.c of the Kubernetes sources
	Entrypoint   []string          `yaml:"entrypoint"`
	User         string            `yaml:"user"`
	Capabilities map[string]string `yaml:"capabilities"` // path to file capability
	Source       source            `yaml:"source"`
	MoreSources  []source          `yaml:"moreSources"`
}

func load() (catalogue, error) {
	var c catalogue
	dec := yaml.NewDecoder(bytes.NewReader(catalogueYAML))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("reading the component catalogue: %w", err)
	}
	return c, nil
}

// Date is the day of the catalogue's last change.
func Date() (time.Time, error) {
	c, err := load()
	if err != nil {
		return time.Time{}, err
	}
	return time.Parse(time.DateOnly, c.Date)
}

// Versions lists the Kubernetes versions of the catalogue, newest first; the
// first is the default.
func Versions() ([]string, error) {
	c, err := load()
	if err != nil {
		return nil, err
	}
	var v []string
	for _, row := range c.Kubernetes {
		v = append(v, row["version"])
	}
	return v, nil
}

// row finds the versions that go with a Kubernetes version: exact, without
// its v, or a minor version (the newest patch).
func (c catalogue) row(version string) (row, bool) {
	if version == "" {
		return c.Kubernetes[0], true
	}
	want := "v" + strings.TrimPrefix(version, "v")
	i := slices.IndexFunc(c.Kubernetes, func(r map[string]string) bool {
		return r["version"] == want || strings.HasPrefix(r["version"], want+".") && strings.Count(want, ".") == 1
	})
	if i < 0 {
		return nil, false
	}
	return c.Kubernetes[i], true
}

// row holds a Kubernetes version and all that goes with it.
type row map[string]string

// expand fills in {…}. version is the component's own, url the release's URL.
func (r row) expand(text, version, arch, url string) string {
	parts := strings.Split(strings.TrimPrefix(r["version"], "v"), ".")
	pairs := []string{"{url}", url, "{arch}", arch, "{version}", version, "{V}", strings.TrimPrefix(version, "v"), "{minor}", parts[1], "{patch}", parts[2]}
	for name, v := range r {
		if name != "version" {
			pairs = append(pairs, "{"+name+"}", v)
		}
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// etcdModule turns the tag of an etcd image into the version it contains:
// the number behind the dash counts rebuilds of the image.
func etcdModule(version string) string {
	if v, _, ok := strings.Cut(version, "-"); ok {
		return v
	}
	return version
}

// CatalogueVersions returns the version of every component that goes with a
// Kubernetes version of the catalogue; nil: there is no such version.
func CatalogueVersions(kubernetes string) map[string]string {
	c, err := load()
	if err != nil {
		return nil // New reports it
	}
	r, ok := c.row(kubernetes)
	if !ok {
		return nil
	}
	versions := map[string]string(maps.Clone(r))
	delete(versions, "version")
	return versions
}
