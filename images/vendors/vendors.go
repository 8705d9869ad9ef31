package vendors

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/fetch"
	"github.com/kimage-project/kimage/pkg/pgp"
)

// Image is one vendor's image, verified.
type Image struct {
	Version  string    `json:"version" yaml:"version"`
	URL      string    `json:"url" yaml:"url"`
	SHA256   string    `json:"sha256,omitempty" yaml:"sha256,omitempty"` // hex; this or SHA512
	SHA512   string    `json:"sha512,omitempty" yaml:"sha512,omitempty"`
	SignedBy string    `json:"signedBy,omitempty" yaml:"signedBy,omitempty"` // fingerprint of the primary key; empty: the vendor does not sign
	SignedAt time.Time `json:"signedAt,omitzero" yaml:"signedAt,omitempty"`
}

// Config says which image is wanted.
type Config struct {
	OS       string // for messages
	Spec     Spec
	Arch     string
	Platform string
	Seen     Image  // the newest that was seen before; an older one is refused
	SeenIn   string // where that is noted, for messages
	Source   fetch.Source
	Now      func() time.Time // nil: the machine's clock
}

// ErrOlder says that a server offers an image older than one that was seen before.
var ErrOlder = errors.New("older than what was current before")

// found is an image before its signature is known to be right.
type found struct {
	Image
	signature []byte // of the image
}

// Current asks the vendor for the current image, downloads it and verifies it. The
// file lies in the cache.
func Current(ctx context.Context, c Config) (Image, string, error) {
	if c.Spec.image(c.Platform) == "" {
		return Image{}, "", fmt.Errorf("the vendor of %s has no image for %s: --for %s", c.OS, c.Platform, strings.Join(c.Spec.For(), ", "))
	}
	k, err := c.keys()
	if err != nil {
		return Image{}, "", err
	}
	find := k.find
	if c.Spec.Stream != "" {
		find = k.findInStream
	}
	f, err := find(ctx)
	if err != nil {
		return Image{}, "", fmt.Errorf("the current image of %s: %w", c.OS, err)
	}
	if err := c.notOlder(f.Image); err != nil {
		return Image{}, "", err
	}
	c.Source.Report.Logf("%s %s: %s", c.OS, f.Version, f.URL)
	file, err := k.download(ctx, &f)
	if err != nil {
		return Image{}, "", fmt.Errorf("the image of %s: %w", c.OS, err)
	}
	return f.Image, file, nil
}

// Locked downloads an image that is pinned by its digest: whoever pinned it has verified
// the signature. Of a vendor that signs, it has to be one by the vendor's key.
func Locked(ctx context.Context, source fetch.Source, spec Spec, i Image) (string, error) {
	switch {
	case i.SHA256 == "" && i.SHA512 == "" || i.URL == "":
		return "", errors.New("what is pinned has no URL or no digest")
	case spec.signs() && !slices.Contains(spec.Keys.Primary, i.SignedBy):
		return "", fmt.Errorf("%s is pinned as signed by %q, which is not its vendor's key", i.URL, i.SignedBy)
	}
	return source.Get(ctx, fetch.Request{URL: i.URL, SHA256: i.SHA256, SHA512: i.SHA512})
}

// notOlder refuses what a server that is behind, or that somebody set back, offers. What
// a signature says counts more than a version, which nobody signs.
func (c Config) notOlder(i Image) error {
	floor, since := c.Spec.Version.AtLeast, "when this kimage was made"
	if !c.Spec.signs() && (floor == "" || Newer(c.Seen.Version, floor)) {
		floor, since = c.Seen.Version, "noted in "+c.SeenIn
	}
	signed, of := c.Spec.Version.SignedSince, "when this kimage was made"
	if c.Seen.SignedAt.After(signed) {
		signed, of = c.Seen.SignedAt, "of "+c.Seen.Version+", noted in "+c.SeenIn
	}
	switch {
	case floor != "" && Newer(floor, i.Version):
		return fmt.Errorf("%s offers %s %s, %w: %s, %s. Its mirror may be behind, or somebody plays an old image back: try later, or another --mirror; an old image on purpose is --base URL",
			i.URL, c.OS, i.Version, ErrOlder, floor, since)
	case !i.SignedAt.IsZero() && i.SignedAt.Before(signed):
		return fmt.Errorf("%s, called %s %s, was signed on %s, %w: %s, %s. Somebody plays an old image back: try another --mirror",
			i.URL, c.OS, i.Version, i.SignedAt.Format(time.DateOnly), ErrOlder, signed.Format(time.DateOnly), of)
	}
	return nil
}

