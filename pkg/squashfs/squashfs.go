// Package squashfs writes a tree as a squashfs file system with mksquashfs.
//
// The tree goes in as a tar stream, never through a staging directory, so
// modes, times and extended attributes do not depend on who builds. Everything
// in it is root's: with a tar stream mksquashfs 4.5 gives the root directory to
// whoever runs it, whatever -root-uid says, and only -all-root prevents that.
package squashfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/tree"
)

// Level is the zstd level of a payload. Measured on kubelet, kubeadm and
// kubectl (229 MB, two cores): level 3 takes 0.6 s and 64.6 MB, level 6 1.3 s and
// 60.6 MB, level 12 6.4 s and 59.8 MB.
const Level = 6

// blockSize is squashfs's largest: 7 % smaller than the default for Go binaries,
// at no cost in time.
const blockSize = 1 << 20

// Config says how a tree is written.
type Config struct {
	File        string // made anew; must not exist
	OffsetBytes int64  // where in File it starts; what is before stays a hole
	UnixTime    int64  // every timestamp, seconds
	Memory      int    // MiB that mksquashfs may use for its queues; 0: 96
}

// Write writes t to c.File. An entry that is not root's is an error.
func Write(ctx context.Context, t *tree.Tree, c Config) error {
	for _, e := range t.Entries() {
		if e.UID != 0 || e.GID != 0 {
			return fmt.Errorf("writing squashfs: %s belongs to %d:%d, not to root", e.Path, e.UID, e.GID)
		}
	}
	mem := c.Memory
	if mem == 0 {
		mem = 96
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// The largest pipe that an ordinary user may have: both sides work in turns
	// of a mebibyte instead of 64 KiB. Where it is refused, it is only slower.
	unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tarErr := make(chan error, 1)
	go func() {
		err := t.WriteTar(w, time.Unix(c.UnixTime, 0))
		if err != nil {
			cancel() // a short tar must not become a valid file system
		}
		tarErr <- errors.Join(err, w.Close())
	}()
	seconds := strconv.FormatInt(c.UnixTime, 10)
	err = run.Run(ctx, run.Cmd{Stdin: r, Argv: []string{"mksquashfs", "-", c.File, "-tar", "-offset", strconv.FormatInt(c.OffsetBytes, 10), "-noappend", "-quiet", "-no-progress",
		"-comp", "zstd", "-Xcompression-level", strconv.Itoa(Level), "-b", strconv.Itoa(blockSize),
		"-mem", strconv.Itoa(mem) + "M", "-reproducible", "-mkfs-time", seconds,
		"-all-root", "-root-mode", "0755", "-root-time", seconds, "-all-time", seconds}})
	r.Close()
	if werr := <-tarErr; werr != nil && !errors.Is(werr, io.ErrClosedPipe) && !errors.Is(werr, os.ErrClosed) {
		err = errors.Join(werr, err)
	}
	if err != nil {
		return fmt.Errorf("writing squashfs: %w", err)
	}
	return nil
}
