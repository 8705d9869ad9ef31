package cluster

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// Topologies are the shapes that New prints.
var Topologies = []string{"1", "3", "6", "8"}

// topology lists the roles of the machines of each shape.
var topology = map[string][]string{
	"1": {"etcd, master, worker"},
	"3": {"etcd, master, worker", "etcd, master, worker", "etcd, worker"},
	"6": {"master, worker", "master, worker", "worker", "etcd", "etcd", "etcd"},
	"8": {"master", "master", "worker", "worker", "worker", "etcd", "etcd", "etcd"},
}

var topologyTitle = map[string]string{
	"1": "One machine that does everything.",
	"3": "Three machines: all of them etcd members and workers, two of them masters.",
	"6": "Six machines: two masters that are workers, one worker, three etcd members.",
	"8": "Eight machines: two masters, three workers, three etcd members.",
}

// SchemaFile is the name that New's first line gives the JSON Schema.
const SchemaFile = "cluster.schema.json"

// Outline says what a cluster file to begin with is to hold. Empty fields take the
// default that is named.
type Outline struct {
	Topology       string // of Topologies
	Name           string
	OS, Kubernetes string
	Plugin         string       // of the network; flannel
	Subnet         netip.Prefix // of the machines, IPv4; 172.17.8.0/24
	Workers        int          // besides those of the topology
	MTU            int          // of the machines' cards, which then have their addresses fixed; 0: DHCP gives them
	SSHKeys        []string     // who may log in
}

// firstHost is the place of the first machine's address in its subnet.
const firstHost = 101

var defaultSubnet = netip.MustParsePrefix("172.17.8.0/24")

// Machines is how many machines it makes.
func (o Outline) Machines() int { return len(topology[o.Topology]) + o.Workers }

// New prints a cluster file to begin with.
func New(o Outline) (string, error) {
	machines, ok := topology[o.Topology]
	if !ok {
		return "", fmt.Errorf("unknown topology %q: choose %s", o.Topology, strings.Join(Topologies, ", "))
	}
	if !o.Subnet.IsValid() {
		o.Subnet = defaultSubnet
	}
	if !o.Subnet.Addr().Is4() || o.Subnet != o.Subnet.Masked() {
		return "", fmt.Errorf("%s is no IPv4 network, such as %s", o.Subnet, defaultSubnet)
	}
	first := o.Subnet.Addr().As4()
	address := func(i int) netip.Addr {
		n := binary.BigEndian.Uint32(first[:]) + uint32(firstHost+i)
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], n)
		return netip.AddrFrom4(a)
	}
	if o.Workers < 0 {
		return "", fmt.Errorf("%d workers besides the topology's: give 0 or more", o.Workers)
	}
	if !o.Subnet.Contains(address(o.Machines())) || o.Machines() > 0xff {
		return "", fmt.Errorf("%s has no room for %d machines, of which the first is %s", o.Subnet, o.Machines(), address(0))
	}
	keys, err := json.Marshal(append([]string{}, o.SSHKeys...))
	if err != nil {
		return "", err
	}
	if o.Plugin == "" {
		o.Plugin = "flannel"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# yaml-language-server: $schema=%s\n# (kimage cluster schema > %s)\n", SchemaFile, SchemaFile)
	fmt.Fprintf(&b, "# %s\n", topologyTitle[o.Topology])
	fmt.Fprintf(&b, `apiVersion: %s
kind: %s
metadata: {name: %s}
spec:
  kubernetes: %s
  os: %s
  runtime: containerd
  network:
    plugin: %s
    pods: [10.244.0.0/16]
    services: [10.96.0.0/12]
    nodes: [%s]
  machine:
    ssh: {authorizedKeys: %s}    # who may log in%s
`, APIVersion, Kind, o.Name, o.Kubernetes, o.OS, o.Plugin, o.Subnet, keys, map[bool]string{true: "; nobody as it is"}[len(o.SSHKeys) == 0])
	if o.MTU > 0 {
		fmt.Fprintf(&b, "    network: {mtu: %d}    # addresses are fixed: no DHCP server gives them\n", o.MTU)
	}
	b.WriteString("  nodes:\n")
	for i := range o.Machines() {
		roles := "worker"
		if i < len(machines) {
			roles = machines[i]
		}
		fmt.Fprintf(&b, "  - name: k8s-%02d\n    roles: [%s]\n    address: %s\n    match: {mac: \"%s\"}\n", i+1, roles, address(i), o.mac(i))
	}
	return b.String(), nil
}

// mac is a card's address, of those that virtual machines have, by the machine's
// address: two clusters side by side have others.
func (o Outline) mac(i int) string {
	a := o.Subnet.Addr().As4()
	if o.Subnet == defaultSubnet {
		a[1], a[2] = 0x17, 0x08 // easy to read
	}
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", a[1], a[2], i+1)
}
