package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/libvirt"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// vagrantMachines is what the Vagrantfile is told, by vagrant.json.
type vagrantMachines struct {
	Box            string                    `json:"box"`
	BoxURL         string                    `json:"boxURL"`
	User           string                    `json:"user"`
	Key            string                    `json:"key"`            // file with the key by which Vagrant logs in
	Driver         string                    `json:"driver"`         // of libvirt: kvm or qemu
	Kubeconfig     string                    `json:"kubeconfig"`     // file, for this computer
	NodeKubeconfig string                    `json:"nodeKubeconfig"` // file, for the machines themselves
	Settings       vagrantSettings           `json:"settings"`
	Machines       map[string]vagrantMachine `json:"machines"`
}

// vagrantSettings are those of the Vagrantfile that hold as long as the cluster does.
type vagrantSettings struct {
	Provider   string `json:"provider"`
	OS         string `json:"os"`
	Topology   string `json:"topology"`
	Plugin     string `json:"networkPlugin"`
	Subnet     string `json:"subnet"`
	Kubernetes string `json:"kubernetes"` // may be changed, by who names another
}

type vagrantMachine struct {
	Roles     []string `json:"roles"`
	MAC       string   `json:"mac"` // of the card on the private network
	CPUs      int      `json:"cpus"`
	MemoryMiB int      `json:"memoryMiB"`
	DiskGiB   int      `json:"diskGiB"`
	Seed      string   `json:"seed,omitempty"`     // file: a NoCloud volume
	Ignition  string   `json:"ignition,omitempty"` // file: an Ignition config
}