// Asked is the URL that is asked for what is current.
func (s Spec) Asked(arch string) string {
	if s.Stream != "" {
		return s.Stream
	}
	return strings.ReplaceAll(s.Version.URL, "{arch}", cmp.Or(s.Arches[arch], arch))
}

// resolver finds one image.
type resolver struct {
	Config
	arch string // as the vendor calls it
	pgp  *pgp.Keys
}

func (c Config) keys() (*resolver, error) {
	r := &resolver{Config: c, arch: cmp.Or(c.Spec.Arches[c.Arch], c.Arch)}
	if !c.Spec.signs() {
		return r, nil
	}
	var err error
	if r.pgp, err = pgp.ReadKeys(c.Spec.Keys.Data, c.Spec.Keys.Primary, c.Now); err != nil {
		return nil, fmt.Errorf("the keys of %s: %w", c.OS, err)
	}
	return r, nil
}

func (r *resolver) expand(template, version, url string) string {
	dir, _ := path.Split(url)
	return strings.NewReplacer("{arch}", r.arch, "{version}", version, "{url}", url, "{dir}", strings.TrimSuffix(dir, "/")).Replace(template)
}

// find asks for the version, then for the digest.
func (r *resolver) find(ctx context.Context) (found, error) {
	at := r.Spec.Asked(r.Arch)
	data, err := r.Source.FetchFresh(ctx, at)
	if err != nil {
		return found{}, err
	}
	re, err := regexp.Compile(r.expand(r.Spec.Version.Find, "", ""))
	if err != nil {
		return found{}, err
	}
	var f found
	for _, m := range re.FindAllSubmatch(data, -1) {
		if v := string(m[1]); f.Version == "" || Newer(v, f.Version) {
			f.Version = v
		}
	}
	if f.Version == "" {
		return found{}, fmt.Errorf("%s names no version (sought: %s)", at, re)
	}
	f.URL = r.expand(r.Spec.image(r.Platform), f.Version, "")
	sumsURL := r.expand(r.Spec.Checksums, f.Version, f.URL)
	sums, err := r.Source.FetchFresh(ctx, sumsURL)
	if err != nil {
		return found{}, err
	}
	if r.Spec.Signature.Of == ofChecksums {
		if sums, f.Image, err = r.signedChecksums(ctx, sums, sumsURL, f.Image); err != nil {
			return found{}, err
		}
	}
	sum, err := fetch.Checksum(sums, path.Base(f.URL), digits[r.Spec.Digest])
	if err != nil {
		return found{}, fmt.Errorf("%s: %w", sumsURL, err)
	}
	if r.Spec.Digest == "sha512" {
		f.SHA512 = sum
	} else {
		f.SHA256 = sum
	}
	if r.Spec.Signature.Of == ofImage {
		f.signature, err = r.Source.FetchFresh(ctx, r.expand(r.Spec.Signature.URL, f.Version, f.URL))
	}
	return f, err
}

// signedChecksums verifies the signature of a checksum file and returns what was signed.
func (r *resolver) signedChecksums(ctx context.Context, sums []byte, sumsURL string, i Image) ([]byte, Image, error) {
	at := r.expand(r.Spec.Signature.URL, i.Version, i.URL)
	signature, err := r.Source.FetchFresh(ctx, at)
	if err != nil {
		return nil, i, err
	}
	var s pgp.Signed
	err = r.withKeys(ctx, func() (err error) {
		if pgp.IsCleartext(signature) {
			sums, s, err = r.pgp.Cleartext(signature)
			return err
		}
		s, err = r.pgp.Verify(strings.NewReader(string(sums)), signature)
		return err
	})
	if err != nil {
		return nil, i, fmt.Errorf("%s, signature %s: %w", sumsURL, at, err)
	}
	i.SignedBy, i.SignedAt = s.By, s.At
	return sums, i, nil
}

