package fetch

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/cache"
)

func source(t *testing.T, mirror string) Source {
	t.Helper()
	c, err := cache.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return Source{Mirror: mirror, Cache: c}
}

func content(n int) ([]byte, string) {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	sum := sha256.Sum256(b)
	return b, hex.EncodeToString(sum[:])
}

func TestResumesAfterEveryInterruption(t *testing.T) {
	data, sum := content(900_000)
	var ranges []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) < 3 { // promise all, send a part, hang up
			start := 0
			if h := r.Header.Get("Range"); h != "" {
				start = 300_000
				w.Header().Set("Content-Range", "bytes 300000-899999/900000")
				w.Header().Set("Content-Length", "600000")
				w.WriteHeader(http.StatusPartialContent)
			} else {
				w.Header().Set("Content-Length", "900000")
			}
			w.Write(data[start : start+300_000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer server.Close()
	s := source(t, "")
	file, err := s.Get(t.Context(), Request{URL: server.URL + "/file.bin", SHA256: sum})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
		t.Errorf("content differs (%v)", err)
	}
	if len(ranges) != 3 || ranges[1] == "" || ranges[2] == "" {
		t.Errorf("requests: %q", ranges)
	}
	server.Close()
	s.Offline = true
	if _, err := s.Get(t.Context(), Request{URL: server.URL + "/file.bin", SHA256: sum}); err != nil {
		t.Errorf("offline, from the cache: %v", err)
	}
}

func TestWrongContentIsRefusedAndForgotten(t *testing.T) {
	data, sum := content(1000)
	bad := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if bad {
			w.Write(data[1:])
			return
		}
		w.Write(data)
	}))
	defer server.Close()
	s := source(t, "")
	if _, err := s.Get(t.Context(), Request{URL: server.URL + "/f", SHA256: sum}); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Fatalf("error %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.Cache.Root, "partial", "*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	bad = false
	if _, err := s.Get(t.Context(), Request{URL: server.URL + "/f", SHA256: sum}); err != nil {
		t.Errorf("second try: %v", err)
	}
}

func TestMirrors(t *testing.T) {
	data, sum := content(1000)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "dl.example", "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dl.example", "a", "f"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	for _, mirror := range []string{dir, server.URL, server.URL + "/"} {
		s := source(t, mirror)
		if _, err := s.Get(t.Context(), Request{URL: "https://dl.example/a/f", SHA256: sum}); err != nil {
			t.Errorf("%s: %v", mirror, err)
		}
		if _, err := s.Get(t.Context(), Request{URL: "https://dl.example/a/g", SHA256: sum}); err == nil {
			t.Errorf("%s: a missing file was found", mirror)
		}
	}
}

func TestOffline(t *testing.T) {
	s := source(t, "")
	s.Offline = true
	_, sum := content(1)
	if _, err := s.Get(t.Context(), Request{URL: "http://127.0.0.1:1/f", SHA256: sum}); !errors.Is(err, ErrOffline) {
		t.Errorf("error %v", err)
	}
	if _, err := s.FetchSmall(t.Context(), "http://127.0.0.1:1/f.sha256"); !errors.Is(err, ErrOffline) {
		t.Errorf("error %v", err)
	}
}

func TestNoChecksumNoDownload(t *testing.T) {
	if _, err := source(t, "").Get(t.Context(), Request{URL: "http://127.0.0.1:1/f"}); err == nil {
		t.Error("fetched without a checksum")
	}
}

func TestChecksum(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("B", 64)
	for _, c := range []struct{ data, want string }{
		{a + "\n", a},
		{b + "  other\n" + a + "  file.tgz\n", a},
		{a + " *file.tgz\n", a},
		{a + "  ./dist/file.tgz\n", a},
		{b + "  file.tgz\n", strings.ToLower(b)},
		{b + "  other\n", ""},
		{"<html>not found</html>", ""},
		{strings.Repeat("g", 64) + "  file.tgz", ""},
	} {
		got, err := Checksum([]byte(c.data), "file.tgz", 64)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v", c.data, got, err)
		}
	}
}
