package images

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/ddi"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/squashfs"
	"github.com/kimage-project/kimage/pkg/tree"
)

//go:embed files
var files embed.FS

func embedded(name string) []byte {
	data, err := files.ReadFile("files/" + name)
	if err != nil {
		panic("BUG: " + err.Error()) // part of the program
	}
	return data
}

// payloadFiles are kimage's own files in the payload, by source under files/payload.
var payloadFiles = map[string]string{
	"kimage.target":           "usr/lib/systemd/system/kimage.target",
	"containerd.service":      "usr/lib/systemd/system/containerd.service",
	"kimage-images.service":   "usr/lib/systemd/system/kimage-images.service",
	"kimage-grow.service":     "usr/lib/systemd/system/kimage-grow.service",
	"kimage-balancer.service": "usr/lib/systemd/system/kimage-balancer.service",
	"etcd.service":            "usr/lib/systemd/system/etcd.service",
	"kimage-agent.service":    "usr/lib/systemd/system/kimage-agent.service",
	"kubelet.service":         "usr/lib/systemd/system/kubelet.service",
	"10-kubeadm.conf":         "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
	"containerd.toml":         "usr/share/kimage/containerd.toml",
	"crictl.yaml":             "usr/share/kimage/crictl.yaml",
	"modules.conf":            "usr/lib/modules-load.d/kimage.conf",
	"sysctl.conf":             "usr/lib/sysctl.d/90-kimage.conf",
	"tmpfiles.conf":           "usr/lib/tmpfiles.d/kimage.conf",
}

// payloadManifest is where the payload has its own copy of the manifest.
const payloadManifest = "usr/share/kimage/manifest.json"

// payloadRoots are the only places a payload may touch: anything else would
// hide, on some operating system, what the base has there.
var payloadRoots = []string{"usr/bin", "usr/libexec", "usr/share/kimage", "usr/lib/systemd/system", "usr/lib/modules-load.d",
	"usr/lib/sysctl.d", "usr/lib/tmpfiles.d", "usr/lib/extension-release.d"}

// payloadTree is the content of the system extension.
func (b *Builder) payloadTree(set *components.Set, m manifest) (*tree.Tree, error) {
	t := tree.New()
	for _, p := range set.Programs {
		for _, f := range p.Files {
			if err := t.Add(tree.Entry{Path: f.Dest, Mode: 0o755, Size: f.SizeBytes, Open: f.Open}); err != nil {
				return nil, err
			}
		}
	}
	if err := t.File("usr/bin/kimage-agent", 0o755, b.agent); err != nil {
		return nil, err
	}
	subst := strings.NewReplacer("@PAUSE@", "registry.k8s.io/pause:"+set.Versions["pause"],
		"@FLANNEL@", "ghcr.io/flannel-io/flannel:"+set.Versions["flannel"])
	own := map[string][]byte{}
	for from, to := range payloadFiles {
		own[to] = []byte(subst.Replace(string(embedded("payload/" + from))))
	}
	if b.config.Network == "flannel" {
		own["usr/share/kimage/flannel.yaml"] = []byte(subst.Replace(string(embedded("payload/flannel.yaml"))))
	}
	own["usr/lib/extension-release.d/extension-release.kimage"] = b.os.Sysext.release(b.config.Arch)
	var err error
	if own[payloadManifest], err = m.encode(); err != nil {
		return nil, err
	}
	for p, content := range own {
		if err := t.Bytes(p, 0o644, content); err != nil {
			return nil, err
		}
	}
	for _, unit := range []string{"containerd", "kimage-images", "kimage-grow", "kimage-balancer", "kubelet", "kimage-agent"} {
		if err := t.Symlink("usr/lib/systemd/system/kimage.target.wants/"+unit+".service", "../"+unit+".service"); err != nil {
			return nil, err
		}
	}
	// The controller manager mounts this directory and the kubelet writes to it,
	// but /usr is read-only.
	if err := t.Symlink("usr/libexec/kubernetes/kubelet-plugins/volume/exec", "/var/lib/kubelet/volumeplugins"); err != nil {
		return nil, err
	}
	return t, checkPayload(t)
}

// release is the extension-release(5) of an extension for the system.
func (s Sysext) release(arch string) []byte {
	out := fmt.Appendf(nil, "ID=%s\n", s.ID)
	if s.VersionID != "" {
		out = fmt.Appendf(out, "VERSION_ID=%s\n", s.VersionID)
	}
	if s.Level != "" {
		out = fmt.Appendf(out, "SYSEXT_LEVEL=%s\n", s.Level)
	}
	return fmt.Appendf(out, "ARCHITECTURE=%s\n", systemdArch[arch])
}

var systemdArch = map[string]string{"amd64": "x86-64", "arm64": "arm64"}

func checkPayload(t *tree.Tree) error {
	for _, e := range t.Entries() {
		if e.Mode.IsDir() {
			continue
		}
		if !slices.ContainsFunc(payloadRoots, func(root string) bool { return strings.HasPrefix(e.Path, root+"/") }) {
			return fmt.Errorf("BUG: %s does not belong into a payload", e.Path)
		}
	}
	return nil
}

// payload is the written system extension.
type payload struct {
	file     string
	rootHash string // empty: plain squashfs
	sha256   string // empty: not known yet
}

// writePayload packs t; verity unless the base cannot open it.
func (b *Builder) writePayload(ctx context.Context, set *components.Set, t *tree.Tree, scratch string, verity bool) (payload, error) {
	p := payload{file: filepath.Join(scratch, "payload.raw")}
	c := squashfs.Config{File: p.file, UnixTime: unixTime}
	if verity {
		c.OffsetBytes = ddi.FilesystemOffset
	}
	var err error
	if c.Packed, err = b.packPrograms(ctx, set); err != nil {
		if d, ok := errors.AsType[*components.Damaged](err); ok {
			return p, b.cache.Discard(d.File.Entry, d)
		}
		return p, err
	}
	if err := squashfs.Write(ctx, t, c); err != nil {
		return p, err
	}
	if !verity {
		// The activation files need it, where there is no root hash.
		p.sha256, _, err = fileSHA256(ctx, p.file)
		return p, err
	}
	p.rootHash, err = ddi.Wrap(ctx, ddi.Config{File: p.file, Arch: b.config.Arch, Seed: b.os.Name})
	return p, err
}

// checkBase makes sure that no directory of the payload is something else in
// the base: an overlay would hide what a link leads to.
func checkBase(ctx context.Context, root ext4.Volume, t *tree.Tree) error {
	var dirs []string
	for _, e := range t.Entries() {
		if e.Mode.IsDir() && e.Path != "." {
			dirs = append(dirs, e.Path)
		}
	}
	have, err := root.Stat(ctx, dirs)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if mode, ok := have[d]; ok && !mode.IsDir() {
			return fmt.Errorf("in the base /%s is not a directory (%v), and the payload would hide it: this base cannot be used", d, mode.Type())
		}
	}
	return nil
}
