package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/gpt"
	"github.com/kimage-project/kimage/pkg/progress"
	"github.com/kimage-project/kimage/pkg/qcow2"
	"github.com/kimage-project/kimage/pkg/sparse"
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

// Inspect reads the image in file, raw or qcow2.
func Inspect(ctx context.Context, file string) (*Inspection, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := &Inspection{APIVersion: APIVersion, File: file, Format: "raw"}
	disk := io.ReaderAt(f)
	if qcow2.Detect(f) {
		r, err := qcow2.Open(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		in.Format, in.SizeBytes, disk = "qcow2", r.SizeBytes(), r
	} else {
		fi, err := f.Stat()
		if err != nil {
			return nil, err
		}
		in.SizeBytes = fi.Size()
	}
	table, err := gpt.Read(disk, in.SizeBytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, p := range table.Partitions {
		info := PartitionInfo{Number: p.Number, Name: p.Name, Type: p.TypeGUID, OffsetBytes: p.OffsetBytes(), SizeBytes: p.SizeBytes()}
		if sb, err := ext4.ReadSuperblock(disk, p.OffsetBytes()); err == nil {
			info.Filesystem, info.UsedBytes = "ext4", (sb.Blocks-sb.FreeBlocks)*sb.BlockSize
		}
		in.Partitions = append(in.Partitions, info)
	}
	data, found := table.FindName(kimageName)
	if !found {
		return in, nil
	}
	v := ext4.Volume{File: file, OffsetBytes: data.OffsetBytes()}
	if in.Format == "qcow2" { // debugfs needs a file: KIMAGE alone, holes kept
		tmp, err := atomicfile.NewTempDir(os.TempDir() + "/kimage-inspect")
		if err != nil {
			return nil, err
		}
		defer tmp.Remove()
		if v, err = extract(ctx, disk, data, tmp.Path+"/kimage.raw"); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	raw, err := v.ReadFile(ctx, "manifest.json")
	if err != nil {
		return nil, fmt.Errorf("%s: partition KIMAGE: %w", file, err)
	}
	in.Manifest = &manifest{}
	if err := json.Unmarshal(raw, in.Manifest); err != nil {
		return nil, fmt.Errorf("%s: manifest.json: %w", file, err)
	}
	return in, nil
}

// extract copies one partition into a sparse file of its own.
func extract(ctx context.Context, disk io.ReaderAt, p gpt.Partition, to string) (ext4.Volume, error) {
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return ext4.Volume{}, err
	}
	defer out.Close()
	part := io.NewSectionReader(disk, p.OffsetBytes(), p.SizeBytes())
	_, err = sparse.Copy(ctx, out, part, p.SizeBytes(), nil, nil)
	return ext4.Volume{File: to}, err
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
