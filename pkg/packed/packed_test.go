package packed

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// disk is a sparse file with data at its head, across a chunk's edge and at its end, and
// what it holds when it is made longer.
func disk(t *testing.T, size, longer int64) (*os.File, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, longer)
	random := rand.NewChaCha8([32]byte{1})
	for _, at := range []int64{0, ChunkBytes - 5000, 5*ChunkBytes + 12345, size - 7000} {
		data := make([]byte, 7000)
		random.Read(data)
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
		copy(want[at:], data)
	}
	return f, want
}

// unpack has a foreign program unpack and test.
func unpack(t *testing.T, packed []byte, argv ...string) []byte {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(packed)
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, words.String())
	}
	return out
}

// TestForeign: zstd and gzip unpack what was packed, and the number of processors changes
// no byte.
func TestForeign(t *testing.T) {
	need.Program(t, "zstd", "zstd")
	const size, longer = 9*ChunkBytes + 4096, 11*ChunkBytes + 512
	f, want := disk(t, size, longer)
	var seen [2][2]bytes.Buffer
	for i, processors := range []int{1, 8} {
		before := runtime.GOMAXPROCS(processors)
		var done int64
		if err := Zstd(t.Context(), &seen[i][0], f, longer, func(n int64) { done += n }); err != nil {
			t.Fatal(err)
		}
		if err := Gzip(t.Context(), &seen[i][1], []byte("head"), f, longer, []byte("tail"), func(n int64) { done += n }); err != nil {
			t.Fatal(err)
		}
		runtime.GOMAXPROCS(before)
		if done != 2*longer {
			t.Errorf("%d bytes were done", done)
		}
	}
	for i, name := range []string{"zstd", "gzip"} {
		if !bytes.Equal(seen[0][i].Bytes(), seen[1][i].Bytes()) {
			t.Errorf("%s: other bytes on more processors", name)
		}
	}
	if got := unpack(t, seen[0][0].Bytes(), "zstd", "-dc"); !bytes.Equal(got, want) {
		t.Errorf("zstd unpacks %d bytes that are others", len(got))
	}
	if got := unpack(t, seen[0][1].Bytes(), "gzip", "-dc"); !bytes.Equal(got, append(append([]byte("head"), want...), "tail"...)) {
		t.Errorf("gzip unpacks %d bytes that are others", len(got))
	}
	if n := seen[0][0].Len(); n > 64<<10 {
		t.Errorf("28 KiB of data are %d bytes of zstd", n)
	}
}

// TestZerosOnce: chunks of zeros are packed once, also where nothing comes of them.
func TestZerosOnce(t *testing.T) {
	const size = 50 * ChunkBytes
	f, err := os.Create(filepath.Join(t.TempDir(), "empty"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	calls := 0
	err = InOrder(t.Context(), f, size, func([]byte) ([]byte, error) { calls++; return nil, nil }, func(Chunk, []byte) error { return nil })
	if err != nil || calls != 1 {
		t.Errorf("packed %d times, %v", calls, err)
	}
}

type full struct{}

var errFull = errors.New("the disk is full")

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestEnds: what stops the output, or the caller, stops all.
func TestEnds(t *testing.T) {
	f, _ := disk(t, 20*ChunkBytes, 20*ChunkBytes)
	if err := Zstd(t.Context(), full{}, f, 20*ChunkBytes, func(int64) {}); !errors.Is(err, errFull) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Gzip(ctx, new(bytes.Buffer), nil, f, 20*ChunkBytes, nil, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := Zstd(t.Context(), new(bytes.Buffer), f, ChunkBytes, func(int64) {}); err == nil {
		t.Error("a part of a disk is packed as if it were all")
	}
}
