package vendors

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/fetch"
	"github.com/kimage-project/kimage/pkg/need"
)

// server is a vendor's: files by path, and a request that is cut off half-way.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string][]byte
	cut   string // the next answer for this path ends in the middle
	onCut func() // called then
	asked []string
}

func serve(t *testing.T) *server {
	s := &server{files: map[string][]byte{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		data, ok := s.files[r.URL.Path]
		cut := s.cut == r.URL.Path
		if cut {
			s.cut = ""
		}
		s.asked = append(s.asked, r.URL.Path+" "+r.Header.Get("Range"))
		s.mu.Unlock()
		switch {
		case !ok:
			http.NotFound(w, r)
		case cut:
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			w.Write(data[:len(data)/2])
			w.(http.Flusher).Flush()
			if s.onCut != nil {
				time.Sleep(100 * time.Millisecond) // let it arrive
				s.onCut()
			}
			panic(http.ErrAbortHandler)
		default:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// flatcar publishes a version as Flatcar does: digests of SHA-512, a signature of the image.
func (s *server) flatcar(version string, image, signature []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := sha512.Sum512(image)
	at := "/amd64-usr/" + version + "/image.bin.bz2"
	s.files["/amd64-usr/current/version.txt"] = []byte("FLATCAR_BUILD=1\nFLATCAR_VERSION=" + version + "\nFLATCAR_VERSION_ID=" + version + "\n")
	s.files[at] = image
	s.files[at+".sig"] = signature
	s.files[at+".DIGESTS"] = []byte("# SHA1 HASH\n" + strings.Repeat("a", 40) + "  image.bin.bz2\n# SHA512 HASH\n" + hex.EncodeToString(sum[:]) + "  image.bin.bz2\n")
}

func flatcarSpec(url string, v *need.Signer, keys []byte) Spec {
	return Spec{Version: Version{URL: url + "/{arch}-usr/current/version.txt", Find: `(?m)^FLATCAR_VERSION_ID=(\S+)$`, AtLeast: "4757.2.0"},
		Images:    map[string]string{"metal": url + "/{arch}-usr/{version}/image.bin.bz2"},
		Checksums: "{url}.DIGESTS", Digest: "sha512", Signature: Signature{URL: "{url}.sig", Of: ofImage},
		Keys: Keys{Primary: []string{v.Fingerprint}, Data: keys, URL: url + "/key.asc"}}
}

func source(t *testing.T) fetch.Source {
	c, err := cache.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return fetch.Source{Cache: c}
}

func on(day string) func() time.Time {
	at, err := time.Parse(time.DateOnly, day)
	if err != nil {
		panic(err)
	}
	return func() time.Time { return at.Add(18 * time.Hour) }
}

const today = "2026-11-26"

var image = bytes.Repeat([]byte("the vendor's image\n"), 60_000)

// TestSignedImage: of what a server may answer, only the vendor's newest image counts.
func TestSignedImage(t *testing.T) {
	vendor, other := need.NewSigner(t, "2025-06-01"), need.NewSigner(t, "2025-06-01")
	keys := vendor.Keys(today)
	signature := vendor.Sign("2026-11-01", image)
	tampered := append([]byte("X"), image[1:]...)
	older := Image{Version: "4757.2.0", SignedBy: vendor.Fingerprint, SignedAt: time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)}
	newest := Image{Version: "4800.2.1", SignedBy: vendor.Fingerprint, SignedAt: time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)}
	for name, tt := range map[string]struct {
		serve func(s *server)
		seen  Image
		today string
		want  string // of the error; empty: it is taken
	}{
		"good":                 {func(s *server) {}, Image{}, today, ""},
		"newer than seen":      {func(s *server) {}, older, today, ""},
		"cut half-way":         {func(s *server) { s.cut = "/amd64-usr/4780.2.0/image.bin.bz2" }, Image{}, today, ""},
		"subkey expired":       {func(s *server) {}, Image{}, "2027-06-02", "expired"},
		"another's signature":  {func(s *server) { s.flatcar("4780.2.0", image, other.Sign("2026-11-01", image)) }, Image{}, today, "not signed by a valid key"},
		"no signature":         {func(s *server) { delete(s.files, "/amd64-usr/4780.2.0/image.bin.bz2.sig") }, Image{}, today, "404"},
		"empty signature":      {func(s *server) { s.flatcar("4780.2.0", image, nil) }, Image{}, today, "the signature of"},
		"tampered, digest too": {func(s *server) { s.flatcar("4780.2.0", tampered, signature) }, Image{}, today, "not valid"},
		"tampered":             {func(s *server) { s.files["/amd64-usr/4780.2.0/image.bin.bz2"] = tampered }, Image{}, today, "does not match its checksum"},
		"truncated":            {func(s *server) { s.files["/amd64-usr/4780.2.0/image.bin.bz2"] = image[:len(image)/3] }, Image{}, today, "does not match its checksum"},
		"digest of nothing":    {func(s *server) { s.files["/amd64-usr/4780.2.0/image.bin.bz2.DIGESTS"] = nil }, Image{}, today, "does not name image.bin.bz2"},
		"an older version":     {func(s *server) { s.flatcar("4593.2.5", image, signature) }, Image{}, today, "4757.2.0, when this kimage was made"},
		"older than was seen":  {func(s *server) {}, newest, today, "was signed on 2026-11-01"},
		// The version is not signed: an old image can be called by the new one's.
		"old, called new": {func(s *server) { s.flatcar("4900.0.0", image, signature) }, newest, today, "was signed on 2026-11-01"},
		"no version":      {func(s *server) { s.files["/amd64-usr/current/version.txt"] = []byte("<html>") }, Image{}, today, "names no version"},
		"nobody there":    {func(s *server) { s.Close() }, Image{}, today, "cannot be fetched"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			s.flatcar("4780.2.0", image, signature)
			tt.serve(s)
			c := Config{OS: "flatcar-stable", Spec: flatcarSpec(s.URL, vendor, keys), Arch: "amd64", Platform: "metal", Seen: tt.seen, Source: source(t), Now: on(tt.today)}
			i, file, err := Current(t.Context(), c)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v", err)
				}
				if kept, _ := filepath.Glob(filepath.Join(c.Source.Cache.Root, "entries/download/*")); len(kept) != 0 && !errors.Is(err, ErrOlder) {
					t.Errorf("what is not right is kept: %v", kept)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(got, image) || i.Version != "4780.2.0" || i.SignedBy != vendor.Fingerprint || i.SignedAt.Format(time.DateOnly) != "2026-11-01" {
				t.Errorf("%+v, %v", i, err)
			}
			// Again, from the cache, with the same result.
			if again, _, err := Current(t.Context(), c); err != nil || again != i {
				t.Errorf("again: %+v, %v", again, err)
			}
			if n := strings.Count(strings.Join(s.asked, "\n"), "image.bin.bz2 "); name != "cut half-way" && n != 1 {
				t.Errorf("the image was asked for %d times", n)
			}
			if name == "cut half-way" && !strings.Contains(strings.Join(s.asked, "\n"), fmt.Sprintf("bytes=%d-", len(image)/2)) {
				t.Errorf("it was not resumed: %v", s.asked)
			}
		})
	}
}

// TestKilledDownload: what a run that was ended left is judged with the rest.
func TestKilledDownload(t *testing.T) {
	vendor := need.NewSigner(t, "2025-06-01")
	s := serve(t)
	s.flatcar("4780.2.0", image, vendor.Sign("2026-11-01", image))
	c := Config{OS: "flatcar-stable", Spec: flatcarSpec(s.URL, vendor, vendor.Keys(today)), Arch: "amd64", Platform: "metal", Source: source(t), Now: on(today)}
	s.cut = "/amd64-usr/4780.2.0/image.bin.bz2"
	ctx, cancel := context.WithCancel(t.Context())
	s.onCut = cancel
	if _, _, err := Current(ctx, c); err == nil {
		t.Fatal("the first run ended well")
	}
	partial, _ := filepath.Glob(filepath.Join(c.Source.Cache.Root, "partial/*"))
	if len(partial) != 1 {
		t.Fatalf("%v", partial)
	}
	if _, _, err := Current(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if asked := strings.Join(s.asked, "\n"); !strings.Contains(asked, "bytes=") {
		t.Error(asked)
	}
	// What lies there may be anything.
	other := append(bytes.Clone(image), "another"...)
	s.flatcar("4780.2.1", other, vendor.Sign("2026-11-02", other))
	s.cut = "/amd64-usr/4780.2.1/image.bin.bz2"
	ctx, cancel = context.WithCancel(t.Context())
	s.onCut = cancel
	Current(ctx, c)
	partial, _ = filepath.Glob(filepath.Join(c.Source.Cache.Root, "partial/*"))
	if len(partial) != 1 {
		t.Fatalf("%v", partial)
	}
	if err := os.WriteFile(partial[0], []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Current(t.Context(), c); err == nil || !strings.Contains(err.Error(), "does not match its checksum") {
		t.Errorf("%v", err)
	}
	if _, _, err := Current(t.Context(), c); err != nil {
		t.Errorf("and once more: %v", err)
	}
}

// TestNewSubkey: what a subkey signs that is younger than the keys at hand is verified by a
// newer copy of them, from the vendor, and by no others.
func TestNewSubkey(t *testing.T) {
	vendor, other := need.NewSigner(t, "2025-06-01"), need.NewSigner(t, "2025-06-01")
	old := vendor.Keys(today)
	vendor.AddSubkey("2027-05-01")
	s := serve(t)
	s.flatcar("4900.2.0", image, vendor.Sign("2027-07-01", image))
	c := Config{OS: "flatcar-stable", Spec: flatcarSpec(s.URL, vendor, old), Arch: "amd64", Platform: "metal", Source: source(t), Now: on("2027-08-01")}
	if _, _, err := Current(t.Context(), c); err == nil || !strings.Contains(err.Error(), "newer copy of the vendor's key was not to be had") {
		t.Errorf("%v", err)
	}
	s.files["/key.asc"] = other.Keys(today)
	if _, _, err := Current(t.Context(), c); err == nil || !strings.Contains(err.Error(), "none of these OpenPGP keys is") {
		t.Errorf("%v", err)
	}
	s.files["/key.asc"] = vendor.Keys("2027-08-01")
	if i, _, err := Current(t.Context(), c); err != nil || i.SignedBy != vendor.Fingerprint {
		t.Errorf("%+v, %v", i, err)
	}
}

// TestSignedChecksums: Ubuntu's way (a detached signature of SHA256SUMS), and that of who
// signs in the clear; versions from a directory's page, or a mirror's directory.
func TestSignedChecksums(t *testing.T) {
	vendor := need.NewSigner(t, "2025-06-01")
	sum := sha256.Sum256(image)
	sums := []byte(hex.EncodeToString(sum[:]) + " *ubuntu-24.04-server-cloudimg-amd64.img\n")
	bsd := []byte("SHA256 (ubuntu-24.04-server-cloudimg-amd64.img) = " + hex.EncodeToString(sum[:]) + "\n")
	const dir = "/releases/noble/release-20261101"
	for name, files := range map[string]map[string][]byte{
		"detached":  {"SHA256SUMS": sums, "SHA256SUMS.gpg": vendor.Sign("2026-11-01", sums)},
		"cleartext": {"SHA256SUMS": nil, "SHA256SUMS.gpg": vendor.GPG("2026-11-01", bsd, "--clearsign")},
		"tampered":  {"SHA256SUMS": append([]byte("0"), sums[1:]...), "SHA256SUMS.gpg": vendor.Sign("2026-11-01", sums)},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t)
			host := strings.TrimPrefix(s.URL, "http://")
			mirror := t.TempDir()
			for n, data := range files {
				s.files[dir+"/"+n] = data
			}
			s.files[dir+"/ubuntu-24.04-server-cloudimg-amd64.img"] = image
			s.files["/releases/noble/"] = []byte(`<a href="release-20260814/">release-20260814/</a> <a href="release-20261101/">x</a> <a href="release-20260930/">`)
			for p, data := range s.files {
				if strings.HasSuffix(p, "/") {
					continue
				}
				file := filepath.Join(mirror, host, p)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, m := range []string{"", mirror} {
				src := source(t)
				src.Mirror = m
				spec := Spec{Version: Version{URL: s.URL + "/releases/noble/", Find: `release-([0-9]{8}(?:\.[0-9]+)?)/`},
					Images:    map[string]string{"metal": s.URL + "/releases/noble/release-{version}/ubuntu-24.04-server-cloudimg-{arch}.img"},
					Checksums: "{dir}/SHA256SUMS", Digest: "sha256", Signature: Signature{URL: "{dir}/SHA256SUMS.gpg", Of: ofChecksums},
					Keys: Keys{Primary: []string{vendor.Fingerprint}, Data: vendor.Keys(today)}}
				i, _, err := Current(t.Context(), Config{OS: "ubuntu-24.04", Spec: spec, Arch: "amd64", Platform: "metal", Source: src, Now: on(today)})
				if name == "tampered" {
					if err == nil || !strings.Contains(err.Error(), "the signature is not valid") {
						t.Errorf("%v", err)
					}
				} else if err != nil || i.Version != "20261101" || i.SHA256 != hex.EncodeToString(sum[:]) || i.SignedBy != vendor.Fingerprint {
					t.Errorf("%+v, %v", i, err)
				}
			}
		})
	}
}

// TestUnsigned: where nobody signs, the version alone tells what is old.
func TestUnsigned(t *testing.T) {
	s := serve(t)
	sum := sha512.Sum512(image)
	s.files["/trixie/"] = []byte(`<a href="20261001-2618/">`)
	s.files["/trixie/20261001-2618/SHA512SUMS"] = []byte(hex.EncodeToString(sum[:]) + "  debian-13-generic-amd64-20261001-2618.qcow2\n")
	s.files["/trixie/20261001-2618/debian-13-generic-amd64-20261001-2618.qcow2"] = image
	c := Config{OS: "debian-13", Arch: "amd64", Platform: "metal", Source: source(t), SeenIn: "/notes", Spec: Spec{Version: Version{URL: s.URL + "/trixie/", Find: `(20[0-9]{6}-[0-9]+)/`},
		Images: map[string]string{"all": s.URL + "/trixie/{version}/debian-13-generic-{arch}-{version}.qcow2"}, Checksums: "{dir}/SHA512SUMS", Digest: "sha512"}}
	i, _, err := Current(t.Context(), c)
	if err != nil || i.Version != "20261001-2618" || i.SignedBy != "" {
		t.Errorf("%+v, %v", i, err)
	}
	c.Seen = Image{Version: "20261101-2700"}
	if _, _, err := Current(t.Context(), c); !errors.Is(err, ErrOlder) || !strings.Contains(err.Error(), "noted in /notes") {
		t.Errorf("%v", err)
	}
}

// TestStream: Fedora CoreOS names everything in one file.
func TestStream(t *testing.T) {
	vendor := need.NewSigner(t, "2025-06-01")
	s := serve(t)
	sum := sha256.Sum256(image)
	s.files["/image.raw.xz"], s.files["/image.raw.xz.sig"] = image, vendor.Sign("2026-11-01", image)
	s.files["/stable.json"] = fmt.Appendf(nil, `{"stream": "stable", "architectures": {"x86_64": {"artifacts": {"metal": {"release": "44.20261101.3.0", "formats": {"raw.xz": {"disk":
		{"location": %q, "signature": %q, "sha256": %q, "uncompressed-sha256": "0"}}}}}}}}`, s.URL+"/image.raw.xz", s.URL+"/image.raw.xz.sig", hex.EncodeToString(sum[:]))
	spec := Spec{Stream: s.URL + "/stable.json", Arches: map[string]string{"amd64": "x86_64"}, Images: map[string]string{"metal": "metal.raw.xz", "qemu": "qemu.qcow2.xz"},
		Signature: Signature{Of: ofImage}, Keys: Keys{Primary: []string{vendor.Fingerprint}, Data: vendor.Keys(today)}}
	c := Config{OS: "fedora-coreos-stable", Spec: spec, Arch: "amd64", Platform: "metal", Source: source(t), Now: on(today)}
	if i, _, err := Current(t.Context(), c); err != nil || i.Version != "44.20261101.3.0" || i.SignedBy != vendor.Fingerprint {
		t.Errorf("%+v, %v", i, err)
	}
	c.Platform = "qemu"
	if _, _, err := Current(t.Context(), c); err == nil || !strings.Contains(err.Error(), "names no qemu disk qcow2.xz") {
		t.Errorf("%v", err)
	}
	c.Platform = "gce"
	if _, _, err := Current(t.Context(), c); err == nil || !strings.Contains(err.Error(), "has no image for gce: --for metal, qemu") {
		t.Errorf("%v", err)
	}
}

func TestNewer(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{{"4757.2.10", "4757.2.9", true}, {"20261001-2618", "20260712-2537", true}, {"44.20260817.3.2", "44.20260707.3.1", true}, {"10.1-20251116.0", "10.1-20251116.0", false},
		{"20260814.1", "20260814", true}, {"9", "10", false}, {"", "1", false}, {"1", "", true}} {
		if got := Newer(tt.a, tt.b); got != tt.want {
			t.Errorf("%s newer than %s: %v", tt.a, tt.b, got)
		}
	}
}
