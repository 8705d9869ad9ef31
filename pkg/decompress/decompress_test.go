package decompress

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// TestReader: what the usual programs pack is unpacked.
func TestReader(t *testing.T) {
	want := strings.Repeat("kimage ", 300_000)
	for _, argv := range [][]string{{"gzip", "-9"}, {"xz", "-6"}, {"zstd", "-q", "-19"}, {"bzip2"}, {"cat"}} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(want)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", argv, err)
		}
		r, err := Reader(bytes.NewReader(packed))
		if err != nil {
			t.Errorf("%v: %v", argv, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("%v: %d bytes, %v", argv, len(got), err)
		}
		r.Close()
		if argv[0] == "cat" {
			continue
		}
		// A truncated file must not look complete.
		if r, err := Reader(bytes.NewReader(packed[:len(packed)-10])); err == nil {
			if _, err := io.ReadAll(r); err == nil {
				t.Errorf("%v: a truncated file was unpacked without an error", argv)
			}
		}
	}
}
