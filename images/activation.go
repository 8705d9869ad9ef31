package images

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/kimage-project/kimage/pkg/tree"
)

// What of the root's files is of one image alone.
const (
	rootImageID    = "etc/kimage/imageID"
	rootRootHash   = "etc/kimage/roothash"
	rootPayloadSum = "etc/kimage/payload.sha256" // of a payload without a root hash
)

// Activation are the files and links that make a base of the OS mount KIMAGE,
// merge the payload and start it. A root that kimage can edit gets them when it
// is baked, others at first boot.
func (o OS) Activation() (*tree.Tree, error) {
	t := tree.New()
	const units = "etc/systemd/system/"
	for to, from := range map[string]string{
		"etc/kimage/activate":             "activation/activate",
		"etc/kimage/start":                "activation/start",
		units + "kimage-activate.service": "activation/kimage-activate.service",
		units + "kimage-verify.service":   "activation/kimage-verify.service",
		units + "kimage-start.service":    "activation/kimage-start.service",
	} {
		perm := fs.FileMode(0o644)
		if path.Ext(to) == "" {
			perm = 0o755
		}
		if err := t.Bytes(to, perm, embedded(from)); err != nil {
			return nil, err
		}
	}
	if o.FirstBoot == "cloud-init" {
		for _, unit := range []string{"cloud-config", "cloud-final"} {
			if err := t.Bytes(units+unit+".service.d/10-kimage.conf", 0o644, embedded("activation/cloud-config.conf")); err != nil {
				return nil, err
			}
		}
	}
	if o.FirstBoot == "cloud-init" && o.editable() { // works without a datasource too
		if err := errors.Join(t.Bytes("etc/cloud/ds-identify.cfg", 0o644, embedded("activation/ds-identify.cfg")),
			t.Bytes("etc/cloud/cloud.cfg.d/95_kimage.cfg", 0o644, embedded("activation/cloud.cfg"))); err != nil {
			return nil, err
		}
	}
	links := map[string]string{
		units + "sysinit.target.wants/kimage-activate.service": "../kimage-activate.service",
		units + "sysinit.target.wants/systemd-sysext.service":  "/usr/lib/systemd/system/systemd-sysext.service",
		units + "sysinit.target.wants/kimage-verify.service":   "../kimage-verify.service",
		units + "multi-user.target.wants/kimage-start.service": "../kimage-start.service",
	}
	for _, unit := range o.Mask {
		links[path.Join(units, unit)] = "/dev/null"
	}
	for _, file := range o.Off {
		links[file] = "/dev/null"
	}
	for p, target := range links {
		if err := t.Symlink(p, target); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// activationTree is what is baked into the root: the activation files, and the
// digest that the payload must have.
func (o OS) activationTree(p payload, imageID string) (*tree.Tree, error) {
	t, err := o.Activation()
	if err != nil {
		return nil, err
	}
	if err := t.Bytes(rootImageID, 0o644, []byte(imageID+"\n")); err != nil {
		return nil, err
	}
	name, content := rootPayloadSum, fmt.Appendf(nil, "%s  /var/lib/kimage/extensions/current.raw\n", p.sha256)
	if p.rootHash != "" {
		name, content = rootRootHash, []byte(p.rootHash)
	}
	if err := t.Bytes(name, 0o644, content); err != nil {
		return nil, err
	}
	return t, t.Dir("var/lib/kimage", 0o755)
}
