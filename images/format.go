package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/packed"
	"github.com/kimage-project/kimage/pkg/qcow2"
	"github.com/kimage-project/kimage/pkg/sparse"
	"github.com/kimage-project/kimage/pkg/vhd"
	"github.com/kimage-project/kimage/pkg/vmdk"
)

// What can be asked for besides Vagrant's boxes.
const (
	formatRaw   = "raw"
	formatZstd  = "raw.zst"
	formatQcow2 = "qcow2"
	formatGCE   = "gce"  // a tar.gz with disk.raw, of whole GiB
	formatVHD   = "vhd"  // fixed, of whole MiB: Azure, Hyper-V
	formatVMDK  = "vmdk" // stream-optimized: VMware, and what reads OVF
	// The payload alone, a system extension for systems that have their own disk: as
	// /var/lib/extensions/kimage.raw.
	formatSysext = "sysext"
)

// Formats are what a disk can be written as.
var Formats = []string{formatRaw, formatZstd, formatQcow2, formatGCE, formatVHD, formatVMDK, boxLibvirt, boxVirtualBox, formatSysext}

// extension ends the name of a format's file.
func extension(format string) string {
	switch format {
	case formatGCE:
		return ".tar.gz"
	case formatSysext:
		return ".sysext.raw"
	case boxLibvirt:
		return ".libvirt.box"
	case boxVirtualBox:
		return ".virtualbox.box"
	}
	return "." + format
}

// formatFor is what a platform takes.
func formatFor(platform string) string {
	switch platform {
	case "qemu", "openstack":
		return formatQcow2
	case "vagrant":
		return boxLibvirt
	case "gce":
		return formatGCE
	case "azure":
		return formatVHD
	}
	return formatRaw
}

// platformOf is the platform that takes what is asked for: "" if that may be any.
func platformOf(formats []string) (platform string, err error) {
	for _, f := range formats {
		of := map[string]string{formatGCE: "gce", formatVHD: "azure", boxLibvirt: "vagrant", boxVirtualBox: "vagrant"}[f]
		if of != "" && platform != "" && of != platform {
			return "", fmt.Errorf("formats %s are for different platforms, whose images differ: bake one after the other, with --for", strings.Join(formats, ", "))
		}
		platform = cmp.Or(of, platform)
	}
	return platform, nil
}

// bootsAlone says whether qemu can boot what a format is written as.
func bootsAlone(format string) bool { return format == formatRaw || format == formatQcow2 }

// convert writes the finished disk in another format.
func (b *Builder) convert(ctx context.Context, raw *os.File, format string) (*atomicfile.File, error) {
	f, err := atomicfile.Create(filepath.Join(b.config.Output, b.name+extension(format)), 0o644)
	if err != nil {
		return nil, err
	}
	fi, err := raw.Stat()
	if err != nil {
		f.Abort()
		return nil, err
	}
	bar := b.report.Bar("writing "+format, fi.Size())
	defer bar.Done()
	if err := b.write(ctx, f.File, raw, fi.Size(), format, bar.Add); err != nil {
		f.Abort()
		return nil, fmt.Errorf("writing %s: %w", format, err)
	}
	return f, nil
}

// write writes size bytes of the disk in raw to out, an empty file, as format.
func (b *Builder) write(ctx context.Context, out, raw *os.File, size int64, format string, progress func(int64)) error {
	switch format {
	case formatZstd:
		return packed.Zstd(ctx, out, raw, size, progress)
	case formatQcow2:
		return qcow2.Write(ctx, out, raw, progress)
	case formatGCE:
		return writeGCE(ctx, out, raw, size, progress)
	case formatVHD:
		return b.writeVHD(ctx, out, raw, size, progress)
	case formatVMDK:
		return vmdk.Write(ctx, out, raw, size, b.name+extension(format), progress)
	case formatSysext:
		return copyWhole(ctx, out, b.payload)
	}
	return b.writeBox(ctx, out, raw, format, progress)
}

// copyWhole copies the file called from to out, which is empty.
func copyWhole(ctx context.Context, out *os.File, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	return sparse.CopyFile(ctx, out, in, fi.Size(), nil)
}

// writeGCE writes what Compute Engine imports
// (https://cloud.google.com/compute/docs/import/import-existing-image): a tar in GNU's old
// format with one file, disk.raw, of whole GiB.
func writeGCE(ctx context.Context, out, raw *os.File, size int64, progress func(int64)) error {
	const gib = 1 << 30
	whole := (size + gib - 1) / gib * gib
	var head bytes.Buffer
	h := tar.Header{Name: "disk.raw", Mode: 0o644, Size: whole, ModTime: time.Unix(unixTime, 0), Format: tar.FormatGNU}
	if err := tar.NewWriter(&head).WriteHeader(&h); err != nil {
		return err
	}
	const endOfTar = 1024 // of zeros; a GiB is whole blocks of 512 bytes
	return packed.Gzip(ctx, out, head.Bytes(), raw, whole, make([]byte, endOfTar), progress)
}

func (b *Builder) writeVHD(ctx context.Context, out, raw *os.File, size int64, progress func(int64)) error {
	if err := sparse.CopyFile(ctx, out, raw, size, progress); err != nil {
		return err
	}
	whole := (size + vhd.Align - 1) / vhd.Align * vhd.Align
	_, err := out.WriteAt(vhd.Footer(whole, b.name), whole)
	return err
}
