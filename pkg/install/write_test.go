package install_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/install/pack"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/parttable"
)

const (
	imageBytes = 61<<20 + 512
	diskBytes  = 96 << 20
)

// image is a disk with a GPT, a file of frames and an index.
type image struct {
	plain, frames []byte
	index         install.Index
}

func newImage(t testing.TB) image {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(imageBytes); err != nil {
		t.Fatal(err)
	}
	table := parttable.New(parttable.DeriveGUID("disk"))
	if _, err := table.Add(parttable.Partition{Name: "root", TypeGUID: table.LinuxType(), GUID: parttable.DeriveGUID("root"), FirstLBA: 2048, LastLBA: 100000}); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(f, imageBytes); err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	for _, at := range []int64{1 << 20, 9 << 20, 20<<20 - 4096, 48 << 20} {
		b := make([]byte, 3<<20)
		random.Read(b)
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	var frames bytes.Buffer
	index, err := pack.Image(t.Context(), &frames, f, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return image{plain, frames.Bytes(), index}
}

// used is a disk full of random bytes.
func used(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{3}), diskBytes); err != nil {
		t.Fatal(err)
	}
	return f
}

func (i image) serve(t testing.TB, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(i.frames))
	})
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// judge compares a finished disk with the image.
func (i image) judge(t testing.TB, disk string) {
	t.Helper()
	got, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[:len(i.plain)], i.plain) {
		for at := range i.plain {
			if got[at] != i.plain[at] {
				t.Errorf("the disk differs from the image from byte %d on", at)
				break
			}
		}
	}
	if end := got[len(got)-4<<20:]; !bytes.Equal(end, make([]byte, len(end))) {
		t.Error("what was at the disk's end is still there")
	}
}

// write installs over HTTP, and compares.
func (i image) write(t *testing.T, disk *os.File, server string, stall time.Duration) (said []string) {
	t.Helper()
	client, err := install.NewClientStall(server, stall)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	u, err := install.WriteImpatiently(t.Context(), disk, i.index, client.Fetch("/image"), func(p install.Progress) {
		if p.Done < last || p.Total != imageBytes {
			t.Errorf("progress from %d to %d of %d", last, p.Done, p.Total)
		}
		if last = p.Done; p.Error != "" {
			said = append(said, p.Error)
		}
	}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if last != imageBytes {
		t.Errorf("%d bytes were told of", last)
	}
	if marked, err := install.Marked(disk); !marked || err != nil {
		t.Errorf("before it is finished, the disk is not known as such (%v)", err)
	}
	table, err := u.Table(disk)
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := table.FindName("root"); !ok || p.FirstLBA != 2048 {
		t.Errorf("the table will have %+v", table.Partitions)
	}
	if err := u.Finish(disk); err != nil {
		t.Fatal(err)
	}
	if marked, err := install.Marked(disk); marked || err != nil {
		t.Errorf("a finished disk is known as unfinished (%v)", err)
	}
	i.judge(t, disk.Name())
	return said
}

func TestWrite(t *testing.T) {
	i, disk := newImage(t), used(t)
	if said := i.write(t, disk, i.serve(t, nil), time.Minute); said != nil {
		t.Error(said)
	}
	i.write(t, disk, i.serve(t, nil), time.Minute) // over itself
	need.Program(t, "sgdisk", "gdisk")
	if err := disk.Truncate(imageBytes); err != nil {
		t.Fatal(err)
	}
	if out := need.Judge(t, "sgdisk", "-v", disk.Name()); !strings.Contains(out, "No problems found") {
		t.Error(out)
	}
}

// TestFaults: whatever happens to the link, the disk becomes the image, and it is said what
// happened.
func TestFaults(t *testing.T) {
	i := newImage(t)
	for name, tt := range map[string]struct {
		stall time.Duration
		says  string
		wrap  func(*atomic.Int64, http.Handler) http.Handler
	}{
		"cut at random bytes": {time.Minute, "EOF", func(n *atomic.Int64, h http.Handler) http.Handler {
			random := rand.New(rand.NewPCG(1, 2))
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) <= 12 {
					w = &cut{w, random.IntN(2 << 20)}
				}
				h.ServeHTTP(w, r)
			})
		}},
		"wrong bytes": {time.Minute, "damaged", func(n *atomic.Int64, h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) <= 4 {
					w = &flip{w, 100_000}
				}
				h.ServeHTTP(w, r)
			})
		}},
		"stalls": {time.Second, "timeout", func(n *atomic.Int64, h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) <= 3 {
					w = &stalled{w, r.Context(), 1 << 20 * int(n.Load())}
				}
				h.ServeHTTP(w, r)
			})
		}},
		"says nothing": {time.Second, "timeout", func(n *atomic.Int64, h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) <= 2 {
					<-r.Context().Done()
					return
				}
				h.ServeHTTP(w, r)
			})
		}},
		"404, then back": {time.Minute, "404", func(n *atomic.Int64, h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch k := n.Add(1); {
				case k == 1:
					w = &cut{w, 3 << 20}
				case k <= 5:
					http.NotFound(w, r)
					return
				}
				h.ServeHTTP(w, r)
			})
		}},
		"no ranges, then back": {time.Minute, "ranges", func(n *atomic.Int64, h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch n.Add(1) {
				case 1:
					w = &cut{w, 5 << 20}
				case 2, 3:
					r.Header.Del("Range")
				}
				h.ServeHTTP(w, r)
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			said := i.write(t, used(t), i.serve(t, func(h http.Handler) http.Handler { return tt.wrap(&requests, h) }), tt.stall)
			if !strings.Contains(strings.Join(said, "\n"), tt.says) {
				t.Errorf("nothing says %q: %q", tt.says, said)
			}
			t.Logf("%d requests", requests.Load())
		})
	}
}

