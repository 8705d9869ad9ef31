package bootstrap

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// Owner says whose state a data partition holds. A disk that was cloned, or
// booted with another machine's config, must not be used as it is.
type Owner struct {
	ClusterUID string `json:"clusterUID"`
	Node       string `json:"node"`
	Machine    string `json:"machine"` // hash of the machine's identity
	// Address of a master or etcd member. Certificates, static pods and etcd's other
	// members have it: a disk on which it was another is not used on.
	Address string `json:"address,omitempty"`
}

// ownerOf is who a fresh disk belongs to.
func ownerOf(c nodeconf.Config, name string, m machine) Owner {
	o := Owner{ClusterUID: c.Cluster.UID, Node: name, Machine: m.id}
	if (c.Node.Has(nodeconf.RoleMaster) || c.Node.Has(nodeconf.RoleEtcd)) && len(c.Node.Addresses) > 0 {
		o.Address = c.Node.Addresses[0]
	}
	return o
}

const (
	ownerBelow = "state/agent/owner.json"
	ownerFile  = Data + "/" + ownerBelow
)

// machine is what tells this machine from others.
type machine struct {
	uuid, serial string
	macs         []string
	id           string // see kube.PoolName
}

func readMachine() (machine, error) {
	read := func(name string) string {
		data, _ := os.ReadFile("/sys/class/dmi/id/" + name) // no firmware tables: no such file
		return strings.ToLower(strings.TrimSpace(string(data)))
	}
	m := machine{uuid: read("product_uuid"), serial: read("product_serial")}
	cards, err := filepath.Glob("/sys/class/net/*/address")
	if err != nil {
		return m, err
	}
	for _, c := range cards {
		data, err := os.ReadFile(c)
		if err == nil {
			m.macs = append(m.macs, strings.TrimSpace(string(data)))
		}
	}
	name, err := kube.PoolName("m", "")
	m.id = strings.TrimPrefix(name, "m-")
	return m, err
}

// wrong says why this machine must not go on with its config; empty: it may.
// owner is nil on a fresh disk.
func wrong(c nodeconf.Config, name string, m machine, image Manifest, owner *Owner) string {
	match := c.Node.Match
	switch {
	case match.MAC != "" && !slices.Contains(m.macs, strings.ToLower(match.MAC)):
		return fmt.Sprintf("the config is that of %s, whose card is %s, and this machine has %s: boot it with its own config, or correct match.mac", name, match.MAC, strings.Join(m.macs, ", "))
	case match.UUID != "" && !strings.EqualFold(match.UUID, m.uuid):
		return fmt.Sprintf("the config is that of %s, whose SMBIOS UUID is %s, and this machine's is %q: boot it with its own config, or correct match.uuid", name, match.UUID, m.uuid)
	case match.Serial != "" && !strings.EqualFold(match.Serial, m.serial):
		return fmt.Sprintf("the config is that of %s, whose serial number is %s, and this machine's is %q: boot it with its own config, or correct match.serial", name, match.Serial, m.serial)
	}
	for _, x := range []struct{ what, want, got string }{{"operating system", c.Image.OS, image.OS}, {"Kubernetes", c.Image.Kubernetes, image.Kubernetes},
		{"runtime", c.Image.Runtime, image.Runtime}, {"network plugin", c.Image.Plugin, image.Network}} {
		if x.want != x.got {
			return fmt.Sprintf("the cluster file wants the %s %s, and this image (%s) has %s: bake the image with kimage build -f cluster.yaml, or make the config again", x.what, x.want, image.ImageID, x.got)
		}
	}
	if owner == nil {
		return ""
	}
	switch {
	case owner.ClusterUID != c.Cluster.UID:
		return fmt.Sprintf("this disk holds state of another cluster (%s, not %s): image the machine again", owner.ClusterUID, c.Cluster.UID)
	case owner.Node != name:
		return fmt.Sprintf("this disk holds the state of %s, and the config is that of %s: image the machine again", owner.Node, name)
	case owner.Machine != m.id:
		return "this disk holds the state of another machine (it was cloned or moved): image the machine again"
	case owner.Address != "" && owner.Address != ownerOf(c, name, m).Address:
		return fmt.Sprintf("this disk holds the state of %s at %s, and the config says %s: image the machine again, and it comes back by itself", name, owner.Address, cmp.Or(ownerOf(c, name, m).Address, "that it has no address of its own"))
	}
	return ""
}

func readOwner() (*Owner, error) { return ReadOwner(Data) }

// ReadOwner reads whose state a data partition holds that is mounted at point; nil: it
// holds none.
func ReadOwner(point string) (*Owner, error) {
	data, err := os.ReadFile(filepath.Join(point, ownerBelow))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var o Owner
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, fmt.Errorf("reading %s (image the machine again): %w", ownerFile, err)
	}
	return &o, nil
}

// own writes that the disk's state is this machine's.
func own(o Owner) error {
	if err := os.MkdirAll(filepath.Dir(ownerFile), 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return atomicfile.Write(ownerFile, append(data, '\n'), 0o600)
}
