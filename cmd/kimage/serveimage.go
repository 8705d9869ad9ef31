package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/kimage-project/kimage/ignition"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/initrd"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/install/pack"
	"github.com/kimage-project/kimage/pkg/metal"
	"github.com/kimage-project/kimage/pkg/progress"
)

// configs are what machines are told at first boot, by their directory (ignition.Machine).
type configs struct {
	mu sync.Mutex
	by map[string]ignition.Machine
}

func (c *configs) replace(with *configs) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by = with.by
}

// of is a tar of a machine's config.
func (c *configs) of(m metal.Machine) ([]byte, error) {
	dir := "nodes/" + m.Name
	if m.Pool != "" {
		dir = "pools/" + m.Pool
	}
	c.mu.Lock()
	config, ok := c.by[dir]
	c.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("BUG: there is no config %s", dir)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(config.Files)) {
		data := config.Files[name]
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// packImage makes what machines fetch of a baked image, once: its files are named by the
// image's ID.
func packImage(ctx context.Context, report *progress.Reporter, dir, file string, is *images.Installable, live images.Live, agent []byte) (m metal.Image, err error) {
	in := func(name string) string { return filepath.Join(dir, "images", is.ImageID+name) }
	m = metal.Image{ID: is.ImageID, DiskBytes: is.DiskBytes, Frames: in(".frames"), Kernel: in(".kernel"), Initrd: in(".initrd")}
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		return m, err
	}
	if live.Kernel != "" {
		err = liveInstaller(m, live, agent)
	} else {
		err = installer(ctx, m, file, agent)
	}
	if err != nil {
		return m, err
	}
	index := in(".index")
	data, err := os.ReadFile(index)
	if err != nil || !packedWhole(data, m) { // the index is written last
		if data, err = packFrames(ctx, report, m.Frames, index, file); err != nil {
			return m, err
		}
	}
	sum := sha256.Sum256(data)
	m.Index, m.SHA256 = data, hex.EncodeToString(sum[:])
	return m, prune(filepath.Join(dir, "images"), is.ImageID)
}

// prune removes what was packed of other images: each is as large as a disk's contents.
func prune(dir, keep string) error {
	all, err := os.ReadDir(dir)
	for _, e := range all {
		if id, _, _ := strings.Cut(e.Name(), "."); id != keep {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// packedWhole says whether an index is that of the frames which are there.
func packedWhole(index []byte, m metal.Image) bool {
	sum := sha256.Sum256(index)
	x, err := install.DecodeIndex(index, hex.EncodeToString(sum[:]))
	if err != nil || x.DiskBytes != m.DiskBytes {
		return false
	}
	fi, err := os.Stat(m.Frames)
	return err == nil && fi.Size() == x.PackedBytes()
}

// packFrames writes an image's frames and their index.
func packFrames(ctx context.Context, report *progress.Reporter, frames, index, file string) ([]byte, error) {
	disk, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	fi, err := disk.Stat()
	if err != nil {
		return nil, err
	}
	out, err := atomicfile.Create(frames, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Abort()
	bar := report.Bar("packing the image", fi.Size())
	defer bar.Done()
	x, err := pack.Image(ctx, out.File, disk, bar.Add)
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", file, err)
	}
	data, _, err := x.Encode()
	if err != nil {
		return nil, err
	}
	if err := out.Commit(); err != nil {
		return nil, err
	}
	return data, atomicfile.Write(index, data, 0o644)
}

// installer writes the kernel and the initramfs that machines install themselves by: the
// image's own.
func installer(ctx context.Context, m metal.Image, file string, agent []byte) error {
	b, err := initrd.Make(ctx, file, agent)
	if err != nil {
		return err
	}
	return errors.Join(atomicfile.Write(m.Kernel, b.Kernel, 0o644), atomicfile.Write(m.Initrd, b.Initrd, 0o644))
}

// liveSystem is that of the system's vendor; nothing where the image's own kernel does.
func liveSystem(ctx context.Context, c images.Config) (live images.Live, err error) {
	o, err := images.FindOS(c.OS)
	if err != nil || o.Vendor.Live.Kernel == "" {
		return live, err
	}
	err = withBuilder(c, "", func(b *images.Builder) (err error) {
		live, err = b.Live(ctx)
		return err
	})
	if err != nil {
		return live, fmt.Errorf("what machines install themselves by: %w", err)
	}
	return live, nil
}

// liveInstaller writes those of a vendor's live system, with the agent in place of its first
// process.
func liveInstaller(m metal.Image, live images.Live, agent []byte) error {
	if err := atomicfile.CopyFile(m.Kernel, live.Kernel); err != nil {
		return err
	}
	in, err := os.Open(live.Initrd)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := atomicfile.Create(m.Initrd, 0o644)
	if err != nil {
		return err
	}
	defer out.Abort()
	n, err := io.Copy(out.File, in)
	if err != nil {
		return fmt.Errorf("copying %s: %w", live.Initrd, err)
	}
	if _, err := out.Write(initrd.Behind(n, agent)); err != nil {
		return err
	}
	return out.Commit()
}
