package need

import (
	"crypto/sha512"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// FlatcarServer is what Flatcar's release server has, as directories: versions of images
// that a key of the test's signs in place of Flatcar's.
type FlatcarServer struct {
	Vendor *Signer
	Mirror string // directory for --mirror
	OSPath string // directory for $KIMAGE_OS_PATH: kimage's own flatcar-stable with that key

	t testing.TB
}

// NewFlatcarServer makes an empty one. source is the top directory of kimage's source.
func NewFlatcarServer(t testing.TB, source string) *FlatcarServer {
	t.Helper()
	s := &FlatcarServer{Vendor: NewSigner(t, Day(-30)), Mirror: t.TempDir(), OSPath: t.TempDir(), t: t}
	own, err := os.ReadFile(filepath.Join(source, "images/os/flatcar-stable.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	own = regexp.MustCompile(`primary: \[[0-9A-F]+\]`).ReplaceAll(own, []byte("primary: ["+s.Vendor.Fingerprint+"]"))
	s.put(s.OSPath, map[string][]byte{"flatcar.asc": s.Vendor.Keys(Day(0)), "flatcar-stable.yaml": own})
	return s
}

// Day is a day so many days from now, as Signer takes it.
func Day(fromNow int) string { return time.Now().AddDate(0, 0, fromNow).Format(time.DateOnly) }

// Publish makes a version of Flatcar for amd64 the current one: its artifacts by name,
// signed on a day.
func (s *FlatcarServer) Publish(version, day string, artifacts map[string][]byte) {
	s.t.Helper()
	files := map[string][]byte{"current/version.txt": []byte("FLATCAR_VERSION=" + version + "\nFLATCAR_VERSION_ID=" + version + "\n")}
	for name, data := range artifacts {
		sum := sha512.Sum512(data)
		at := version + "/" + name
		files[at], files[at+".sig"] = data, s.Vendor.Sign(day, data)
		files[at+".DIGESTS"] = []byte("# SHA512 HASH\n" + hex.EncodeToString(sum[:]) + "  " + name + "\n")
	}
	s.put(filepath.Join(s.Mirror, "stable.release.flatcar-linux.net/amd64-usr"), files)
}

func (s *FlatcarServer) put(dir string, files map[string][]byte) {
	s.t.Helper()
	for name, data := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}
