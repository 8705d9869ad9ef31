package components

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/debs"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/fetch"
	"github.com/kimage-project/kimage/pkg/gobuild"
	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/tree"
)

// userlandSuite and userlandPackages are what kube-proxy and flannel call:
// iptables in both flavours, nft, conntrack; coreutils for init containers.
const userlandSuite = "trixie"

var userlandPackages = []string{"iptables", "nftables", "conntrack", "coreutils"}

// imageTime is when every assembled image says it was made.
var imageTime = time.Unix(1700000000, 0)

func (r *resolver) image(ctx context.Context, im imageRecipe) (Image, error) {
	ref := r.row.expand(im.Ref, r.row["version"], r.Arch, "")
	out := Image{Ref: ref, Role: im.Role}
	var err error
	if r.mode == Source {
		out.Origin, out.VerifiedBy = "assembled from source", "Go checksum database"
		if im.Source.Module != "" {
			out.Origin = im.Source.Module
		}
		if im.Userland {
			out.VerifiedBy += ", Debian's archive key"
		}
		out.Layout, err = r.assemble(ctx, im, ref)
	} else {
		out.Origin, out.VerifiedBy = ref, "its registry's TLS certificate; layers by digest"
		if r.src.Mirror != "" {
			out.VerifiedBy = "nobody but the mirror; layers by digest"
		}
		out.Layout, err = r.pull(ctx, ref)
	}
	if err != nil {
		return out, err
	}
	out.ManifestDigest, out.SizeBytes, err = oci.Manifest(out.Layout)
	return out, err
}

func (r *resolver) pull(ctx context.Context, ref string) (string, error) {
	key := cache.Key(r.src.Mirror, ref, r.Arch)
	if r.Fresh && (!r.Offline || r.src.Local()) {
		r.Cache.Forget("pulled", key)
	}
	dir, _, err := r.Cache.Dir(ctx, "pulled", key, func(ctx context.Context, dir string) error {
		if r.Offline && !r.src.Local() {
			return fetch.ErrOffline
		}
		r.Report.Logf("pulling %s", ref)
		defer r.Report.Step("pulling " + ref)()
		return oci.Pull(ctx, ref, r.Arch, r.src.Mirror, dir)
	})
	return dir, err
}

// assemble makes an image from its programs.
func (r *resolver) assemble(ctx context.Context, im imageRecipe, ref string) (string, error) {
	var files []File
	for _, s := range append([]source{im.Source}, im.MoreSources...) {
		if s.Module == "" {
			continue
		}
		got, err := r.build(ctx, s, r.row["version"])
		if err != nil {
			return "", err
		}
		files = append(files, got...)
	}
	if im.Pause {
		f, err := r.pause(ctx)
		if err != nil {
			return "", err
		}
		files = append(files, f)
	}
	var userland string
	if im.Userland {
		var err error
		if userland, err = r.userland(ctx); err != nil {
			return "", err
		}
	}
	key := []string{"image-1", ref, r.Arch, im.User, strings.Join(im.Entrypoint, "\x00"), fmt.Sprint(im.Capabilities), filepath.Base(userland)}
	for _, f := range files {
		key = append(key, f.Dest, f.SHA256)
	}
	dir, _, err := r.Cache.Dir(ctx, "image", cache.Key(key...), func(ctx context.Context, dir string) error {
		entries := []string{userland}
		for _, f := range files {
			entries = append(entries, f.Entry)
		}
		for _, e := range entries {
			if e == "" {
				continue
			}
			if err := r.Cache.Verify(ctx, e); err != nil {
				return err
			}
		}
		return r.layout(dir, im, files, userland)
	})
	return dir, err
}

func (r *resolver) layout(dir string, im imageRecipe, files []File, userland string) error {
	t := tree.New()
	for _, f := range files {
		if err := t.File(f.Dest, 0o755, f.Host); err != nil {
			return err
		}
	}
	for p, capability := range im.Capabilities {
		e, ok := t.Lookup(p)
		if !ok {
			return fmt.Errorf("BUG: capability for %s, which the image does not have", p)
		}
		value, err := fileCapability(capability)
		if err != nil {
			return err
		}
		e.Xattrs = map[string]string{"security.capability": value}
		t.Remove(p)
		if err := t.Add(e); err != nil {
			return err
		}
	}
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var layers []oci.Layer
	if userland != "" {
		l, err := r.userlandLayer(userland)
		if err != nil {
			return err
		}
		layers = append(layers, l)
	} else if err := addAccounts(t); err != nil {
		return err
	}
	l, err := oci.WriteLayer(t, filepath.Join(work, "layer"), imageTime)
	if err != nil {
		return err
	}
	return oci.WriteLayout(dir, oci.Config{Arch: r.Arch, Entrypoint: im.Entrypoint, User: im.User, Created: imageTime}, append(layers, l))
}

