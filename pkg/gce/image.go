package gce

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	compute "google.golang.org/api/compute/v1"
)

// Image is what is known of an image that kimage baked.
type Image struct {
	File                                   string // of format gce
	OS, Kubernetes, Runtime, Network, Arch string
	ID                                     string // imageID
}

// imageLabels say what is in an image, as far as labels can.
func (c *Cloud) imageLabels(i Image) map[string]string {
	labels := c.labels()
	for k, v := range map[string]string{"os": i.OS, "kubernetes": i.Kubernetes, "runtime": i.Runtime, "network": i.Network, "arch": i.Arch} {
		labels["kimage-"+k] = clean(v)
	}
	return labels
}

// features are what the guests of all systems can do: their kernels have the drivers, and
// they boot by UEFI, which Shielded VM needs.
var features = []*compute.GuestOsFeature{{Type: "UEFI_COMPATIBLE"}, {Type: "VIRTIO_SCSI_MULTIQUEUE"}, {Type: "GVNIC"}}

const gib = 1 << 30

// CheckImage says what is wrong with a file that is to become an image.
func CheckImage(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	const remedy = "kimage build --for gce bakes one that Compute Engine takes"
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s is not a .tar.gz: %s", file, remedy)
	}
	h, err := tar.NewReader(z).Next()
	if err != nil || h.Name != "disk.raw" {
		return fmt.Errorf("%s does not hold disk.raw: %s", file, remedy)
	}
	if h.Size == 0 || h.Size%gib != 0 || h.Format&tar.FormatGNU == 0 {
		return fmt.Errorf("%s: its disk.raw is not of whole GiB in a GNU tar: %s", file, remedy)
	}
	return nil
}

// Pushed is the image in the project.
type Pushed struct {
	Name   string `json:"name"`
	Family string `json:"family"`
	SHA256 string `json:"sha256"`
	There  bool   `json:"there"` // it was before
}

// Push makes an image of a file, unless it is there.
func (c *Cloud) Push(ctx context.Context, i Image) (p Pushed, err error) {
	arch := map[string]string{"amd64": "X86_64", "arm64": "ARM64"}[i.Arch]
	if arch == "" {
		return p, fmt.Errorf("%s is for %s, which Compute Engine has no machines of", i.File, i.Arch)
	}
	f, err := os.Open(i.File)
	if err != nil {
		return p, err
	}
	defer f.Close()
	c.Report.Stage("reading %s", i.File)
	sha, md5sum, size, err := c.sums(ctx, f)
	if err != nil {
		return p, err
	}
	const digits = 12
	p = Pushed{Name: name(c.Cluster, i.OS, i.Kubernetes, sha[:digits]), Family: name(c.Cluster, i.OS), SHA256: sha}
	// A digest of 64 digits is one too long for a label.
	labels := c.imageLabels(i)
	labels[digestLabel], labels["kimage-image"] = sha[:62], clean(i.ID)
	now, there, err := c.get(ctx, images, "", p.Name)
	if err != nil {
		return p, err
	}
	if there && c.mine(images, now) && now.digest() == labels[digestLabel] {
		switch now.Status {
		case "READY":
			p.There = true
			return p, c.dropUploads(ctx)
		case "FAILED":
			if err := c.remove(ctx, images, "", p.Name); err != nil {
				return p, err
			}
		}
	}
	object := c.prefix("images", p.Name+".tar.gz")
	if !there || now.Status == "FAILED" {
		c.Report.Stage("uploading to gs://%s", c.Bucket)
		if err := c.ensureBucket(ctx); err != nil {
			return p, err
		}
		o, uploaded, err := c.object(ctx, object)
		if err != nil {
			return p, err
		}
		if !uploaded || o.Md5Hash != md5sum {
			if err := c.upload(ctx, f, size, object, md5sum); err != nil {
				return p, err
			}
		}
	}
	c.Report.Stage("making the image %s", p.Name)
	body := &compute.Image{Name: p.Name, Family: p.Family, Architecture: arch, GuestOsFeatures: features, Labels: labels,
		Description: fmt.Sprintf("%s with Kubernetes %s, made by kimage; sha256 %s", i.OS, i.Kubernetes, sha),
		RawDisk:     &compute.ImageRawDisk{Source: "https://storage.googleapis.com/" + c.Bucket + "/" + object, ContainerType: "TAR"}}
	if _, differs, err := c.ensure(ctx, resource{kind: images, name: p.Name, body: body, digest: labels[digestLabel]}); err != nil {
		return p, err
	} else if differs && c.DryRun == nil && there {
		return p, fmt.Errorf("BUG: image %s has another digest than its name says", p.Name)
	}
	if err := c.ready(ctx, p.Name); err != nil {
		return p, err
	}
	return p, c.dropUploads(ctx)
}

