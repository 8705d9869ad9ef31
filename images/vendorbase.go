package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kimage-project/kimage/images/vendors"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/fetch"
)

// autoBase decides where the system comes from: its vendor's image, or packages, where
// there are some and the vendor cannot be reached. What is pinned stays.
func (b *Builder) autoBase(ctx context.Context) (base, error) {
	if b.os.Packages.Suite == "" || b.config.Arch != "amd64" {
		return b.vendorBase(ctx)
	}
	source := b.vendorSource()
	_, pinned := b.lock.vendor(b.vendorKey(b.config.For))
	_, packages := b.lock.Bases[lockKey(b.os.Name, b.config.Arch, basePackages)]
	for key := range b.lock.Vendors { // of another platform
		pinned = pinned || strings.HasPrefix(key, lockKey(b.os.Name, b.config.Arch)+"/")
	}
	switch {
	case pinned:
		return b.vendorBase(ctx)
	case packages && b.lock.mode != LockUpdate || !b.os.Vendor.Known():
		return b.packagesBase(ctx)
	case source.Mirror != "" && (source.Local() || !source.Offline):
		return b.vendorBase(ctx)
	case source.Offline: // what an online run chose is in the cache
		if _, err := b.seen(b.config.For); err == nil {
			return b.vendorBase(ctx)
		}
		return b.packagesBase(ctx)
	case fetch.Reachable(ctx, b.os.Vendor.Asked(b.config.Arch)):
		return b.vendorBase(ctx)
	}
	b.report.Logf("base: the vendor cannot be reached, so it is made from packages")
	return b.packagesBase(ctx)
}

func (b *Builder) vendorSource() fetch.Source {
	return fetch.Source{Mirror: b.config.Mirror, Cache: b.cache, Offline: b.config.Offline, Report: b.report}
}

// vendorKey is what a lock calls the vendor's image for a platform, or a file of its live
// system.
func (b *Builder) vendorKey(platform string) string {
	return lockKey(b.os.Name, b.config.Arch, platform)
}

// vendorBase takes the vendor's image for the platform.
func (b *Builder) vendorBase(ctx context.Context) (base, error) {
	image, file, err := b.vendorImage(ctx, b.config.For)
	if err == nil {
		err = b.lock.do(pinVendor(b.vendorKey(b.config.For), image))
	}
	if err != nil {
		return base{}, err
	}
	entry, err := b.unpackDownload(ctx, image.SHA256+image.SHA512, image.URL, file)
	info := baseInfo{Origin: image.URL, Version: image.Version, VerifiedBy: "a checksum beside the download, which is not signed", Signed: image.SignedBy != ""}
	if info.Signed {
		info.VerifiedBy = "OpenPGP signature by " + image.SignedBy
	}
	return base{entry: entry, info: info, file: file}, err
}

// vendorImage is the vendor's image for a platform, or a file of its live system, in the
// cache: the pinned one, or the current one; offline the last one that was current.
func (b *Builder) vendorImage(ctx context.Context, platform string) (image vendors.Image, file string, err error) {
	if !b.os.Vendor.Known() {
		return image, "", fmt.Errorf("no vendor of %s is known: --base packages, FILE or URL", b.os.Title)
	}
	source := b.vendorSource()
	seen, err := b.seen(platform)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return image, "", err
	}
	image, pinned := b.lock.vendor(b.vendorKey(platform))
	switch {
	case pinned:
		file, err = vendors.Locked(ctx, source, b.os.Vendor, image)
		switch {
		case errors.Is(err, fetch.ErrUnavailable):
			err = fmt.Errorf("%w; %s pins %s %s: its vendor may have removed it (kimage lock --update takes the current one)", err, b.config.Lock, b.os.Name, image.Version)
		case err != nil && !errors.Is(err, fetch.ErrOffline) && ctx.Err() == nil:
			err = fmt.Errorf("%w: %s: %w (kimage lock --update takes the current one)", ErrLock, b.config.Lock, err)
		}
	case b.lock.mode == LockFixed:
		err = b.lock.lacks(false, "the vendor's image "+b.vendorKey(platform))
	case !source.Offline || source.Local():
		image, file, err = b.currentImage(ctx, platform, source, seen)
	case err != nil:
		err = fmt.Errorf("the vendor's image of %s for %s: %w", b.os.Name, platform, fetch.ErrOffline)
	default:
		image = seen
		file, err = vendors.Locked(ctx, source, b.os.Vendor, image)
	}
	return image, file, err
}

// currentImage asks the vendor, and remembers the answer.
func (b *Builder) currentImage(ctx context.Context, platform string, source fetch.Source, seen vendors.Image) (vendors.Image, string, error) {
	c := vendors.Config{OS: b.os.Name, Spec: b.os.Vendor, Arch: b.config.Arch, Platform: platform, Seen: seen, SeenIn: b.seenFile(platform), Source: source}
	if was := b.lock.Vendors[b.vendorKey(platform)]; was.SignedAt.After(seen.SignedAt) || was.SignedAt.Equal(seen.SignedAt) && vendors.Newer(was.Version, seen.Version) {
		c.Seen, c.SeenIn = was, b.config.Lock
	}
	image, file, err := vendors.Current(ctx, c)
	if err == nil {
		err = b.remember(platform, image)
	}
	if errors.Is(err, fetch.ErrUnavailable) {
		err = fmt.Errorf("%w; without a way to the vendor: --mirror DIR or URL, --base FILE or URL, or --offline if it was fetched before", err)
	}
	return image, file, err
}

// seenFile is where the newest vendor's image is noted that was verified on this machine by
// these keys: an older one is refused, and offline it is the one.
func (b *Builder) seenFile(platform string) string {
	v := b.os.Vendor
	trust := cache.Key(append([]string{v.Version.URL, v.Stream}, v.Keys.Primary...)...)
	return filepath.Join(b.cache.Root, "vendors", strings.Join([]string{b.os.Name, b.config.Arch, platform, trust[:8]}, "-")+".json")
}

// seen returns what was remembered; fs.ErrNotExist if nothing was.
func (b *Builder) seen(platform string) (vendors.Image, error) {
	var i vendors.Image
	data, err := os.ReadFile(b.seenFile(platform))
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(data, &i); err != nil {
		return i, fmt.Errorf("%s: %w; remove it if it was damaged", b.seenFile(platform), err)
	}
	return i, nil
}

// remember notes an image, unless another kimage has noted a later one meanwhile.
func (b *Builder) remember(platform string, i vendors.Image) error {
	if now, err := b.seen(platform); err == nil && now.SignedAt.After(i.SignedAt) {
		return nil
	}
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.seenFile(platform)), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(b.seenFile(platform), append(data, '\n'), 0o644)
}
