package images

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/decompress"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/fetch"
	"github.com/kimage-project/kimage/pkg/qcow2"
	"github.com/kimage-project/kimage/pkg/sparse"
	"github.com/kimage-project/kimage/pkg/vhd"
)

const (
	baseAuto     = "auto"
	baseVendor   = "vendor"
	basePackages = "packages"
	baseDisk     = "disk.raw" // the image in a cache entry
)

// base is a disk image in the cache.
type base struct {
	entry string // cache entry
	info  baseInfo
	file  string // as its vendor publishes it; empty: not a vendor's
	pin   string // what a lock calls it, if it is not a vendor's
}

func (b base) disk() string { return filepath.Join(b.entry, baseDisk) }

// findBase makes or unpacks the base into the cache.
func (b *Builder) findBase(ctx context.Context) (base, error) {
	var found base
	var err error
	switch given := b.config.Base; {
	case given == "" || given == baseAuto:
		found, err = b.autoBase(ctx)
	case given == baseVendor:
		found, err = b.vendorBase(ctx)
	case given == basePackages:
		found, err = b.packagesBase(ctx)
	case strings.Contains(given, "://"):
		found, err = b.urlBase(ctx, given)
	default:
		found, err = b.fileBase(ctx, given)
	}
	if err != nil {
		return base{}, err
	}
	if found.info.Digest, err = b.cache.Digest(found.entry, baseDisk); err != nil {
		return base{}, err
	}
	if found.pin != "" {
		if err := b.lock.do(pinBase(lockKey(b.os.Name, b.config.Arch, found.pin), found.info.Digest, b.vendorKey(b.config.For))); err != nil {
			return base{}, err
		}
	}
	fi, err := os.Stat(found.disk())
	if err != nil {
		return base{}, err
	}
	found.info.SizeBytes = fi.Size()
	return found, nil
}

func (b *Builder) packagesBase(ctx context.Context) (base, error) {
	if b.os.Packages.Suite == "" {
		return base{}, fmt.Errorf("%s cannot be made from packages: --base vendor, FILE or URL", b.os.Title)
	}
	if b.config.Arch != "amd64" {
		return base{}, fmt.Errorf("a base from packages can be for amd64 alone, not %s: --base vendor, FILE or URL", b.config.Arch)
	}
	recipe := []string{"base-2", b.config.Arch, b.config.AptMirror, b.os.inputs()}
	dir, err := files.ReadDir("files/debian")
	if err != nil {
		return base{}, err
	}
	for _, f := range dir {
		recipe = append(recipe, string(embedded("debian/"+f.Name())))
	}
	key := cache.Key(recipe...)
	pinned := b.lock.Bases[lockKey(b.os.Name, b.config.Arch, basePackages)]
	if err := b.lock.lacks(pinned != "", "a base of "+b.os.Name+" from packages"); err != nil {
		return base{}, err
	}
	if b.lock.mode == LockUpdate && !b.config.Offline {
		b.cache.Forget("base", key)
	}
	fill := func(ctx context.Context, dir string) error {
		if b.config.Offline {
			return fmt.Errorf("the base from packages: %w", fetch.ErrOffline)
		}
		if err := doctor.Check(doctor.Bake, doctor.BasePackages); err != nil {
			return fmt.Errorf("making a base from packages: %w", err)
		}
		scratch, err := b.cache.Scratch()
		if err != nil {
			return err
		}
		defer scratch.Remove()
		// mmdebstrap in a user namespace writes here under another identity.
		if err := os.Chmod(scratch.Path, 0o755); err != nil {
			return err
		}
		archive, err := mirror(b.config.AptMirror)
		if err != nil {
			return err
		}
		b.report.Logf("%s from packages (about a minute, once)", b.os.Title)
		defer b.report.Step("installing packages")()
		list, err := packagesBase{os: b.os, mirror: archive, scratch: scratch.Path, unixTime: unixTime}.make(ctx, filepath.Join(dir, baseDisk))
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "packages"), []byte(strings.Join(list, "\n")), 0o644)
	}
	entry, hit, err := b.cache.Dir(ctx, "base", key, fill)
	if err != nil {
		return base{}, err
	}
	// The archive may have what is pinned when the cache has an older one.
	if digest, _ := b.cache.Digest(entry, baseDisk); hit && pinned != "" && digest != pinned && b.lock.mode != LockUpdate && !b.config.Offline {
		b.report.Logf("the cache has another base than the one that is pinned: it is made anew")
		b.cache.Forget("base", key)
		if entry, _, err = b.cache.Dir(ctx, "base", key, fill); err != nil {
			return base{}, err
		}
	}
	list, err := os.ReadFile(filepath.Join(entry, "packages"))
	if err != nil {
		return base{}, err
	}
	return base{entry: entry, pin: basePackages, info: baseInfo{Origin: "Debian packages, suite " + b.os.Packages.Suite, VerifiedBy: "Debian's archive key", Signed: true,
		Packages: strings.Split(string(list), "\n")}}, nil
}