// sums reads a file once for both digests that are wanted of it.
func (c *Cloud) sums(ctx context.Context, f *os.File) (sha, md5sum string, size int64, err error) {
	fi, err := f.Stat()
	if err != nil {
		return "", "", 0, err
	}
	bar := c.Report.Bar("reading", fi.Size())
	defer bar.Done()
	s, m := sha256.New(), md5.New()
	_, err = io.Copy(io.MultiWriter(s, m), bar.Reader(&cancelled{ctx, f}))
	return hex.EncodeToString(s.Sum(nil)), base64.StdEncoding.EncodeToString(m.Sum(nil)), fi.Size(), err
}

// cancelled reads until ctx ends.
type cancelled struct {
	ctx context.Context
	in  io.Reader
}

func (r *cancelled) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.in.Read(p)
}

// ready waits for an image whose making was begun by a run that was cut off.
func (c *Cloud) ready(ctx context.Context, name string) error {
	if c.DryRun != nil {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, c.Operation)
	defer cancel()
	for wait := firstWait; ; wait = min(wait*2, longest) {
		f, there, err := c.get(limit, images, "", name)
		switch {
		case err == nil && !there:
			return fmt.Errorf("image %s vanished while it was made: run this again", name)
		case err == nil && f.Status == "READY":
			return nil
		case err == nil && f.Status == "FAILED":
			return fmt.Errorf("Google could not make the image %s: run this again", name)
		case err == nil:
			err = sleep(limit, wait)
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return fmt.Errorf("image %s is not ready after %s: run this again to go on waiting, or allow more by --timeout", name, c.Operation)
		}
		if err != nil {
			return err
		}
	}
}

// dropUploads deletes what images were made of.
func (c *Cloud) dropUploads(ctx context.Context) error {
	objects, err := c.objects(ctx)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if strings.HasPrefix(o, c.prefix("images", "")) {
			if err := c.removeObject(ctx, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// FindImage finds the cluster's newest image that has what its file wants, or the one
// that is named, whoever's it is.
func (c *Cloud) FindImage(ctx context.Context, named string, want Image) (string, error) {
	if named != "" {
		if strings.Contains(named, "/") { // another project's
			return named, nil
		}
		_, there, err := c.get(ctx, images, "", named)
		if err == nil && !there {
			err = fmt.Errorf("project %s has no image %s: kimage gce push makes one", c.Project, named)
		}
		return c.link(images, "", named), err
	}
	all, err := c.list(ctx, images)
	if err != nil {
		return "", err
	}
	newest := placed{}
	for _, i := range all {
		fits := i.Status == "READY"
		for k, v := range c.imageLabels(want) {
			fits = fits && (i.Labels[k] == v || k == "kimage-arch")
		}
		if fits && i.CreationTimestamp >= newest.CreationTimestamp {
			newest = i
		}
	}
	if newest.Name == "" {
		return "", fmt.Errorf("project %s has no image of cluster %s with %s, Kubernetes %s, %s and %s: kimage build --for gce, then kimage gce push IMAGE", c.Project, c.Cluster, want.OS, want.Kubernetes, want.Runtime, want.Network)
	}
	return c.link(images, "", newest.Name), nil
}
