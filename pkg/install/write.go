package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/sparse"
)

// What Progress.Phase says.
const (
	Wiping      = "wiping"
	Writing     = "writing"
	Configuring = "configuring"
	Installed   = "installed"
	Failed      = "failed"
)

// Fetch opens the file of frames at an offset. What it opens ends with an error when the
// link is lost.
type Fetch func(ctx context.Context, offset int64) (io.ReadCloser, error)

const (
	firstPause, longestPause = 500 * time.Millisecond, 15 * time.Second
	// patience is for a server that answers, and with something else than the image: after
	// that long it is asked anew what to do. One that does not answer is waited for.
	patience = 2 * time.Minute
	// mostWorkers bounds memory: each has a frame and what it unpacks to.
	mostWorkers = 4
)

// Unfinished is a disk that has all of an image but its first sector.
//
// Power may fail at any moment, so that sector 0 says what the disk is:
//
//	before     what was there
//	WriteImage first of all the mark: no boot code, no signature of an MBR, no GPT (which
//	           counts only with a protective MBR), so that no firmware boots it and no
//	           kernel sees partitions; Marked recognises it
//	Finish     last of all, when the rest and the node's config are on the disk, the image's
//
// A sector is written whole or not at all.
type Unfinished struct {
	sector    []byte
	sizeBytes int64 // of the disk
}

// mark stands at the start of a disk that is being written.
const mark = "kimage: an installation of this disk has begun and not ended. Boot from the network again: it begins anew.\n"

// Marked says whether an installation of the disk began and did not end.
func Marked(disk io.ReaderAt) (bool, error) {
	b := make([]byte, len(mark))
	_, err := disk.ReadAt(b, 0)
	if err == io.EOF {
		return false, nil
	}
	return string(b) == mark, err
}

// WriteImage writes an image to a disk, which it wipes first, all but its first sector: see
// Unfinished. disk is a block device that nobody else uses, or a file of a disk's size. A
// chunk is compared with its digest before it is written; chunks of zeros are written, as
// what was there may be an older file system's. When the link is lost it goes on, however
// long that takes, at the first chunk that is missing. tell hears of it now and then, and
// not more than once at a time.
func WriteImage(ctx context.Context, disk *os.File, index Index, fetch Fetch, tell func(Progress)) (*Unfinished, error) {
	w := writer{index: index, fetch: fetch, tell: tell, pause: firstPause, longest: longestPause, patience: patience}
	return w.write(ctx, disk)
}

type writer struct {
	index                    Index
	fetch                    Fetch
	tell                     func(Progress)
	pause, longest, patience time.Duration

	device  *device
	out     *sparse.Writer
	unpack  *zstd.Decoder
	buffers sync.Pool

	mu    sync.Mutex // of the disk and all below
	first []byte     // chunk 0
	have  []bool
	done  int64
}

// wrongError is what a server gives that can be reached: no image, or another.
type wrongError struct{ error }

func (e wrongError) Unwrap() error { return e.error }

// diskError is the disk's: trying again does not help.
type diskError struct{ error }

func (e diskError) Unwrap() error { return e.error }

func (w *writer) write(ctx context.Context, disk *os.File) (*Unfinished, error) {
	var err error
	if err := w.index.check(); err != nil {
		return nil, err
	}
	if w.device, err = openDevice(disk); err != nil {
		return nil, err
	}
	if w.device.sizeBytes < w.index.DiskBytes {
		return nil, fmt.Errorf("%s has %d MiB, and the image needs %d: take a larger disk", disk.Name(), w.device.sizeBytes>>20, (w.index.DiskBytes+1<<20-1)>>20)
	}
	w.unpack, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(mostWorkers), zstd.WithDecoderMaxMemory(uint64(w.index.ChunkBytes)), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	defer w.unpack.Close()
	w.have = make([]bool, len(w.index.Chunks))
	w.report(Wiping, nil)
	if err := w.device.wipe(ctx, w.index.DiskBytes); err != nil {
		return nil, err
	}
	w.out = sparse.NewWriter(disk)
	defer w.out.Close()
	w.buffers.New = func() any { return sparse.Buffer(int(w.index.ChunkBytes)) }
	if err := w.all(ctx); err != nil {
		return nil, err
	}
	return w.finish(disk)
}

// finish writes the first chunk but for its first sector when all else is on the disk.
func (w *writer) finish(disk *os.File) (*Unfinished, error) {
	if err := disk.Sync(); err != nil {
		return nil, fmt.Errorf("writing %s: %w", disk.Name(), err)
	}
	if _, err := disk.WriteAt(w.first[sectorBytes:], sectorBytes); err != nil {
		return nil, err
	}
	if err := disk.Sync(); err != nil {
		return nil, fmt.Errorf("writing %s: %w", disk.Name(), err)
	}
	return &Unfinished{sector: slices.Clone(w.first[:sectorBytes]), sizeBytes: w.device.sizeBytes}, nil
}

