// Package cluster is the cluster file: its types, its strict reading, what is
// wrong with it, and what it says of one machine after all blocks are merged.
//
// A field that is accepted acts. What no part of kimage implements yet is
// refused by its name, so that nobody believes it does something. All problems
// are found in one reading, each with its path, line, value and remedy.
package cluster

// APIVersion and Kind open every cluster file.
const (
	APIVersion = "kimage.dev/v1alpha1"
	Kind       = "Cluster"
)

// Roles of a machine, in the order in which their blocks are merged: the later
// one's settings win on a machine that has both.
const (
	RoleWorker = "worker"
	RoleEtcd   = "etcd"
	RoleMaster = "master"
)

// roles lists all roles in the order of merging.
var roles = []string{RoleWorker, RoleEtcd, RoleMaster}

// Cluster is the whole file.
type Cluster struct {
	APIVersion string   `yaml:"apiVersion" doc:"kimage.dev/v1alpha1"`
	Kind       string   `yaml:"kind" doc:"Cluster"`
	Metadata   Metadata `yaml:"metadata"`
	Spec       Spec     `yaml:"spec"`
}

// Metadata names the cluster.
type Metadata struct {
	Name string `yaml:"name" doc:"DNS label of at most 40 characters; part of the secrets, so it never changes"`
}

// Spec describes the cluster.
type Spec struct {
	Kubernetes string            `yaml:"kubernetes" doc:"version, or minor version for its newest patch; empty: the newest that kimage knows"`
	OS         string            `yaml:"os" doc:"operating system (kimage list os)"`
	Runtime    string            `yaml:"runtime" doc:"container runtime; empty: containerd"`
	Versions   map[string]string `yaml:"versions" doc:"component to version, where it is not the catalogue's"`
	Network    Network           `yaml:"network"`
	API        API               `yaml:"api"`
	Machine    Block             `yaml:"machine" doc:"settings of every machine"`
	Roles      RoleBlocks        `yaml:"roles" doc:"settings of every machine with a role; on machines with several, worker < etcd < master"`
	Nodes      []Node            `yaml:"nodes" doc:"machines known by name"`
	Pools      []Pool            `yaml:"pools" doc:"workers not known in advance"`
	Kubeadm    Object            `yaml:"kubeadm" doc:"merged into kubeadm's ClusterConfiguration v1beta4"`
	Kubelet    Object            `yaml:"kubelet" doc:"merged into KubeletConfiguration"`
	Addons     Reserved          `yaml:"addons" doc:"addons"`
	Image      Image             `yaml:"image"`
	Secrets    Secrets           `yaml:"secrets"`
	Platform   Platform          `yaml:"platform" doc:"at most one: where the machines run; decides how large a config may be"`
}

// Network holds the cluster's networks: one CIDR per family, and the first
// family is the cluster's.
type Network struct {
	Plugin    string            `yaml:"plugin" doc:"network plugin; empty: flannel"`
	Pods      []string          `yaml:"pods" doc:"CIDRs, one per family"`
	Services  []string          `yaml:"services" doc:"CIDRs, one per family"`
	Nodes     []string          `yaml:"nodes" doc:"CIDRs of the network that node addresses, etcd, API and pod traffic use; empty: the node's address decides"`
	DNSDomain string            `yaml:"dnsDomain" doc:"empty: cluster.local"`
	Options   map[string]string `yaml:"options" doc:"the plugin's own; flannel: backend (vxlan, host-gw), mtu"`
}

// API is how people outside reach the API server; nodes never depend on it.
type API struct {
	Endpoint string   `yaml:"endpoint" doc:"HOST or HOST:PORT in the operator's kubeconfig and the API server's certificate"`
	CertSANs []string `yaml:"certSANs" doc:"further names and addresses in the API server's certificate"`
}

// RoleBlocks are the machine settings by role.
type RoleBlocks struct {
	Etcd   Block `yaml:"etcd"`
	Master Block `yaml:"master"`
	Worker Block `yaml:"worker"`
}

// Node is one machine known by name.
type Node struct {
	Name    string   `yaml:"name" doc:"DNS label; the machine's host name and the Node's"`
	Roles   []string `yaml:"roles" doc:"etcd, master, worker"`
	Address Strings  `yaml:"address" doc:"one per family; required for etcd and master"`
	Match   Match    `yaml:"match" doc:"tells this machine from others; all that is set must hold"`
	Machine Block    `yaml:"machine"`
}

// Match tells one machine from another.
type Match struct {
	MAC    string `yaml:"mac" doc:"of the card on the node network"`
	Serial string `yaml:"serial" doc:"SMBIOS system serial number"`
	UUID   string `yaml:"uuid" doc:"SMBIOS system UUID"`
}

// Pool is a kind of workers that join without being known by name.
type Pool struct {
	Name    string   `yaml:"name" doc:"DNS label; its nodes are NAME-HASH"`
	Roles   []string `yaml:"roles" doc:"worker"`
	Size    int      `yaml:"size" doc:"how many are expected"`
	Machine Block    `yaml:"machine"`
}

// Image is what goes into the image besides Kubernetes.
type Image struct {
	Sysexts         Reserved `yaml:"sysexts" doc:"further system extensions"`
	ContainerImages Reserved `yaml:"containerImages" doc:"further container images"`
}

