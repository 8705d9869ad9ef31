package cluster

import (
	"fmt"
	"net/netip"
	"regexp"
)

// GCE is the project that the cluster's machines run in.
type GCE struct {
	Project         string          `yaml:"project" doc:"project ID"`
	Zone            string          `yaml:"zone" doc:"such as europe-west1-b; machine.gce.zone wins"`
	Network         string          `yaml:"network" doc:"empty: default"`
	Subnetwork      string          `yaml:"subnetwork" doc:"in the zone's region; empty: the network's own (networks of auto mode)"`
	Bucket          string          `yaml:"bucket" doc:"Cloud Storage bucket for images on their way and for configs; made if it is not there"`
	ServiceAccounts ServiceAccounts `yaml:"serviceAccounts" doc:"whom instances act as; each may read its own role's configs in the bucket"`
	Sources         []string        `yaml:"sources" doc:"networks from which people reach the cluster (API, status, SSH, NodePorts); empty: none"`
	ExternalIP      bool            `yaml:"externalIP" doc:"instances get an external address; false: the subnetwork needs Private Google Access"`
	SecureBoot      bool            `yaml:"secureBoot" doc:"Shielded VM's secure boot, for images whose boot chain is signed"`
}

// ServiceAccounts are e-mail addresses by role. On machines with several roles
// master counts before etcd, and etcd before worker.
type ServiceAccounts struct {
	Etcd   string `yaml:"etcd"`
	Master string `yaml:"master"`
	Worker string `yaml:"worker"`
}

// GCEMachine is one instance on Compute Engine.
type GCEMachine struct {
	MachineType string `yaml:"machineType" doc:"empty: e2-standard-2, for machines with etcd alone e2-medium"`
	DiskGiB     int    `yaml:"diskGiB" doc:"size of the boot disk; 0: 30"`
	DiskType    string `yaml:"diskType" doc:"empty: pd-balanced"`
	Zone        string `yaml:"zone" doc:"empty: platform.gce.zone"`
}

var (
	gceProject = regexp.MustCompile(`^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$`)
	gceZone    = regexp.MustCompile(`^[a-z]+-[a-z]+[0-9]+-[a-z]$`)
	gceName    = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	gceType    = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	gceBucket  = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]$`)
	gceAccount = regexp.MustCompile(`^[^@\s]+@([a-z0-9-]+\.)+gserviceaccount\.com$`)
)

// gce checks what is set; what kimage gce cannot do without it asks for itself.
func (c *checker) gce() {
	g := c.Cluster.Spec.Platform.GCE
	if g == nil {
		return
	}
	const at = "spec.platform.gce."
	for _, x := range []struct {
		key, value string
		rule       *regexp.Regexp
		remedy     string
	}{
		{"project", g.Project, gceProject, "not a project's ID (gcloud projects list shows them)"},
		{"zone", g.Zone, gceZone, "not a zone (such as europe-west1-b)"},
		{"network", g.Network, gceName, "not a network's name (gcloud compute networks list shows them)"},
		{"subnetwork", g.Subnetwork, gceName, "not a subnetwork's name (gcloud compute networks subnets list shows them)"},
		{"bucket", g.Bucket, gceBucket, "not a bucket's name (3 to 222 lower-case letters, digits, dashes, dots; no gs://)"},
		{"serviceAccounts.etcd", g.ServiceAccounts.Etcd, gceAccount, "not a service account (NAME@PROJECT.iam.gserviceaccount.com)"},
		{"serviceAccounts.master", g.ServiceAccounts.Master, gceAccount, "not a service account (NAME@PROJECT.iam.gserviceaccount.com)"},
		{"serviceAccounts.worker", g.ServiceAccounts.Worker, gceAccount, "not a service account (NAME@PROJECT.iam.gserviceaccount.com)"},
	} {
		if x.value != "" && !x.rule.MatchString(x.value) {
			c.bad(at+x.key, "%s", x.remedy)
		}
	}
	if a := g.ServiceAccounts; a.Worker != "" && (a.Worker == a.Master || a.Worker == a.Etcd) {
		c.bad(at+"serviceAccounts.worker", "workers would be able to read the secrets of masters or etcd members: give them another service account")
	}
	for i, s := range g.Sources {
		if p, err := netip.ParsePrefix(s); err != nil || p.Masked() != p {
			c.bad(fmt.Sprintf(at+"sources[%d]", i), "not a network (such as 203.0.113.0/24)")
		}
	}
	if c.Cluster.Spec.Network.Options["backend"] == "host-gw" {
		c.bad("spec.network.options.backend", "host-gw needs machines on one Ethernet, and Compute Engine routes between all: use vxlan")
	}
	for _, t := range c.Targets() {
		if n := t.Machine.Network; len(n.Gateway)+len(n.Nameservers) > 0 || n.VLAN != 0 || n.MTU != 0 {
			c.bad(t.path+".machine.network", "Compute Engine tells machines address, route and name server by DHCP: leave this out")
		}
	}
}

func (c *checker) gceMachine(m GCEMachine, at func(string) string) {
	if m.MachineType != "" && !gceType.MatchString(m.MachineType) {
		c.bad(at("machineType"), "not a machine type (such as e2-standard-4)")
	}
	if m.DiskType != "" && !gceType.MatchString(m.DiskType) {
		c.bad(at("diskType"), "not a disk type (such as pd-balanced)")
	}
	if m.Zone != "" && !gceZone.MatchString(m.Zone) {
		c.bad(at("zone"), "not a zone (such as europe-west1-b)")
	}
	// The image has room of its own for the system, and the rest is KIMAGE's.
	if m.DiskGiB != 0 && (m.DiskGiB < 10 || m.DiskGiB > 65536) {
		c.bad(at("diskGiB"), "give 10 to 65536")
	}
}
