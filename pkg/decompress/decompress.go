// Package decompress recognises compressed files by their first bytes and
// unpacks them as streams.
package decompress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds the memory that a hostile or unusual zstd or xz file can
// take: 64 MiB is what zstd -19 --long=26 and xz -9 need.
const maxWindow = 64 << 20

var magics = []struct {
	name  string
	bytes []byte
}{
	{"gz", []byte{0x1f, 0x8b}},
	{"xz", []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
	{"zst", []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{"bz2", []byte("BZh")},
}

// Detect names the format of a file that begins with head: gz, xz, zst, bz2 or
// "" for none of them.
func Detect(head []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.bytes) {
			return m.name
		}
	}
	return ""
}

// Reader unpacks r, or passes it through if it is not compressed.
func Reader(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 1<<20)
	head, err := br.Peek(6)
	if err != nil && len(head) == 0 && err != io.EOF {
		return nil, err
	}
	switch Detect(head) {
	case "gz":
		return wrap(gzip.NewReader(br))
	case "xz":
		x, err := xz.ReaderConfig{DictCap: maxWindow}.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("unpacking xz: %w", err)
		}
		return io.NopCloser(x), nil
	case "zst":
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, fmt.Errorf("unpacking zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	case "bz2":
		return io.NopCloser(bzip2.NewReader(br)), nil
	}
	return io.NopCloser(br), nil
}

func wrap(r io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, fmt.Errorf("unpacking gzip: %w", err)
	}
	return r, nil
}
