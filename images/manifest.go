package images

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/images/components"
)

// APIVersion is that of every JSON object that kimage writes.
const APIVersion = "kimage.dev/v1alpha1"

const manifestKind = "ImageManifest"

// manifest says what is in an image. It lies in the payload, on the data
// partition and beside the artifact.
type manifest struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	ImageID    string `json:"imageID"`
	OS         string `json:"os"`
	For        string `json:"for"` // platform
	Kubernetes string `json:"kubernetes"`
	Runtime    string `json:"runtime"`
	Network    string `json:"network"`
	Arch       string `json:"arch"`
	// NotBefore is when the catalogue was made that the image is of: a clock that
	// shows less is wrong. An image has no other time, for its bytes have none.
	NotBefore  time.Time            `json:"notBefore"`
	Base       baseInfo             `json:"base"`
	Components []components.Program `json:"components"`
	Images     []components.Image   `json:"images"`
	// Known only when the disk is written; absent in the payload's own copy.
	Payload    *payloadInfo `json:"payload,omitempty"`
	ImageStore *storeInfo   `json:"imageStore,omitempty"`
}

type baseInfo struct {
	Origin     string   `json:"origin"`            // packages, or where the file came from
	Version    string   `json:"version,omitempty"` // the vendor's
	VerifiedBy string   `json:"verifiedBy"`
	Signed     bool     `json:"signed"`
	Digest     string   `json:"digest"` // of the disk image that was copied
	SizeBytes  int64    `json:"sizeBytes"`
	Packages   []string `json:"packages,omitempty"` // "name version", if kimage made the base
}

type payloadInfo struct {
	SizeBytes int64  `json:"sizeBytes"`
	SHA256    string `json:"sha256"`
	RootHash  string `json:"rootHash,omitempty"` // dm-verity
}

// storeInfo says how the container images lie on KIMAGE.
type storeInfo struct {
	Format    string `json:"format"`
	SizeBytes int64  `json:"sizeBytes"`
}

const (
	storeContainerd = "containerd" // its own store, unpacked, without packed layers
	storeArchive    = "archive"    // imported at first boot
)

// newManifest fills in everything but the payload; the imageID is the digest
// of all inputs and options.
func (b *Builder) newManifest(base baseInfo, set *components.Set, agentSHA256 string, agentBytes int64) (manifest, error) {
	notBefore, err := components.Date()
	if err != nil {
		return manifest{}, err
	}
	m := manifest{APIVersion: APIVersion, NotBefore: notBefore, Kind: manifestKind, Name: b.name, OS: b.os.Name, For: b.config.For, Kubernetes: set.Kubernetes, Runtime: b.config.Runtime, Network: b.config.Network,
		Arch: b.config.Arch, Base: base, Components: slices.Clone(set.Programs), Images: set.Images}
	m.Components = append(m.Components, components.Program{Name: "kimage-agent", Version: Version, Origin: "this kimage", VerifiedBy: "part of kimage",
		Files: []components.File{{Dest: "usr/bin/kimage-agent", SizeBytes: agentBytes, SHA256: agentSHA256}}})
	if m.Images == nil {
		m.Images = []components.Image{}
	}
	m.ImageID, err = m.id(b.os)
	return m, err
}

// id is the imageID that this kimage gives an image of o with m's inputs. That of an
// image is the same only if it was baked by a kimage whose own files are the same.
func (m manifest) id(o OS) (string, error) {
	m.ImageID, m.Payload, m.ImageStore = "", nil, nil
	inputs, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(inputs)
	fmt.Fprintf(h, "%d %s\n", diskVersion, o.inputs())
	for _, group := range []string{"payload", "activation"} {
		entries, err := files.ReadDir("files/" + group)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			fmt.Fprintf(h, "%s %d\n", e.Name(), len(embedded(group+"/"+e.Name())))
			h.Write(embedded(group + "/" + e.Name()))
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// sbom lists everything in the image as SPDX 2.3 JSON
// (https://spdx.github.io/spdx-spec/v2.3/).
func (m manifest) sbom() ([]byte, error) {
	type checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	type pkg struct {
		ID        string     `json:"SPDXID"`
		Name      string     `json:"name"`
		Version   string     `json:"versionInfo"`
		Location  string     `json:"downloadLocation"`
		Analyzed  bool       `json:"filesAnalyzed"`
		Supplier  string     `json:"supplier"`
		Checksums []checksum `json:"checksums,omitempty"`
	}
	type relation struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
	type document struct {
		Version   string         `json:"spdxVersion"`
		License   string         `json:"dataLicense"`
		ID        string         `json:"SPDXID"`
		Name      string         `json:"name"`
		Namespace string         `json:"documentNamespace"`
		Creation  map[string]any `json:"creationInfo"`
		Packages  []pkg          `json:"packages"`
		Relations []relation     `json:"relationships"`
	}
	d := document{Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: m.Name, Namespace: "https://kimage.dev/spdx/" + m.ImageID,
		Creation: map[string]any{"created": "2023-11-14T22:13:20Z", "creators": []string{"Tool: kimage-" + Version}}}
	add := func(p pkg) {
		p.ID, p.Supplier = fmt.Sprintf("SPDXRef-%d", len(d.Packages)+1), "NOASSERTION"
		if p.Location == "" {
			p.Location = "NOASSERTION"
		}
		d.Packages = append(d.Packages, p)
		d.Relations = append(d.Relations, relation{"SPDXRef-DOCUMENT", "DESCRIBES", p.ID})
	}
	for _, c := range m.Components {
		p := pkg{Name: c.Name, Version: c.Version, Location: c.Origin}
		if len(c.Files) == 1 {
			p.Checksums = []checksum{{"SHA256", c.Files[0].SHA256}}
		}
		add(p)
	}
	for _, im := range m.Images {
		ref, tag, _ := strings.Cut(im.Ref, ":")
		add(pkg{Name: ref, Version: tag, Checksums: []checksum{{"SHA256", strings.TrimPrefix(im.ManifestDigest, "sha256:")}}})
	}
	for _, p := range m.Base.Packages {
		name, version, _ := strings.Cut(p, " ")
		add(pkg{Name: name, Version: version})
	}
	return json.MarshalIndent(d, "", " ")
}
