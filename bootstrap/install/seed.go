package install

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/blkpg"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/parttable"
)

// place writes the config to a file system of the disk. The partition is shown to the
// kernel by hand: on the disk there is no partition table until all is written.
func (i *installer) place(ctx context.Context, disk *os.File, name string, u *install.Unfinished, to install.Place, config []byte) error {
	table, err := u.Table(disk)
	if err != nil {
		return err
	}
	var part parttable.Partition
	for _, p := range table.Partitions {
		if p.Number == to.Partition {
			part = p
		}
	}
	if part.Number == 0 {
		return fmt.Errorf("the image has no partition %d", to.Partition)
	}
	if err := blkpg.Add(disk, part); err != nil {
		return err
	}
	if err := probe(ctx, "fs-"+to.Type, to.Type); err != nil {
		return err
	}
	dev := ""
	for range 50 {
		if dev = partition("/sys", name, part.Number); dev != "" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if dev == "" {
		return fmt.Errorf("the kernel does not show partition %d", part.Number)
	}
	point, err := os.MkdirTemp("", "kimage")
	if err != nil {
		return err
	}
	defer os.Remove(point)
	if err := unix.Mount(filepath.Join("/dev", dev), point, to.Type, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting %s as %s: %w", dev, to.Type, err)
	}
	err = unpackConfig(config, point, to.Directory)
	return errors.Join(err, unix.Unmount(point, 0))
}

// unpackConfig writes the files of a tar below a directory of the file system at point:
// root's, and for root alone unless the tar says otherwise. They cannot come to lie
// elsewhere, whatever the tar says.
func unpackConfig(config []byte, point, directory string) error {
	root, err := os.OpenRoot(point)
	if err != nil {
		return err
	}
	defer root.Close()
	base := path.Clean("/" + directory)[1:]
	if base == "" {
		base = "."
	}
	if err := root.MkdirAll(path.Dir(base), 0o755); err != nil {
		return err
	}
	if err := root.Mkdir(base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	files := 0
	for tr := tar.NewReader(bytes.NewReader(config)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the config: %w", err)
		}
		name := path.Join(base, path.Clean("/"+h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, h.FileInfo().Mode().Perm())
		case tar.TypeReg:
			files++
			err = writeConfig(root, name, h.FileInfo().Mode().Perm(), tr)
		default:
			err = fmt.Errorf("entries of type %q are not in a config", h.Typeflag)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if files == 0 {
		return errors.New("the server sent a config without files")
	}
	dir, err := os.Open(point)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

func writeConfig(root *os.Root, name string, mode fs.FileMode, content io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}
