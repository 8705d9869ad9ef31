package sparse

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// alignBytes is what direct I/O wants of addresses, lengths and offsets: no disk
// has larger sectors.
const alignBytes = 4096

// Writer writes to a file past the page cache where it can: gigabytes that
// nobody reads soon would be copied, kept and written back for nothing, and
// push out what is read. What is not aligned is written as usual.
type Writer struct {
	file   *os.File
	direct *os.File // nil: the file system has no direct I/O
}

// NewWriter returns a writer to f, which stays the caller's.
func NewWriter(f *os.File) *Writer {
	w := &Writer{file: f}
	if d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
		w.direct = d
	}
	return w
}

// WriteAt writes b at offset.
func (w *Writer) WriteAt(b []byte, offset int64) (int, error) {
	if w.direct != nil && aligned(b, offset) {
		n, err := w.direct.WriteAt(b, offset)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		w.Close() // it wants more than it was known to
	}
	return w.file.WriteAt(b, offset)
}

// Close ends direct writing; the file stays open.
func (w *Writer) Close() error {
	d := w.direct
	w.direct = nil
	if d == nil {
		return nil
	}
	return d.Close()
}

func aligned(b []byte, offset int64) bool {
	return len(b) > 0 && len(b)%alignBytes == 0 && offset%alignBytes == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(b)))%alignBytes == 0
}

// Buffer is a buffer of n bytes that a Writer can write directly.
func Buffer(n int) []byte {
	b := make([]byte, n+alignBytes)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % alignBytes
	return b[skip : int(skip)+n : int(skip)+n]
}