// cut ends the connection after so many bytes.
type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	if c.left -= n; c.left == 0 {
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// flip changes the byte at left.
type flip struct {
	http.ResponseWriter
	left int
}

func (f *flip) Write(b []byte) (int, error) {
	if f.left >= 0 && f.left < len(b) {
		b = bytes.Clone(b)
		b[f.left] ^= 1
	}
	f.left -= len(b)
	return f.ResponseWriter.Write(b)
}

// stalled says nothing more after so many bytes.
type stalled struct {
	http.ResponseWriter
	ctx  context.Context
	left int
}

func (s *stalled) Write(b []byte) (int, error) {
	n, err := s.ResponseWriter.Write(b[:min(len(b), s.left)])
	if s.left -= n; s.left == 0 {
		s.ResponseWriter.(http.Flusher).Flush()
		<-s.ctx.Done()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// TestGivesUp: a server that has another image for good is asked anew what to do.
func TestGivesUp(t *testing.T) {
	i := newImage(t)
	client, err := install.NewClientStall(i.serve(t, func(http.Handler) http.Handler { return http.NotFoundHandler() }), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	disk := used(t)
	if _, err := install.WriteImpatiently(t.Context(), disk, i.index, client.Fetch("/image"), func(install.Progress) {}, time.Second); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a server without the image: %v", err)
	}
	if marked, err := install.Marked(disk); !marked || err != nil {
		t.Errorf("the disk is not known as unfinished (%v)", err)
	}
}

// TestRefused: what is refused leaves the disk as it was.
func TestRefused(t *testing.T) {
	i, disk := newImage(t), used(t)
	before := sum(t, disk)
	none := func(context.Context, int64) (io.ReadCloser, error) { return nil, errors.New("asked for") }
	for name, change := range map[string]func(*install.Index){
		"too small":          func(x *install.Index) { x.DiskBytes = 4 << 40; x.Chunks = make([]install.Chunk, 1<<20) },
		"a chunk is missing": func(x *install.Index) { x.Chunks = x.Chunks[1:] },
		"no digest":          func(x *install.Index) { x.Chunks = append([]install.Chunk{{Packed: 5}}, x.Chunks[1:]...) },
		"half a sector":      func(x *install.Index) { x.DiskBytes-- },
		"large chunks":       func(x *install.Index) { x.ChunkBytes = 1 << 40; x.Chunks = x.Chunks[:1] },
	} {
		x := i.index
		change(&x)
		if _, err := install.WriteImage(t.Context(), disk, x, none, func(install.Progress) {}); err == nil {
			t.Errorf("%s: taken", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	if sum(t, disk) != before {
		t.Error("something was written")
	}
	if _, err := install.DecodeIndex([]byte("{}"), strings.Repeat("0", 64)); err == nil {
		t.Error("another index than the plan's is taken")
	}
}

func sum(t *testing.T, f *os.File) [32]byte {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

// TestKilled: a machine whose power fails begins again, and gets the same disk. Until then
// it is known as one whose installation did not end.
func TestKilled(t *testing.T) {
	const disk, server, after = "KIMAGE_TEST_DISK", "KIMAGE_TEST_SERVER", "KIMAGE_TEST_AFTER"
	if file := os.Getenv(disk); file != "" {
		limit, err := strconv.ParseInt(os.Getenv(after), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := install.NewClient(os.Getenv(server))
		if err != nil {
			t.Fatal(err)
		}
		_, err = install.WriteImage(t.Context(), f, newImage(t).index, c.Fetch("/image"), func(p install.Progress) {
			if p.Phase == install.Writing && p.Done >= limit {
				exec.Command("kill", "-9", fmt.Sprint(os.Getpid())).Run()
				select {}
			}
		})
		t.Fatal("it was not killed:", err)
	}
	i, f := newImage(t), used(t)
	url := i.serve(t, nil)
	for _, limit := range []int64{1, 20 << 20, imageBytes} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), disk+"="+f.Name(), server+"="+url, fmt.Sprintf("%s=%d", after, limit))
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%v\n%s", err, out)
		}
		if marked, err := install.Marked(f); !marked || err != nil {
			t.Errorf("killed after %d bytes, the disk is not known as unfinished (%v)", limit, err)
		}
		if _, err := parttable.Read(f, diskBytes); !errors.Is(err, parttable.ErrNone) {
			t.Errorf("killed after %d bytes, the disk has a partition table (%v)", limit, err)
		}
	}
	i.write(t, f, url, time.Minute)
}

// TestCancelled: it ends.
func TestCancelled(t *testing.T) {
	i := newImage(t)
	ctx, cancel := context.WithCancel(t.Context())
	client, err := install.NewClient("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = install.WriteImage(ctx, used(t), i.index, client.Fetch("/image"), func(p install.Progress) {
		if strings.Contains(p.Error, "refused") {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestLoop: a real block device, with partitions that the kernel knows and with sectors that
// do not do.
func TestLoop(t *testing.T) {
	need.Root(t, "a loop device")
	i, f := newImage(t), used(t)
	if err := os.WriteFile(f.Name()+".gpt", i.plain, 0o600); err != nil {
		t.Fatal(err)
	}
	loop := attach(t, f.Name(), "512")
	dev, err := os.OpenFile(loop, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	i.write(t, dev, i.serve(t, nil), time.Minute)
	i.judge(t, f.Name())

	large, err := os.OpenFile(attach(t, f.Name()+".gpt", "4096"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if _, err := install.WriteImage(t.Context(), large, i.index, nil, func(install.Progress) { t.Error("it began") }); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Errorf("sectors of 4096 bytes: %v", err)
	}
}

func attach(t *testing.T, file, sector string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", "--sector-size", sector, file).CombinedOutput()
	if err != nil {
		need.Missing(t, "no loop device: "+string(out))
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
	return loop
}