// Secrets says how the operator's secrets are kept.
type Secrets struct {
	EncryptTo []string `yaml:"encryptTo" doc:"age recipients (age1... or ssh-ed25519 ...); empty: files of mode 0600"`
}

// Platform is where the machines run.
type Platform struct {
	QEMU      *struct{} `yaml:"qemu"`
	Metal     *struct{} `yaml:"metal"`
	GCE       *GCE      `yaml:"gce"`
	AWS       *struct{} `yaml:"aws"`
	Azure     *struct{} `yaml:"azure"`
	OpenStack *struct{} `yaml:"openstack"`
}

// Name is the platform that was named; empty: none.
func (p Platform) Name() string {
	names := p.names()
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

func (p Platform) names() (out []string) {
	for _, x := range []struct {
		name string
		set  bool
	}{{"qemu", p.QEMU != nil}, {"metal", p.Metal != nil}, {"gce", p.GCE != nil}, {"aws", p.AWS != nil}, {"azure", p.Azure != nil}, {"openstack", p.OpenStack != nil}} {
		if x.set {
			out = append(out, x.name)
		}
	}
	return out
}

// Machine is a block of settings after merging.
type Machine struct {
	Labels     map[string]string   `yaml:"labels" doc:"labels of the Node"`
	Taints     []Taint             `yaml:"taints" doc:"taints of the Node"`
	Network    MachineNetwork      `yaml:"network" doc:"empty: DHCP"`
	NTP        []string            `yaml:"ntp" doc:"time servers"`
	Proxy      Proxy               `yaml:"proxy" doc:"for the container runtime and the kubelet"`
	Registries map[string]Registry `yaml:"registries" doc:"registry host to its mirrors"`
	TrustedCAs []string            `yaml:"trustedCAs" doc:"PEM certificates that the machine and its runtime trust"`
	SSH        SSH                 `yaml:"ssh"`
	Butane     string              `yaml:"butane" doc:"file, relative to the cluster file, merged last (Ignition systems)"`
	CloudInit  string              `yaml:"cloudInit" doc:"file, relative to the cluster file, merged last (cloud-init systems)"`
	Override   []string            `yaml:"override" doc:"files, units and keys of kimage's that the snippet may replace"`
	Disks      Disks               `yaml:"disks"`
	QEMU       QEMU                `yaml:"qemu" doc:"size of the virtual machine that kimage up makes"`
	GCE        GCEMachine          `yaml:"gce" doc:"the instance that kimage gce makes"`
}

// Taint is one taint of a Node.
type Taint struct {
	Key    string `yaml:"key"`
	Value  string `yaml:"value"`
	Effect string `yaml:"effect" doc:"NoSchedule, PreferNoSchedule or NoExecute"`
}

// MachineNetwork makes a machine's address static: that of the node, on the
// card of match.mac.
type MachineNetwork struct {
	Gateway     Strings  `yaml:"gateway" doc:"one per family; none: no default route"`
	Nameservers []string `yaml:"nameservers"`
	VLAN        int      `yaml:"vlan" doc:"VLAN ID of the node network"`
	MTU         int      `yaml:"mtu"`
}

// Proxy is an HTTP proxy.
type Proxy struct {
	HTTP  string  `yaml:"http" doc:"URL"`
	HTTPS string  `yaml:"https" doc:"URL"`
	No    Strings `yaml:"no" doc:"added to the cluster's own networks and names"`
}

// Registry says where a registry's images are looked for first.
type Registry struct {
	Mirrors []string `yaml:"mirrors" doc:"URLs, tried in order before the registry itself"`
}

// Disks says what kimage serve does with a machine's disks.
type Disks struct {
	Install Install `yaml:"install" doc:"the disk that gets the image; all that is set must hold, and of several the one that holds kimage's data is meant"`
}

// What may be lost on the disk that is installed to.
const (
	OverwriteNever  = "never"
	OverwriteKimage = "kimage"
	OverwriteAny    = "any"
)

var overwrites = []string{OverwriteNever, OverwriteKimage, OverwriteAny}

// Install names a disk, and says what on it may be lost.
type Install struct {
	Path      string `yaml:"path" doc:"such as /dev/nvme0n1 or /dev/disk/by-path/..."`
	Serial    string `yaml:"serial" doc:"serial number of the disk"`
	Model     string `yaml:"model" doc:"model of the disk; a part of it is enough"`
	MinGiB    int    `yaml:"minGiB" doc:"smaller disks are not meant"`
	Overwrite string `yaml:"overwrite" doc:"never: empty disks only; kimage (the default): also what kimage installed; any: everything"`
}

// QEMU is the size of a local virtual machine; 0: what its roles need.
type QEMU struct {
	CPUs      int `yaml:"cpus" doc:"processors"`
	MemoryMiB int `yaml:"memoryMiB" doc:"memory in MiB"`
}

// SSH says who may log in.
type SSH struct {
	AuthorizedKeys []string `yaml:"authorizedKeys" doc:"public keys of the system's default user; empty: no SSH server runs"`
}

// Strings is a list that may be written as one string.
type Strings []string

// Object is a free-form mapping that is passed on to another program.
type Object map[string]any

// Reserved is a field whose place is taken and which nothing implements yet:
// it must be empty.
type Reserved struct{}
