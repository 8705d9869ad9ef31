package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/libvirt"
	"github.com/kimage-project/kimage/pkg/local"
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
	Machines       map[string]vagrantMachine `json:"machines"`
}

type vagrantMachine struct {
	MAC       string `json:"mac"` // of the card on the private network
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memoryMiB"`
	DiskGiB   int    `json:"diskGiB"`
	Seed      string `json:"seed,omitempty"`     // file: a NoCloud volume
	Ignition  string `json:"ignition,omitempty"` // file: an Ignition config
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

// makeVagrant makes the box, the machines' configs and vagrant.json. It may be run
// several times at once: one works, the others wait and find it done.
func makeVagrant(cmd *cobra.Command, o cluster.Outline, dir, provider string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "cluster.yaml")
	l, err := localOf(file)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	release, err := l.claimBy(0)
	if err != nil {
		return err
	}
	defer release()
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
	accel := "kvm"
	if provider == "libvirt" {
		if err := libvirt.CheckReach(cmd.Context(), dir); err != nil {
			return err
		}
		if accel, err = accelerator(cmd); err != nil {
			return err
		}
	}
	spec, err := local.Plan(f, accel)
	if err != nil {
		return err
	}
	box, err := l.bake(cmd.Context(), f, "vagrant-"+provider)
	if err != nil {
		return err
	}
	s, err := l.configure(cmd, f, "", &spec)
	if err != nil {
		return err
	}
	defer s.Close()
	m := vagrantMachines{Key: l.in("key"), Driver: map[string]string{"kvm": "kvm", "tcg": "qemu"}[accel],
		Kubeconfig: filepath.Join(dir, "kubeconfig"), NodeKubeconfig: l.in("kubeconfig-node"), Machines: map[string]vagrantMachine{}}
	system, err := images.FindOS(f.OS.Name)
	if err != nil {
		return err
	}
	m.User = system.User
	if err := l.pruneBoxes(box); err != nil {
		return err
	}
	if m.Box, m.BoxURL, err = l.boxCatalogue(box, provider, f.Cluster.Spec.Kubernetes); err != nil {
		return err
	}
	for _, x := range spec.Machines {
		m.Machines[x.Name] = vagrantMachine{MAC: strings.ReplaceAll(x.MAC, ":", ""), CPUs: x.CPUs, MemoryMiB: x.MemoryMiB, DiskGiB: x.DiskGiB, Seed: x.Seed, Ignition: x.FwCfg[ignitionKey]}
	}
	if provider == "libvirt" {
		var files []string
		for _, x := range m.Machines {
			files = append(files, cmp.Or(x.Seed, x.Ignition))
		}
		if err := libvirt.LetRead(cmd.Context(), dir, files); err != nil {
			return err
		}
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
	return errors.Join(atomicfile.Write(m.Kubeconfig, operator, 0o600), atomicfile.Write(m.NodeKubeconfig, node, 0o600),
		atomicfile.Write(filepath.Join(dir, "vagrant.json"), append(data, '\n'), 0o600))
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