// newVagrant is what the Vagrantfile runs; people run vagrant.
func newVagrant() *cobra.Command {
	var o cluster.Outline
	var dir, provider, subnet string
	cmd := &cobra.Command{
		Use:    "vagrant",
		Short:  "Make what the Vagrantfile's machines boot",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !strings.Contains(subnet, "/") { // as the Vagrantfile has it: its first three bytes
				subnet += ".0/24"
			}
			var err error
			if o.Subnet, err = netip.ParsePrefix(subnet); err != nil {
				return fmt.Errorf("$subnet = %q: give the first three numbers of a network (such as 192.168.60)", strings.TrimSuffix(subnet, ".0/24"))
			}
			if provider != "libvirt" && provider != "virtualbox" {
				return fmt.Errorf("Vagrant's provider %s is not known: choose libvirt or virtualbox", provider)
			}
			return makeVagrant(cmd, o, dir, provider)
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", ".vagrant/kimage", "directory for what is made")
	f.StringVar(&provider, "provider", "libvirt", "Vagrant's provider: libvirt or virtualbox")
	f.StringVar(&o.Topology, "topology", "1", "1, 3, 6 or 8")
	f.IntVar(&o.Workers, "workers", 0, "workers besides those of the topology")
	f.StringVar(&o.OS, "os", "debian-13", "operating system")
	f.StringVar(&o.Kubernetes, "kubernetes", "", "Kubernetes version (default: newest)")
	f.StringVar(&o.Plugin, "network", "flannel", "network plugin")
	f.StringVar(&subnet, "subnet", "192.168.60", "network of the machines")
	return cmd
}

// vagrantFile is where the Vagrantfile looks, in DIR.
const vagrantFile = "vagrant.json"

// makeVagrant makes the box, the machines' configs and vagrant.json. It may be run
// several times at once: one works, the others wait and find it done.
//
//	DIR/cluster.yaml ...   and its secrets
//	DIR/made/              as in localCluster; kimage up and down leave it alone
//	DIR/vagrant.json       written last
func makeVagrant(cmd *cobra.Command, o cluster.Outline, dir, provider string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, "cluster.yaml")
	l := &localCluster{local.Set{Dir: filepath.Join(dir, "made")}, file}
	claim, err := l.awaitClaim(cmd)
	if err != nil {
		return err
	}
	defer claim.Close()
	// Secrets must not get into the repository that the Vagrantfile is of.
	if err := atomicfile.Write(filepath.Join(dir, ".gitignore"), []byte("*\n"), 0o644); err != nil {
		return err
	}
	m := vagrantMachines{Settings: vagrantSettings{provider, o.OS, o.Topology, o.Plugin, o.Subnet.String(), ""}}
	if err := m.Settings.keep(filepath.Join(dir, vagrantFile), &o); err != nil {
		return err
	}
	key, err := l.key()
	if err != nil {
		return err
	}
	// The private network's cards have fixed addresses: what gives them elsewhere
	// differs by provider, and Vagrant's own way would log in and change the machine.
	o.Name, o.MTU, o.SSHKeys = "vagrant", 1500, []string{key.Public}
	text, err := newClusterFile(&o)
	if err != nil {
		return err
	}
	m.Settings.Kubernetes = o.Kubernetes
	if err := atomicfile.Write(file, []byte(text), 0o644); err != nil {
		return err
	}
	f, err := readCluster(cmd, file)
	if err != nil {
		return err
	}
	if f.OS.FirstBoot == "cloud-init" {
		if err := doctor.Check(doctor.Seed); err != nil {
			return err
		}
	}
	accel, err := vagrantAccelerator(cmd, provider, dir, o.Subnet)
	if err != nil {
		return err
	}
	spec, err := local.Plan(f, accel)
	if err != nil {
		return err
	}
	// https://github.com/coreos/ignition/issues/2226: the limit was 128 KiB once.
	if provider == "virtualbox" && f.OS.FirstBoot == "ignition" {
		return fmt.Errorf("%s reads its config from a guest property in VirtualBox, which holds a KiB, and a machine's config has many: take libvirt (vagrant up --provider libvirt), or a system with cloud-init", f.OS.Name)
	}
	box, err := l.bake(cmd.Context(), f, "vagrant", "vagrant-"+provider)
	if err != nil {
		return err
	}
	s, err := l.configure(cmd, f, "", &spec, func(s *state.Store, _ *cluster.File) string {
		return fmt.Sprintf("made the secrets of the cluster: %s (vagrant destroy of its last machine removes them)", s.Dir())
	})
	if err != nil {
		return err
	}
	defer s.Close()
	system, err := images.FindOS(f.OS.Name)
	if err != nil {
		return err
	}
	m.Key, m.User, m.Driver = l.in("key"), system.User, map[string]string{"kvm": "kvm", "tcg": "qemu"}[accel]
	m.Kubeconfig, m.NodeKubeconfig, m.Machines = filepath.Join(dir, "kubeconfig"), l.in("kubeconfig-node"), map[string]vagrantMachine{}
	var files []string
	for _, x := range spec.Machines {
		m.Machines[x.Name] = vagrantMachine{Roles: x.Roles, MAC: strings.ReplaceAll(x.MAC, ":", ""), CPUs: x.CPUs, MemoryMiB: x.MemoryMiB, DiskGiB: x.DiskGiB, Seed: x.Seed, Ignition: x.FwCfg[ignitionKeys[0]]}
		files = append(files, cmp.Or(x.Seed, x.FwCfg[ignitionKeys[0]]))
	}
	if provider == "libvirt" {
		if err := libvirt.LetRead(cmd.Context(), dir, files); err != nil {
			return err
		}
	}
	if m.Box, m.BoxURL, err = l.boxCatalogue(box, provider, f.Cluster.Spec.Kubernetes); err != nil {
		return err
	}
	operator, err := s.Kubeconfig()
	if err != nil {
		return err
	}
	// Every machine has the masters behind an address of its own.
	node, err := s.KubeconfigAt("127.0.0.1:7445")
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	for _, x := range []struct {
		name    string
		content []byte
	}{{m.Kubeconfig, operator}, {m.NodeKubeconfig, node}, {filepath.Join(dir, vagrantFile), append(data, '\n')}} {
		if err := atomicfile.Write(x.name, x.content, 0o600); err != nil {
			return err
		}
	}
	return l.pruneBoxes(box)
}

