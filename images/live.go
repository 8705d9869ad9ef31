package images

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kimage-project/kimage/images/vendors"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/fetch"
)

// Live is a vendor's system that machines boot from the network, as files in the cache:
// found, verified and pinned as the vendor's images are.
type Live struct {
	Version        string
	Kernel, Initrd string
}

// Live is the one of the vendor of the OS; nothing, if it has none. Drivers fit one kernel
// alone, and the vendor may publish a version between two questions: then it is asked anew.
func (b *Builder) Live(ctx context.Context) (l Live, err error) {
	if b.os.Vendor.Live.Kernel == "" {
		return l, nil
	}
	var kernel, initrd vendors.Image
	for range 2 {
		if kernel, l.Kernel, err = b.vendorImage(ctx, vendors.LiveKernel); err != nil {
			return l, err
		}
		if initrd, l.Initrd, err = b.vendorImage(ctx, vendors.LiveInitrd); err != nil {
			return l, err
		}
		if kernel.Version == initrd.Version {
			break
		}
	}
	if kernel.Version != initrd.Version {
		return l, fmt.Errorf("the live system of %s has a kernel of %s and an initramfs of %s: kimage lock --update takes the current ones", b.os.Name, kernel.Version, initrd.Version)
	}
	l.Version = kernel.Version
	for _, file := range []string{l.Kernel, l.Initrd} { // verified when they were stored
		if err := b.cache.Verify(ctx, filepath.Dir(file)); err != nil {
			return l, err
		}
	}
	err = errors.Join(b.lock.do(pinVendor(b.vendorKey(vendors.LiveKernel), kernel)), b.lock.do(pinVendor(b.vendorKey(vendors.LiveInitrd), initrd)))
	if err != nil {
		return l, err
	}
	return l, b.lock.save()
}

// livePinned says whether the lock has a live system: machines are installed from here.
func (b *Builder) livePinned() bool {
	_, ok := b.lock.Vendors[b.vendorKey(vendors.LiveKernel)]
	return ok
}

// mirrorLive writes the live system that is pinned below dir.
func (b *Builder) mirrorLive(ctx context.Context, dir string) error {
	if !b.livePinned() {
		return nil
	}
	l, err := b.Live(ctx)
	if err != nil {
		return err
	}
	for platform, file := range map[string]string{vendors.LiveKernel: l.Kernel, vendors.LiveInitrd: l.Initrd} {
		at, err := fetch.MirrorPath(dir, b.lock.Vendors[b.vendorKey(platform)].URL)
		if err != nil {
			return err
		}
		if err := atomicfile.CopyFile(at, file); err != nil {
			return err
		}
	}
	return nil
}