func addAccounts(t *tree.Tree) error {
	if err := t.Add(tree.Entry{Path: "tmp", Mode: os.ModeDir | os.ModeSticky | 0o777}); err != nil {
		return err
	}
	if err := t.Bytes("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n")); err != nil {
		return err
	}
	return t.Bytes("etc/group", 0o644, []byte("root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n"))
}

// fileCapability encodes one capability, permitted and effective, as struct
// vfs_cap_data of the kernel's include/uapi/linux/capability.h, revision 2.
func fileCapability(name string) (string, error) {
	bits := map[string]uint{"cap_net_bind_service": 10}
	bit, ok := bits[name]
	if !ok {
		return "", fmt.Errorf("BUG: unknown capability %s", name)
	}
	const revision2, effective = 0x02000000, 1
	b := binary.LittleEndian.AppendUint32(nil, revision2|effective)
	b = binary.LittleEndian.AppendUint32(b, 1<<bit)
	b = append(b, make([]byte, 12)...)
	return string(b), nil
}

// pause builds the program that holds a pod's namespaces, from its C source in
// the Kubernetes module.
func (r *resolver) pause(ctx context.Context) (File, error) {
	version := r.row["version"]
	key := cache.Key("pause-1", version, r.row["pause"], r.Arch, r.cc)
	entry, _, err := r.Cache.Dir(ctx, "program", key, func(ctx context.Context, dir string) error {
		if r.Offline {
			return fetch.ErrOffline
		}
		src, err := gobuild.Source(ctx, "k8s.io/kubernetes", version)
		if err != nil {
			return err
		}
		linux := filepath.Join(src, "build", "pause", "linux")
		return run.Run(ctx, run.Cmd{Argv: []string{"gcc", "-Os", "-Wall", "-Werror", "-static", "-s", "-ffile-prefix-map=" + linux + "=.", "-Wl,--build-id=none",
			"-DVERSION=" + r.row["pause"] + "-kimage", "-o", filepath.Join(dir, "pause"), filepath.Join(linux, "pause.c")}, Dir: dir})
	})
	if err != nil {
		return File{}, err
	}
	return r.file(entry, "pause", "pause")
}

// userland returns the cache entry with the layer of Debian packages.
func (r *resolver) userland(ctx context.Context) (string, error) {
	key := cache.Key(append([]string{"userland-1", userlandSuite, r.Arch}, userlandPackages...)...)
	entry, _, err := r.Cache.Dir(ctx, "userland", key, func(ctx context.Context, dir string) error {
		if r.Offline {
			return fetch.ErrOffline
		}
		if err := doctor.Check(doctor.SourceImages); err != nil {
			return err
		}
		work, err := r.Cache.Scratch()
		if err != nil {
			return err
		}
		defer work.Remove()
		mirror := r.Mirror
		if mirror == "" {
			if mirror, err = debs.MachineMirror(); err != nil {
				return err
			}
		}
		r.Report.Logf("fetching %s and what they need from Debian %s", strings.Join(userlandPackages, ", "), userlandSuite)
		packages, err := debs.Fetch(ctx, debs.Config{Mirror: mirror, Suite: userlandSuite, Arch: r.Arch, Packages: userlandPackages, Dir: work.Path})
		if err != nil {
			return err
		}
		content := filepath.Join(work.Path, "content")
		if err := os.Mkdir(content, 0o700); err != nil {
			return err
		}
		t, err := debs.Unpack(ctx, packages, content)
		if err != nil {
			return err
		}
		// What the packages' maintainer scripts would do.
		for _, name := range []string{"iptables", "ip6tables"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				if err := t.Symlink("usr/sbin/"+name+verb, name+"-nft"+verb); err != nil {
					return err
				}
			}
		}
		if err := addAccounts(t); err != nil {
			return err
		}
		l, err := oci.WriteLayer(t, filepath.Join(dir, "layer"), imageTime)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "digests"), fmt.Appendf(nil, "%s %s\n", l.Digest, l.DiffID), 0o644)
	})
	return entry, err
}

func (r *resolver) userlandLayer(entry string) (oci.Layer, error) {
	l := oci.Layer{File: filepath.Join(entry, "layer")}
	data, err := os.ReadFile(filepath.Join(entry, "digests"))
	if err != nil {
		return l, err
	}
	if _, err := fmt.Sscan(string(data), &l.Digest, &l.DiffID); err != nil {
		return l, fmt.Errorf("reading %s: %w", entry, err)
	}
	fi, err := os.Stat(l.File)
	if err != nil {
		return l, err
	}
	l.SizeBytes = fi.Size()
	return l, nil
}
