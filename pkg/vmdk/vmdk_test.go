package vmdk

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestForeign: qemu-img finds in it the disk that went in, whatever its size and however
// many processors there were.
func TestForeign(t *testing.T) {
	need.Program(t, "qemu-img", "qemu-utils")
	random := rand.NewChaCha8([32]byte{2})
	for name, tt := range map[string]struct {
		size, capacity int64
		data           []int64 // where 300 KiB of it are
	}{
		"empty":                    {1 << 20, 1 << 20, nil},
		"smaller than a grain":     {4096, 4096, []int64{0}},
		"a grain's part at last":   {100<<20 + 512, 100<<20 + 512, []int64{0, 32<<20 - 1000, 99 << 20}},
		"across tables and chunks": {200 << 20, 200 << 20, []int64{4<<20 - 5000, 64<<20 - 5000, 100 << 20}},
		"grown":                    {64 << 20, 20 << 30, []int64{0, 50 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			raw, err := os.Create(filepath.Join(dir, "raw"))
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			if err := raw.Truncate(tt.size); err != nil {
				t.Fatal(err)
			}
			for _, at := range tt.data {
				b := make([]byte, min(300<<10, tt.size-at))
				random.Read(b)
				if _, err := raw.WriteAt(b, at); err != nil {
					t.Fatal(err)
				}
			}
			var seen [2]bytes.Buffer
			for i, processors := range []int{1, 8} {
				before := runtime.GOMAXPROCS(processors)
				done := int64(0)
				err := Write(t.Context(), &seen[i], raw, tt.capacity, "node.vmdk", func(n int64) { done += n })
				runtime.GOMAXPROCS(before)
				if err != nil || done != tt.capacity {
					t.Fatalf("%d bytes done, %v", done, err)
				}
			}
			if !bytes.Equal(seen[0].Bytes(), seen[1].Bytes()) {
				t.Error("other bytes on more processors")
			}
			file := filepath.Join(dir, "node.vmdk")
			if err := os.WriteFile(file, seen[0].Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := raw.Truncate(tt.capacity); err != nil {
				t.Fatal(err)
			}
			need.Judge(t, "qemu-img", "check", "-f", "vmdk", file)
			need.Judge(t, "qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw.Name(), file)
			var info struct {
				VirtualSize int64 `json:"virtual-size"`
				Specific    struct {
					Data struct {
						CreateType string `json:"create-type"`
						CID        int64
					}
				} `json:"format-specific"`
			}
			if err := json.Unmarshal([]byte(need.Judge(t, "qemu-img", "info", "--output", "json", file)), &info); err != nil {
				t.Fatal(err)
			}
			if info.VirtualSize != tt.capacity || info.Specific.Data.CreateType != "streamOptimized" || info.Specific.Data.CID != 0x6b696d67 {
				t.Errorf("%+v", info)
			}
			if tt.capacity <= 200<<20+512 {
				want, err := os.ReadFile(raw.Name())
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(stream(t, seen[0].Bytes(), tt.capacity), want) {
					t.Error("who reads it from its start to its end finds another disk")
				}
			}
			if n := seen[0].Len(); n > 300<<10*(len(tt.data)+1)+256<<10 {
				t.Errorf("%d bytes for %d of data", n, 300<<10*len(tt.data))
			}
		})
	}
}

// stream reads a VMDK as importers do, which cannot seek: by its markers alone.
func stream(t *testing.T, b []byte, capacity int64) []byte {
	t.Helper()
	le := binary.LittleEndian
	disk := make([]byte, (capacity+grainBytes-1)/grainBytes*grainBytes)
	last, at := int64(-1), overheadSectors*sectorBytes
	for {
		value, size, kind := le.Uint64(b[at:]), int(le.Uint32(b[at+8:])), le.Uint32(b[at+12:])
		if size == 0 {
			at += sectorBytes * (1 + int(value))
			if kind == markerEnd {
				break
			}
			continue
		}
		place := int64(value) * sectorBytes
		if place <= last || place%grainBytes != 0 {
			t.Fatalf("a grain of byte %d follows that of byte %d", place, last)
		}
		last = place
		r, err := zlib.NewReader(bytes.NewReader(b[at+markerBytes : at+markerBytes+size]))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.ReadFull(r, disk[place:place+grainBytes]); err != nil {
			t.Fatalf("the grain of byte %d has %d bytes: %v", place, n, err)
		}
		at += markerBytes + size + padding(markerBytes+size)
	}
	if at != len(b) {
		t.Errorf("it ends at byte %d of %d", at, len(b))
	}
	return disk[:capacity]
}

type full struct{}

var errFull = errors.New("the disk is full")

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestEnds: what is wrong is said.
func TestEnds(t *testing.T) {
	raw, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	nothing := func(int64) {}
	if err := Write(t.Context(), full{}, raw, 1<<20, "n", nothing); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, new(bytes.Buffer), raw, 1<<30, "n", nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := Write(t.Context(), new(bytes.Buffer), raw, 1000, "n", nothing); err == nil {
		t.Error("half a sector is taken")
	}
	if err := Write(t.Context(), new(bytes.Buffer), raw, 1<<20, strings.Repeat("n", 20000), nothing); err == nil {
		t.Error("a name that has no room is taken")
	}
}