// fileBase unpacks an image file, named in the cache by its content.
func (b *Builder) fileBase(ctx context.Context, name string) (base, error) {
	f, err := os.Open(name)
	if err != nil {
		return base{}, fmt.Errorf("--base: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return base{}, err
	case fi.IsDir(): // a mirror
		b.config.Mirror = name
		return b.vendorBase(ctx)
	case !fi.Mode().IsRegular():
		return base{}, fmt.Errorf("--base %s is neither a file nor a mirror's directory", name)
	}
	sum, _, err := sparse.SHA256(ctx, f, nil)
	if err != nil {
		return base{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return base{}, err
	}
	entry, err := b.unpackBase(ctx, sum, name, func(context.Context) (*os.File, error) { return os.Open(name) })
	return base{entry: entry, pin: b.fileKey(name), info: baseInfo{Origin: filepath.Base(name) + " sha256:" + sum, VerifiedBy: "nobody: a file that was given"}}, err
}

// fileKey is what a lock calls a file: by its way from the lock.
func (b *Builder) fileKey(name string) string {
	if abs, err := filepath.Abs(name); err == nil {
		name = abs
	}
	if dir, err := filepath.Abs(filepath.Dir(b.lock.file)); err == nil {
		if rel, err := filepath.Rel(dir, name); err == nil {
			name = rel
		}
	}
	return "file:" + filepath.ToSlash(name)
}

// urlKey is what a lock calls a URL: without what lets people in, which changes.
func urlKey(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// urlBase downloads an image. The checksum stands after a # in the URL, or
// in URL.sha256 or SHA256SUMS or SHA512SUMS beside it.
func (b *Builder) urlBase(ctx context.Context, url string) (base, error) {
	src := fetch.Source{Cache: b.cache, Offline: b.config.Offline, Fresh: b.config.LockMode == LockUpdate, Report: b.report}
	plain, pinned, _ := strings.Cut(url, "#")
	req, by := fetch.Request{URL: plain}, "the checksum in --base"
	var err error
	if pinned != "" {
		algorithm, sum, ok := strings.Cut(pinned, ":")
		switch {
		case ok && algorithm == "sha256" && len(sum) == 64:
			req.SHA256 = sum
		case ok && algorithm == "sha512" && len(sum) == 128:
			req.SHA512 = sum
		default:
			return base{}, fmt.Errorf("--base %s: what follows # must be sha256:HEX or sha512:HEX", url)
		}
	} else if req, by, err = findChecksum(ctx, src, plain); err != nil {
		return base{}, err
	}
	local, err := src.Get(ctx, req)
	if errors.Is(err, fetch.ErrUnavailable) {
		return base{}, fmt.Errorf("--base: %w", err)
	}
	if err != nil {
		return base{}, err
	}
	entry, err := b.unpackDownload(ctx, req.SHA256+req.SHA512, plain, local)
	return base{entry: entry, pin: urlKey(plain), info: baseInfo{Origin: plain, VerifiedBy: by}}, err
}

// unpackDownload unpacks a file of the cache.
func (b *Builder) unpackDownload(ctx context.Context, sum, name, local string) (string, error) {
	return b.unpackBase(ctx, sum, name, func(ctx context.Context) (*os.File, error) {
		// Verified when it was stored; what is read now must still be that.
		if err := b.cache.Verify(ctx, filepath.Dir(local)); err != nil {
			return nil, err
		}
		return os.Open(local)
	})
}

func findChecksum(ctx context.Context, src fetch.Source, url string) (fetch.Request, string, error) {
	dir, name := url[:strings.LastIndex(url, "/")], url[strings.LastIndex(url, "/")+1:]
	var tried []error
	for _, c := range []struct {
		url    string
		digits int
	}{{url + ".sha256", 64}, {dir + "/SHA256SUMS", 64}, {dir + "/SHA512SUMS", 128}} {
		data, err := src.FetchSmall(ctx, c.url)
		if err != nil {
			tried = append(tried, err)
			continue
		}
		sum, err := fetch.Checksum(data, name, c.digits)
		if err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", c.url, err))
			continue
		}
		r := fetch.Request{URL: url, SHA256: sum}
		if c.digits == 128 {
			r = fetch.Request{URL: url, SHA512: sum}
		}
		return r, c.url[strings.LastIndex(c.url, "/")+1:] + " beside the download", nil
	}
	return fetch.Request{}, "", fmt.Errorf("no checksum for %s (add one: --base '%s#sha256:HEX'): %w", url, url, errors.Join(tried...))
}

// unpackBase turns an image in any supported container into a raw disk in the cache.
func (b *Builder) unpackBase(ctx context.Context, sum, name string, open func(context.Context) (*os.File, error)) (string, error) {
	entry, _, err := b.cache.Dir(ctx, "base", cache.Key("unpacked-2", sum), func(ctx context.Context, dir string) error {
		f, err := open(ctx)
		if err != nil {
			return err
		}
		defer f.Close()
		b.report.Logf("unpacking %s", filepath.Base(name))
		if err := toRaw(ctx, f, filepath.Join(dir, baseDisk), dir); err != nil {
			return fmt.Errorf("base %s: %w", name, err)
		}
		return nil
	})
	return entry, err
}

// toRaw writes the disk in f, which may be compressed and may be qcow2, to raw.
func toRaw(ctx context.Context, f *os.File, raw, scratch string) error {
	head := make([]byte, 8)
	if _, err := io.ReadFull(f, head); err != nil {
		return errors.New("the file is too short for a disk image")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out, err := os.OpenFile(raw, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	if decompress.Detect(head) != "" {
		z, err := decompress.Reader(f)
		if err != nil {
			return err
		}
		defer z.Close()
		disk, err := untar(z)
		if err != nil {
			return fmt.Errorf("unpacking (is the file complete?): %w", err)
		}
		if _, _, err := sparse.CopyStream(ctx, out, disk, nil); err != nil {
			return fmt.Errorf("unpacking (is the file complete?): %w", err)
		}
		if f = out; qcow2.Detect(f) {
			inner := filepath.Join(scratch, "inner")
			if err := os.Rename(raw, inner); err != nil {
				return err
			}
			defer os.Remove(inner)
			if out, err = os.OpenFile(raw, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644); err != nil {
				return err
			}
			defer out.Close()
		}
	}
	if qcow2.Detect(f) {
		img, err := qcow2.Open(f)
		if err != nil {
			return err
		}
		_, err = sparse.Copy(ctx, out, img, img.SizeBytes(), nil, nil)
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	size, _, err := vhd.DiskBytes(f, fi.Size())
	if err != nil {
		return err
	}
	if f == out {
		return out.Truncate(size)
	}
	_, err = sparse.Copy(ctx, out, f, size, nil, nil) // zeros that were written become holes
	return err
}

// untar returns the disk in r: disk.raw, if r is a tar, as Compute Engine's images are,
// else r.
func untar(r io.Reader) (io.Reader, error) {
	const block, magicAt = 512, 257
	br := bufio.NewReaderSize(r, 1<<20)
	head, err := br.Peek(block)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(head) < block || string(head[magicAt:magicAt+5]) != "ustar" {
		return br, nil
	}
	t := tar.NewReader(br)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil, errors.New("the tar has no disk.raw")
		}
		if err != nil {
			return nil, err
		}
		if path.Base(h.Name) == "disk.raw" {
			return t, nil
		}
	}
}