// Table is the partition table that the disk will have.
func (u *Unfinished) Table(disk io.ReaderAt) (*parttable.Table, error) {
	return parttable.Read(finished{u, disk}, u.sizeBytes)
}

// finished reads the disk as it will be.
type finished struct {
	*Unfinished
	disk io.ReaderAt
}

func (f finished) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.disk.ReadAt(p, off)
	if off >= 0 && off < sectorBytes {
		copy(p[:n], f.sector[off:])
	}
	return n, err
}

// Finish makes the disk one that boots.
func (u *Unfinished) Finish(disk *os.File) error {
	if err := disk.Sync(); err != nil {
		return fmt.Errorf("writing %s: %w", disk.Name(), err)
	}
	if _, err := disk.WriteAt(u.sector, 0); err != nil {
		return err
	}
	if err := disk.Sync(); err != nil {
		return fmt.Errorf("writing %s: %w", disk.Name(), err)
	}
	return nil
}

// all writes every chunk, over as many links as it takes.
func (w *writer) all(ctx context.Context) error {
	pause, since, before := w.pause, time.Now(), 0
	for {
		err := w.pass(ctx)
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		var disk diskError
		if errors.As(err, &disk) {
			return err
		}
		if now := w.missing(); now != before {
			pause, since, before = w.pause, time.Now(), now
		}
		var wrong wrongError
		if errors.As(err, &wrong) && time.Since(since) > w.patience {
			return err
		}
		if !errors.As(err, &wrong) {
			since = time.Now()
		}
		w.mu.Lock()
		w.report(Writing, err)
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, w.longest)
	}
}

// missing is the first chunk that is.
func (w *writer) missing() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.have, false); i >= 0 {
		return i
	}
	return len(w.have)
}

type job struct {
	chunk int
	frame []byte // nil: zeros
}

// pass writes what is missing over one link.
func (w *writer) pass(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	jobs := make(chan job)
	group.Go(func() error {
		defer close(jobs)
		return w.read(ctx, jobs)
	})
	for range min(mostWorkers, runtime.NumCPU()) {
		group.Go(func() error {
			var first error
			for j := range jobs { // to the end: what was fetched is not fetched again
				if err := w.chunk(j); err != nil && first == nil {
					first = err
				}
			}
			return first
		})
	}
	return group.Wait()
}

// read reads the frames from the first that is missing on.
func (w *writer) read(ctx context.Context, jobs chan<- job) error {
	first := w.missing()
	var offset int64
	for _, c := range w.index.Chunks[:first] {
		offset += c.Packed
	}
	var body io.ReadCloser
	for i := first; i < len(w.have); i++ {
		j := job{chunk: i}
		if n := w.index.Chunks[i].Packed; n > 0 {
			if body == nil {
				var err error
				if body, err = w.fetch(ctx, offset); err != nil {
					return fmt.Errorf("fetching the image: %w", err)
				}
				defer body.Close()
			}
			j.frame = make([]byte, n)
			if _, err := io.ReadFull(body, j.frame); err != nil {
				return fmt.Errorf("fetching the image, %d MiB of %d: %w", offset>>20, w.index.PackedBytes()>>20, err)
			}
			offset += n
		}
		select {
		case jobs <- j:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// chunk verifies and writes one.
func (w *writer) chunk(j job) error {
	at, size := int64(j.chunk)*w.index.ChunkBytes, w.index.size(j.chunk)
	if j.frame == nil {
		return w.put(j.chunk, func() error {
			if j.chunk == 0 {
				w.first = make([]byte, size)
				return nil
			}
			return w.device.zero(at, size)
		})
	}
	buffer := w.buffers.Get().([]byte)
	defer func() { w.buffers.Put(buffer) }()
	plain, err := w.unpack.DecodeAll(j.frame, buffer[:0])
	sum := sha256.Sum256(plain)
	if err == nil && (int64(len(plain)) != size || hex.EncodeToString(sum[:]) != w.index.Chunks[j.chunk].SHA256) {
		err = errors.New("its SHA-256 is not the index's")
	}
	if err != nil {
		return wrongError{fmt.Errorf("chunk %d of the image is damaged: %w", j.chunk, err)}
	}
	return w.put(j.chunk, func() error {
		if j.chunk == 0 {
			w.first = slices.Clone(plain)
			return nil
		}
		_, err := w.out.WriteAt(plain, at)
		return err
	})
}

// put writes a chunk that is missing: one after the other, as disks like it.
func (w *writer) put(chunk int, write func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.have[chunk] {
		return nil
	}
	if err := write(); err != nil {
		return diskError{fmt.Errorf("writing chunk %d: %w", chunk, err)}
	}
	w.have[chunk] = true
	w.done += w.index.size(chunk)
	w.report(Writing, nil)
	return nil
}

func (w *writer) report(phase string, err error) {
	p := Progress{Phase: phase, Done: w.done, Total: w.index.DiskBytes}
	if err != nil {
		p.Error = err.Error()
	}
	w.tell(p)
}
