package images

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/progress"
)

// Inspection is what kimage inspect shows.
type Inspection struct {
	APIVersion string          `json:"apiVersion"`
	File       string          `json:"file"`
	Format     string          `json:"format"`
	SizeBytes  int64           `json:"sizeBytes"` // of the disk
	Partitions []PartitionInfo `json:"partitions"`
	Manifest   *manifest       `json:"manifest"` // null: not an image of kimage
}

// PartitionInfo is one partition.
type PartitionInfo struct {
	Number      int    `json:"number"`
	Name        string `json:"name"`
	Type        string `json:"type"` // GUID
	OffsetBytes int64  `json:"offsetBytes"`
	SizeBytes   int64  `json:"sizeBytes"`
	Filesystem  string `json:"filesystem,omitempty"`
	UsedBytes   int64  `json:"usedBytes,omitempty"` // ext4 only
}

// Inspect reads the image in file, raw, qcow2 or a fixed VHD.
func Inspect(ctx context.Context, file string) (*Inspection, error) {
	d, err := openImage(file)
	if err != nil {
		return nil, err
	}
	defer d.close()
	return d.inspect(ctx)
}

func (d *diskImage) inspect(ctx context.Context) (*Inspection, error) {
	in := &Inspection{APIVersion: APIVersion, File: d.file, Format: d.format, SizeBytes: d.sizeBytes}
	for _, p := range d.table.Partitions {
		info := PartitionInfo{Number: p.Number, Name: p.Name, Type: p.TypeGUID, OffsetBytes: p.OffsetBytes(), SizeBytes: p.SizeBytes()}
		if sb, err := ext4.ReadSuperblock(d.disk, p.OffsetBytes()); err == nil {
			info.Filesystem, info.UsedBytes = "ext4", (sb.Blocks-sb.FreeBlocks)*sb.BlockSize
		}
		in.Partitions = append(in.Partitions, info)
	}
	data, found := d.table.FindName(kimageName)
	if !found {
		return in, nil
	}
	v, err := d.volume(ctx, data, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file, err)
	}
	raw, err := v.ReadFile(ctx, manifestFile)
	if err != nil {
		return nil, fmt.Errorf("%s: partition KIMAGE: %w", d.file, err)
	}
	in.Manifest = &manifest{}
	if err := json.Unmarshal(raw, in.Manifest); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", d.file, manifestFile, err)
	}
	return in, nil
}

// String is the inspection for people.
func (in *Inspection) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, a disk of %s\n\n", in.File, in.Format, progress.FormatBytes(in.SizeBytes))
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PARTITION\tNAME\tOFFSET\tSIZE\tFILE SYSTEM\tUSED")
	for _, p := range in.Partitions {
		used := ""
		if p.UsedBytes > 0 {
			used = progress.FormatBytes(p.UsedBytes)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", p.Number, p.Name, progress.FormatBytes(p.OffsetBytes), progress.FormatBytes(p.SizeBytes), p.Filesystem, used)
	}
	w.Flush()
	m := in.Manifest
	if m == nil {
		b.WriteString("\nNot an image of kimage: it has no partition KIMAGE.\n")
		return b.String()
	}
	fmt.Fprintf(&b, "\n%s  imageID %s  %s, Kubernetes %s, %s, %s, %s\n", m.Name, m.ImageID, m.OS, m.Kubernetes, m.Runtime, m.Network, m.Arch)
	fmt.Fprintf(&b, "base: %s, %s, verified by %s, %s\n", m.Base.Origin, count(len(m.Base.Packages), "package"), m.Base.VerifiedBy, m.Base.Digest)
	if m.Payload != nil {
		root := "plain squashfs"
		if m.Payload.RootHash != "" {
			root = "dm-verity root hash " + m.Payload.RootHash
		}
		fmt.Fprintf(&b, "payload: %s, %s\n\n", progress.FormatBytes(m.Payload.SizeBytes), root)
	}
	w = tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "COMPONENT\tVERSION\tFILE\tSIZE\tSHA-256")
	for _, c := range m.Components {
		for _, f := range c.Files {
			fmt.Fprintf(w, "%s\t%s\t/%s\t%s\t%s\n", c.Name, c.Version, f.Dest, progress.FormatBytes(f.SizeBytes), f.SHA256)
		}
	}
	w.Flush()
	b.WriteString("\n")
	w = tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tSIZE\tDIGEST")
	for _, im := range m.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\n", im.Ref, progress.FormatBytes(im.SizeBytes), im.ManifestDigest)
	}
	w.Flush()
	return b.String()
}
