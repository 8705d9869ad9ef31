package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/need"
)

// TestForeign: zstd finds in each frame the chunk that the index names, and nothing is there
// of zeros, written or not.
func TestForeign(t *testing.T) {
	need.Program(t, "zstd", "zstd")
	disk, plain := sparseDisk(t, 41<<20+512, 0, 5<<20, 8<<20-100, 41<<20)
	if _, err := disk.WriteAt(make([]byte, 1<<20), 25<<20); err != nil { // zeros that are no hole
		t.Fatal(err)
	}
	var out [2]bytes.Buffer
	var index install.Index
	for i, processors := range []int{1, 8} {
		before := runtime.GOMAXPROCS(processors)
		done, before2 := int64(0), index
		var err error
		index, err = Image(t.Context(), &out[i], disk, func(n int64) { done += n })
		runtime.GOMAXPROCS(before)
		if err != nil || done != int64(len(plain)) {
			t.Fatalf("%d bytes done, %v", done, err)
		}
		if i == 1 && (!bytes.Equal(out[0].Bytes(), out[1].Bytes()) || digest(t, before2) != digest(t, index)) {
			t.Error("other bytes on more processors")
		}
	}
	if index.DiskBytes != int64(len(plain)) || index.PackedBytes() != int64(out[0].Len()) {
		t.Fatalf("%d bytes of disk, %d of %d packed", index.DiskBytes, index.PackedBytes(), out[0].Len())
	}
	frames := out[0].Bytes()
	for i, c := range index.Chunks {
		chunk := plain[int64(i)*index.ChunkBytes : min(int64(i+1)*index.ChunkBytes, int64(len(plain)))]
		if c.Packed == 0 {
			if !isZero(chunk) {
				t.Errorf("chunk %d was left out", i)
			}
			continue
		}
		cmd := exec.Command("zstd", "-dc")
		cmd.Stdin = bytes.NewReader(frames[:c.Packed])
		got, err := cmd.Output()
		sum := sha256.Sum256(got)
		if err != nil || !bytes.Equal(got, chunk) || c.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("chunk %d: %v", i, err)
		}
		frames = frames[c.Packed:]
	}
	if n := len(index.Chunks); n != 11 || index.Chunks[6].Packed != 0 || index.Chunks[10].Packed == 0 {
		t.Errorf("%d chunks", n)
	}
}

func digest(t *testing.T, x install.Index) string {
	t.Helper()
	data, sum, err := x.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := install.DecodeIndex(data, sum); err != nil {
		t.Fatal(err)
	}
	return sum
}

// sparseDisk is a file with 300 KiB of data at some places.
func sparseDisk(t *testing.T, size int64, at ...int64) (*os.File, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	random, plain := rand.NewChaCha8([32]byte{7}), make([]byte, size)
	for _, a := range at {
		random.Read(plain[a:min(a+300<<10, size)])
		if _, err := f.WriteAt(plain[a:min(a+300<<10, size)], a); err != nil {
			t.Fatal(err)
		}
	}
	return f, plain
}

type full struct{}

var errFull = errors.New("the disk is full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestEnds(t *testing.T) {
	disk, _ := sparseDisk(t, 8<<20, 0)
	nothing := func(int64) {}
	if _, err := Image(t.Context(), full{}, disk, nothing); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Image(ctx, new(bytes.Buffer), disk, nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
