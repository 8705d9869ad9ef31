package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/decompress"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/qcow2"
	"github.com/kimage-project/kimage/pkg/sparse"
	"github.com/kimage-project/kimage/pkg/vhd"
)

// diskImage is an image that is read: raw, qcow2 or a fixed VHD.
type diskImage struct {
	file      string
	format    string
	sizeBytes int64 // of the disk
	disk      io.ReaderAt
	table     *parttable.Table

	f       *os.File
	tmp     *atomicfile.TempDir // nil: nothing was put there yet
	volumes map[int]ext4.Volume // by partition
}

// openImage opens the image in file. Its errors name the file.
func openImage(file string) (*diskImage, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	d := &diskImage{file: file, format: formatRaw, disk: f, f: f, volumes: map[int]ext4.Volume{}}
	if err := d.readTable(); err != nil {
		d.close()
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return d, nil
}

// readTable finds out how the disk lies in the file, and what partitions it has.
func (d *diskImage) readTable() error {
	fi, err := d.f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() && fi.Mode().Type() != fs.ModeDevice {
		return errors.New("not a file")
	}
	if d.sizeBytes, err = d.f.Seek(0, io.SeekEnd); err != nil { // a block device has no size of its own
		return err
	}
	if qcow2.Detect(d.f) {
		r, err := qcow2.Open(d.f)
		if err != nil {
			return err
		}
		d.format, d.sizeBytes, d.disk = formatQcow2, r.SizeBytes(), r
	} else {
		bytes, isVHD, err := vhd.DiskBytes(d.f, d.sizeBytes)
		if err != nil {
			return err
		}
		if d.sizeBytes = bytes; isVHD {
			d.format = formatVHD
		}
	}
	if d.table, err = parttable.Read(d.disk, d.sizeBytes); !errors.Is(err, parttable.ErrNone) {
		return err
	}
	head := make([]byte, 8)
	if _, short := d.f.ReadAt(head, 0); short == nil && decompress.Detect(head) != "" {
		return fmt.Errorf("it is compressed by %s: unpack it first", decompress.Detect(head))
	}
	return fmt.Errorf("%w: a disk image that is raw, qcow2 or a fixed VHD is read", err)
}

func (d *diskImage) close() {
	d.f.Close()
	if d.tmp != nil {
		d.tmp.Remove()
	}
}

// scratch is a private directory that goes when the image is closed.
func (d *diskImage) scratch() (string, error) {
	if d.tmp == nil {
		tmp, err := atomicfile.NewTempDir(fmt.Sprintf("%s/kimage-inspect-%d", os.TempDir(), os.Getuid())) // another user's cannot be written to
		if err != nil {
			return "", err
		}
		d.tmp = tmp
	}
	return d.tmp.Path, nil
}

// volume is the file system of a partition. e2fsprogs need it in a file as it is: of
// another format the partition is copied out once, holes kept. progress may be nil.
func (d *diskImage) volume(ctx context.Context, p parttable.Partition, progress func(int64)) (ext4.Volume, error) {
	if v, ok := d.volumes[p.Number]; ok {
		return v, nil
	}
	v := ext4.Volume{File: d.file, OffsetBytes: p.OffsetBytes(), UnixTime: unixTime}
	if d.format == formatQcow2 {
		dir, err := d.scratch()
		if err != nil {
			return v, err
		}
		v = ext4.Volume{File: filepath.Join(dir, fmt.Sprintf("%d.raw", p.Number)), UnixTime: unixTime}
		if err := extract(ctx, d.disk, p, v.File, progress); err != nil {
			return v, fmt.Errorf("copying partition %d: %w", p.Number, err)
		}
	}
	d.volumes[p.Number] = v
	return v, nil
}

// extract copies one partition into a sparse file of its own.
func extract(ctx context.Context, disk io.ReaderAt, p parttable.Partition, to string, progress func(int64)) error {
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	part := io.NewSectionReader(disk, p.OffsetBytes(), p.SizeBytes())
	_, err = sparse.Copy(ctx, out, part, p.SizeBytes(), nil, progress)
	return err
}

// kimage is the partition that makes an image kimage's.
func (d *diskImage) kimage() (parttable.Partition, error) {
	p, found := d.table.FindName(kimageName)
	if !found {
		return p, fmt.Errorf("%s: not an image of kimage: it has no partition %s", d.file, kimageName)
	}
	return p, nil
}

// rootPartitions are those that may hold an ext4 root.
func (d *diskImage) rootPartitions() (found []parttable.Partition) {
	for _, p := range d.table.Partitions {
		if p.Name == kimageName {
			continue
		}
		if _, err := ext4.ReadSuperblock(d.disk, p.OffsetBytes()); err == nil {
			found = append(found, p)
		}
	}
	return found
}
