// Package vendors finds, downloads and verifies the disk images that vendors of operating
// systems publish.
//
// What is current is asked the vendor's own way. An image counts when its digest is the one
// that the vendor names and, where the vendor signs, when the pinned key signed; nothing
// turns that off. Who answers with an older image than was seen before (which is signed
// as well) is refused. Signatures say neither channel nor architecture: among what a vendor
// signed lately a server could exchange those. What differs between vendors is data: a Spec.
package vendors

import (
	"embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Platforms are what an image can be for.
var Platforms = []string{"metal", "qemu", "vagrant", "gce", "aws", "azure", "openstack"}

// Spec says where a vendor's images are. In URLs and in Find, {arch} and {version} stand for
// the image's; in those of checksums and signatures {url} for the image's URL and {dir} for
// that of its directory.
type Spec struct {
	Arches    map[string]string `yaml:"arches"` // what the vendor calls amd64 and arm64, if not so
	Version   Version           `yaml:"version"`
	Stream    string            `yaml:"stream"`    // URL of a stream in Fedora CoreOS's format, which names all but Keys
	Images    map[string]string `yaml:"images"`    // by platform, or all: the URL, or ARTIFACT.FORMAT of the stream
	Live      Live              `yaml:"live"`      // what machines boot from the network; empty: the vendor has nothing of the kind
	Checksums string            `yaml:"checksums"` // URL of the file with the digest
	Digest    string            `yaml:"digest"`    // sha256 or sha512
	Signature Signature         `yaml:"signature"` // no URL: the vendor does not sign
	Keys      Keys              `yaml:"keys"`
}

// Live is a system that runs in memory, published and signed as the images are.
type Live struct {
	Kernel string `yaml:"kernel"` // URL
	Initrd string `yaml:"initrd"` // URL
}

// What Config.Platform may be besides a platform: the files of Live.
const (
	LiveKernel = "live-kernel"
	LiveInitrd = "live-initrd"
)

// Version is how the newest version is found: of all matches of Find in what is at URL, the
// greatest.
type Version struct {
	URL     string `yaml:"url"`
	Find    string `yaml:"find"`    // regular expression with one group
	AtLeast string `yaml:"atLeast"` // what was current when this was written: less is a server that is behind
	// SignedSince is a day before which what is current now was not yet made.
	SignedSince time.Time `yaml:"signedSince"`
}

// Signature is what the vendor signs.
type Signature struct {
	URL string `yaml:"url"`
	Of  string `yaml:"of"` // image or checksums
}

// Keys are the vendor's OpenPGP keys.
type Keys struct {
	File    string   `yaml:"file"`    // a copy of them
	URL     string   `yaml:"url"`     // where a newer copy is
	Primary []string `yaml:"primary"` // fingerprints of the primary keys: the others are not trusted

	Data []byte `yaml:"-" json:"-"` // content of File
}

//go:embed keys/*.asc
var keyFiles embed.FS

// Carried returns a copy of keys that is part of kimage.
func Carried(name string) ([]byte, error) {
	data, err := keyFiles.ReadFile("keys/" + name)
	if err != nil {
		return nil, fmt.Errorf("kimage carries no keys %s", name)
	}
	return data, nil
}

// signs says whether the vendor signs.
func (s Spec) signs() bool { return s.Signature.Of != "" }

// OneForAll says whether every platform has the same image.
func (s Spec) OneForAll() bool { return s.Images[all] != "" || !s.Known() }

// Known says whether there is a vendor at all.
func (s Spec) Known() bool { return len(s.Images) > 0 }

// For lists the platforms that there are images for, in the order of Platforms.
func (s Spec) For() []string {
	return slices.DeleteFunc(slices.Clone(Platforms), func(p string) bool { return s.image(p) == "" })
}

// image is what Images says of a platform, or Live of its files.
func (s Spec) image(platform string) string {
	switch platform {
	case LiveKernel:
		return s.Live.Kernel
	case LiveInitrd:
		return s.Live.Initrd
	}
	if of, ok := s.Images[platform]; ok {
		return of
	}
	return s.Images[all]
}

// all is the platform of an image that serves every one.
const all = "all"

// Check finds what is wrong in a Spec that people wrote.
func (s Spec) Check() error {
	for p, image := range s.Images {
		if image == "" {
			return fmt.Errorf("vendor.images.%s is empty", p)
		}
		if p != all && !slices.Contains(Platforms, p) {
			return fmt.Errorf("vendor.images: %q is no platform: all, %s", p, strings.Join(Platforms, ", "))
		}
	}
	if s.Stream == "" {
		re, err := regexp.Compile(s.Version.Find)
		switch {
		case s.Version.URL == "":
			return fmt.Errorf("vendor.version.url is missing: where the current version is asked for")
		case err != nil:
			return fmt.Errorf("vendor.version.find: %w", err)
		case re.NumSubexp() != 1:
			return fmt.Errorf("vendor.version.find %q must have one group, the version", s.Version.Find)
		case s.Checksums == "":
			return fmt.Errorf("vendor.checksums is missing: the URL of the file with the image's digest")
		case digits[s.Digest] == 0:
			return fmt.Errorf("vendor.digest %q: sha256 or sha512", s.Digest)
		}
	}
	switch {
	case (s.Live.Kernel == "") != (s.Live.Initrd == ""):
		return fmt.Errorf("vendor.live needs kernel and initrd, both")
	case s.Live.Kernel != "" && s.Stream != "":
		return fmt.Errorf("vendor.live is for vendors without a stream")
	case s.Stream != "" && s.Signature.Of != ofImage:
		return fmt.Errorf("vendor.signature.of %q: what a stream names is signed: image", s.Signature.Of)
	case s.Signature.URL == "" && s.Signature.Of == "":
		return nil
	case s.Signature.Of != ofImage && s.Signature.Of != ofChecksums:
		return fmt.Errorf("vendor.signature.of %q: image or checksums", s.Signature.Of)
	case len(s.Keys.Primary) == 0 || len(s.Keys.Data) == 0:
		return fmt.Errorf("vendor.keys: a vendor that signs needs file and primary, its keys and their fingerprints")
	}
	return nil
}

const (
	ofImage     = "image"
	ofChecksums = "checksums"
)

// digits of a digest in hex.
var digits = map[string]int{"sha256": 64, "sha512": 128}