// withKeys verifies by the keys at hand, and once more by a newer copy if they do not do.
func (r *resolver) withKeys(ctx context.Context, verify func() error) error {
	err := verify()
	if !errors.Is(err, pgp.ErrKey) || r.Spec.Keys.URL == "" {
		return err
	}
	data, ferr := r.Source.FetchFresh(ctx, r.Spec.Keys.URL)
	if ferr != nil {
		return fmt.Errorf("%w (a newer copy of the vendor's key was not to be had: %w)", err, ferr)
	}
	k, kerr := pgp.ReadKeys(data, r.Spec.Keys.Primary, r.Now)
	if kerr != nil {
		return fmt.Errorf("%w (%s: %w)", err, r.Spec.Keys.URL, kerr)
	}
	r.pgp = k
	return verify()
}

// download gets the image; its signature is verified while it arrives.
func (r *resolver) download(ctx context.Context, f *found) (string, error) {
	req := fetch.Request{URL: f.URL, SHA256: f.SHA256, SHA512: f.SHA512}
	if r.Spec.Signature.Of != ofImage {
		return r.Source.Get(ctx, req)
	}
	// Not after half a gigabyte.
	if err := r.withKeys(ctx, func() error { return r.pgp.Usable(f.signature) }); err != nil {
		return "", fmt.Errorf("the signature of %s: %w", f.URL, err)
	}
	s, err := r.pgp.Claims(f.signature)
	if err != nil {
		return "", fmt.Errorf("the signature of %s: %w", f.URL, err)
	}
	f.SignedBy, f.SignedAt = s.By, s.At
	if err := r.notOlder(f.Image); err != nil { // its word is enough for that
		return "", err
	}
	digest := sha256.Sum256(f.signature)
	req.Judged = "signed by " + strings.Join(r.Spec.Keys.Primary, " or ") + ": " + hex.EncodeToString(digest[:])
	req.Judge = func() fetch.Judge { return judge{r.pgp.Judge(f.signature)} }
	return r.Source.Get(ctx, req)
}

// judge is a pgp.Judge whose verdict is yes or no.
type judge struct{ *pgp.Judge }

func (j judge) Verdict() error {
	_, err := j.Judge.Verdict()
	return err
}

// findInStream reads a stream of Fedora CoreOS
// (https://docs.fedoraproject.org/en-US/fedora-coreos/stream-metadata/).
func (r *resolver) findInStream(ctx context.Context) (found, error) {
	data, err := r.Source.FetchFresh(ctx, r.Spec.Stream)
	if err != nil {
		return found{}, err
	}
	type file struct {
		Location, Signature, SHA256 string
	}
	var stream struct {
		Architectures map[string]struct {
			Artifacts map[string]struct {
				Release string
				Formats map[string]map[string]file
			}
		}
	}
	if err := json.Unmarshal(data, &stream); err != nil {
		return found{}, fmt.Errorf("%s: %w", r.Spec.Stream, err)
	}
	artifact, format, _ := strings.Cut(r.Spec.image(r.Platform), ".")
	a := stream.Architectures[r.arch].Artifacts[artifact]
	disk := a.Formats[format]["disk"]
	if a.Release == "" || disk.Location == "" || len(disk.SHA256) != digits["sha256"] || disk.Signature == "" {
		return found{}, fmt.Errorf("%s names no %s disk %s for %s with digest and signature", r.Spec.Stream, artifact, format, r.arch)
	}
	for _, at := range []string{disk.Location, disk.Signature} { // nobody signs the stream
		if !strings.HasPrefix(at, "https://") && !strings.HasPrefix(at, "http://") {
			return found{}, fmt.Errorf("%s names %q, which is no URL of the web", r.Spec.Stream, at)
		}
	}
	f := found{Image: Image{Version: a.Release, URL: disk.Location, SHA256: disk.SHA256}}
	f.signature, err = r.Source.FetchFresh(ctx, disk.Signature)
	return f, err
}

var runs = regexp.MustCompile(`[0-9]+|[^0-9]+`)

// Newer compares versions run by run, numbers as numbers.
func Newer(a, b string) bool {
	as, bs := runs.FindAllString(a, -1), runs.FindAllString(b, -1)
	for i := range min(len(as), len(bs)) {
		x, y := as[i], bs[i]
		if x[0] >= '0' && x[0] <= '9' && y[0] >= '0' && y[0] <= '9' {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) > len(y)
			}
		}
		if x != y {
			return x > y
		}
	}
	return len(as) > len(bs)
}