// keep compares the settings with those that the cluster was made by, which the file
// holds, if there is one. A Kubernetes version that nobody names stays what it is.
func (v vagrantSettings) keep(file string, o *cluster.Outline) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var was vagrantMachines
	if err == nil {
		err = json.Unmarshal(data, &was)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, x := range []struct{ name, now, then string }{
		{"the provider", v.Provider, was.Settings.Provider}, {"$os", v.OS, was.Settings.OS}, {"$topology", v.Topology, was.Settings.Topology},
		{"$network_plugin", v.Plugin, was.Settings.Plugin}, {"$subnet", v.Subnet, was.Settings.Subnet},
	} {
		if x.now != x.then {
			return fmt.Errorf("%s is %s, and the cluster's is %s: set it back, or end the cluster with vagrant destroy", x.name, x.now, x.then)
		}
	}
	o.Kubernetes = cmp.Or(o.Kubernetes, was.Settings.Kubernetes)
	return nil
}

// awaitClaim waits for another kimage that makes the same.
func (l *localCluster) awaitClaim(cmd *cobra.Command) (*os.File, error) {
	for said := false; ; said = true {
		claim, err := l.claim()
		if !errors.Is(err, errClaimed) {
			return claim, err
		}
		if !said {
			fmt.Fprintln(cmd.ErrOrStderr(), "another kimage makes these machines' image and configs: waiting for it")
		}
		select {
		case <-cmd.Context().Done():
			return nil, cmd.Context().Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// virtualBoxNetworks are those that VirtualBox lets be made unless its networks.conf names
// others (https://www.virtualbox.org/manual/, "Host-Only Networking").
var virtualBoxNetworks = netip.MustParsePrefix("192.168.56.0/21")

// vagrantAccelerator is kvm or tcg, after what else the provider needs.
func vagrantAccelerator(cmd *cobra.Command, provider, dir string, subnet netip.Prefix) (string, error) {
	if provider == "virtualbox" {
		const conf = "/etc/vbox/networks.conf"
		if _, err := os.Stat(conf); err != nil && !virtualBoxNetworks.Contains(subnet.Addr()) {
			return "", fmt.Errorf("$subnet: VirtualBox makes networks in %s only: choose 192.168.56 to 192.168.63, or name %s in %s", virtualBoxNetworks, subnet, conf)
		}
		return "kvm", nil
	}
	if err := libvirt.CheckReach(cmd.Context(), dir); err != nil {
		return "", err
	}
	// libvirt's machines run as somebody else, who may be allowed what the user is not.
	if err := qemu.KVM(cmd.Context()); errors.Is(err, fs.ErrPermission) {
		return "kvm", nil
	}
	return accelerator(cmd)
}

// boxCatalogue names the box, and describes it where Vagrant looks
// (https://developer.hashicorp.com/vagrant/docs/boxes/format#box-metadata). Each image has
// a name of its own: libvirt keeps a volume by it.
func (l *localCluster) boxCatalogue(box, provider, kubernetes string) (name, file string, err error) {
	imageID, _, _ := strings.Cut(filepath.Base(box), ".")
	name = "kimage/" + imageID
	data, err := json.MarshalIndent(map[string]any{"name": name, "versions": []any{map[string]any{"version": strings.TrimPrefix(kubernetes, "v"),
		"providers": []any{map[string]any{"name": provider, "url": "file://" + box}}}}}, "", "  ")
	if err != nil {
		return "", "", err
	}
	file = l.in("box.json")
	return name, file, atomicfile.Write(file, append(data, '\n'), 0o644)
}

// pruneBoxes removes those of older images: Vagrant keeps copies of what it added.
func (l *localCluster) pruneBoxes(but string) error {
	all, err := filepath.Glob(l.in("images", "*.box"))
	for _, box := range all {
		if box != but {
			err = errors.Join(err, os.Remove(box))
		}
	}
	return err
}
