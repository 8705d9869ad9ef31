package sparse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func holed(t *testing.T, size int64, at ...int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, off := range at {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestCopyFile: the first bytes of a file, its holes, in the same file system and another,
// where the kernel may not copy.
func TestCopyFile(t *testing.T) {
	src := holed(t, 60<<20, 0, 5<<20+13, 40<<20-2, 60<<20-4)
	other, err := os.CreateTemp("/dev/shm", "kimage")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(other.Name())
	defer other.Close()
	whole, err := os.ReadFile(src.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, dst := range []*os.File{holed(t, 0), other} {
		const size = 50<<20 + 7
		done := int64(0)
		if err := CopyFile(t.Context(), dst, src, size, func(n int64) { done += n }); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(dst.Name())
		if err != nil || !bytes.Equal(got, whole[:size]) {
			t.Errorf("%s differs (%v)", dst.Name(), err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(dst.Fd()), &st); err != nil || st.Blocks*512 > 1<<20 || done == 0 || done > 1<<20 {
			t.Errorf("%s takes %d bytes, of %d that were copied (%v)", dst.Name(), st.Blocks*512, done, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := CopyFile(ctx, holed(t, 0), src, 60<<20, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	closed := holed(t, 0)
	closed.Close()
	if err := CopyFile(t.Context(), closed, src, 60<<20, nil); err == nil {
		t.Error("a closed file took it")
	}
}

func TestCopy(t *testing.T) {
	const size = 200<<20 + 7
	src := holed(t, size, 0, 5<<20+13, 100<<20-2, size-4)
	dst := holed(t, 0)
	extents, err := Extents(src)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := Copy(t.Context(), dst, src, size, extents, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(src.Name())
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dst.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the copy differs")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dst.Fd()), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the copy takes %d bytes on disk (%v)", st.Blocks*512, err)
	}
	// However the content is read, its digest is one.
	all, err := Copy(t.Context(), holed(t, 0), src, size, nil, nil)
	if err != nil || all != digest {
		t.Errorf("digest without extents: %s, %v; with: %s", all, err, digest)
	}
	if n, streamed, err := CopyStream(t.Context(), holed(t, 0), bytes.NewReader(a), nil); err != nil || streamed != digest || n != size {
		t.Errorf("digest of a stream: %s, %v", streamed, err)
	}
	if file, err := DigestFile(t.Context(), src); err != nil || file != digest {
		t.Errorf("digest of the file: %s, %v", file, err)
	}
	want := sha256.Sum256(a)
	if sum, n, err := SHA256(t.Context(), src, nil); err != nil || n != size || sum != hex.EncodeToString(want[:]) {
		t.Errorf("SHA-256 %s, %v", sum, err)
	}
}

func TestDigestKnowsWhereDataIs(t *testing.T) {
	a, _ := DigestFile(t.Context(), holed(t, 1<<20, 0))
	b, _ := DigestFile(t.Context(), holed(t, 1<<20, BlockBytes))
	if a == b || a == "" {
		t.Error("moved data has the same digest")
	}
}

type failing struct{ after int64 }

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.after {
		return 0, errors.New("bad sector")
	}
	return len(p), nil
}

func TestCopyReportsReadErrors(t *testing.T) {
	if _, err := Copy(t.Context(), holed(t, 0), failing{10 << 20}, 20<<20, nil, nil); err == nil {
		t.Error("no error")
	}
}

func TestCopyReportsWriteErrors(t *testing.T) {
	src := holed(t, 10<<20, 0, 1<<20, 2<<20, 3<<20, 9<<20)
	dst := holed(t, 0)
	dst.Close()
	if _, err := Copy(t.Context(), dst, src, 10<<20, nil, nil); err == nil {
		t.Error("no error")
	}
}
