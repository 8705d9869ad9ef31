package install_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/install/pack"
)

// TestRandom: disks of any size become images of any size that fits, also the smallest and
// those without anything behind the image, whatever links break.
func TestRandom(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 9))
	bytesOf := rand.NewChaCha8([32]byte{9})
	for n := range 20 {
		size := (random.Int64N(20<<20) + 512) / 512 * 512
		if n%4 == 0 {
			size = []int64{512, 4096, 4 << 20, 4<<20 + 512, 8 << 20}[n/4%5]
		}
		rest := random.Int64N(9<<20) / 512 * 512
		if n%3 == 0 {
			rest = 0
		}
		image, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		if err := image.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for range random.IntN(4) {
			b := make([]byte, random.IntN(200<<10))
			bytesOf.Read(b)
			at := random.Int64N(size)
			if _, err := image.WriteAt(b[:min(int64(len(b)), size-at)], at); err != nil {
				t.Fatal(err)
			}
		}
		var frames bytes.Buffer
		index, err := pack.Image(t.Context(), &frames, image, func(int64) {})
		if err != nil {
			t.Fatal(err)
		}
		disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(disk, bytesOf, size+rest); err != nil {
			t.Fatal(err)
		}
		fetch := func(_ context.Context, offset int64) (io.ReadCloser, error) {
			left := frames.Bytes()[offset:]
			if random.IntN(3) == 0 {
				left = left[:random.IntN(len(left))]
			}
			return io.NopCloser(bytes.NewReader(left)), nil
		}
		u, err := install.WriteImpatiently(t.Context(), disk, index, fetch, func(install.Progress) {}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Finish(disk); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(image.Name())
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(disk.Name())
		if err != nil || int64(len(got)) != size+rest || !bytes.Equal(got[:size], want) {
			t.Errorf("an image of %d bytes on a disk of %d differs (%v)", size, size+rest, err)
		}
		if end := got[max(size, size+rest-4<<20):]; !bytes.Equal(end, make([]byte, len(end))) {
			t.Errorf("an image of %d bytes on a disk of %d leaves the disk's end", size, size+rest)
		}
		image.Close()
		disk.Close()
	}
}
