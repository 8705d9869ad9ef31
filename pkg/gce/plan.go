package gce

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	compute "google.golang.org/api/compute/v1"

	"github.com/kimage-project/kimage/pkg/cluster"
)

// Machine is a node, or a pool, and what it is told at first boot.
type Machine struct {
	cluster.Target
	Config []byte
	Boot   string // digest of what only a machine that boots anew learns
}

// Cluster is what is to be in the project.
type Cluster struct {
	Image     string // link, from FindImage
	FirstBoot string // Ignition or CloudInit
	Machines  []Machine
	Ports     []cluster.Port
	Inline    bool // configs lie in metadata
}

// roles in the order in which one of a machine's is its instance's.
var roles = []string{cluster.RoleMaster, cluster.RoleEtcd, cluster.RoleWorker}

// roleOf is the role whose secrets a machine has, at most.
func roleOf(t cluster.Target) string {
	for _, r := range roles {
		if t.Has(r) {
			return r
		}
	}
	return cluster.RoleWorker
}

func (c *Cloud) account(role string) string {
	return map[string]string{cluster.RoleEtcd: c.ServiceAccounts.Etcd, cluster.RoleMaster: c.ServiceAccounts.Master, cluster.RoleWorker: c.ServiceAccounts.Worker}[role]
}

// plan is all that a cluster consists of, in the order in which it is made.
type plan struct {
	objects   map[string][]byte
	grants    bool
	firewalls []resource
	addresses []resource
	templates []resource
	machines  []planned
}

// planned is an instance, or a managed group.
type planned struct {
	resource
	machine Machine
	link    string // of its template
}

// plan decides everything, and refuses what cannot be.
func (c *Cloud) plan(x Cluster) (*plan, error) {
	p := &plan{objects: map[string][]byte{}, grants: !x.Inline}
	for _, m := range x.Machines {
		if err := c.planMachine(p, x, m); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	var err error
	p.firewalls, err = c.planFirewalls(x.Ports)
	return p, err
}

func (c *Cloud) planMachine(p *plan, x Cluster, m Machine) error {
	role := roleOf(m.Target)
	userData := m.Config
	if !x.Inline {
		if c.account(role) == "" {
			return fmt.Errorf("spec.platform.gce.serviceAccounts.%s is missing in the cluster file: it reads the machine's config (gcloud iam service-accounts create NAME --project %s); without one, --inline leaves secrets in metadata", role, c.Project)
		}
		object := ConfigObject(c.ID, m.Target, m.Config)
		p.objects[object] = m.Config
		var err error
		if userData, err = UserData(x.FirstBoot, c.Bucket, object, m.Config); err != nil {
			return err
		}
	} else {
		const limit = 256 << 10
		if len(userData) > limit {
			return fmt.Errorf("its config has %d bytes, and metadata takes %d: leave --inline out", len(userData), limit)
		}
		c.secret[string(userData)] = fmt.Sprintf("(the config, %d bytes, not shown)", len(userData))
	}
	zone := m.Machine.GCE.Zone
	if zone == "" {
		zone = c.Zone
	}
	if region(zone) != region(c.Zone) {
		return fmt.Errorf("machine.gce.zone: %s is in another region than spec.platform.gce.zone (%s), and a cluster's network is one region's: choose a zone of %s", zone, c.Zone, region(c.Zone))
	}
	template, err := c.template(x, m, role, userData)
	if err != nil {
		return err
	}
	p.templates = append(p.templates, template)
	link := c.link(templates, "", template.name)
	if m.Pool {
		body := &compute.InstanceGroupManager{Name: name(c.Cluster, m.Name), BaseInstanceName: nameUpTo(maxBase, c.Cluster, m.Name), InstanceTemplate: link, TargetSize: int64(m.Size), ForceSendFields: []string{"TargetSize"},
			// A node that is gone is made again; one that runs is not replaced unasked.
			UpdatePolicy: &compute.InstanceGroupManagerUpdatePolicy{Type: "OPPORTUNISTIC"}}
		d, err := digest(body)
		if err != nil {
			return err
		}
		body.Description = c.described(d)
		p.machines = append(p.machines, planned{resource{groups, zone, body.Name, body, nil, d}, m, link})
		return nil
	}
	for _, a := range m.Addresses {
		if strings.Contains(a, ":") {
			return fmt.Errorf("address %s: Compute Engine is given IPv4 addresses here: leave it out", a)
		}
		body := &compute.Address{Name: name(c.Cluster, m.Name), Address: a, AddressType: "INTERNAL", Purpose: "GCE_ENDPOINT", Subnetwork: c.subnetwork()}
		d, err := digest(body)
		if err != nil {
			return err
		}
		body.Description = c.described(d)
		p.addresses = append(p.addresses, resource{addresses, region(c.Zone), body.Name, body, nil, d})
	}
	// What makes an instance old is what its boot decided, not a roster, which it is told anyway.
	shape, err := digest(c.properties(x, m, role, nil))
	if err != nil {
		return err
	}
	d, err := digest([]string{m.Boot, shape})
	if err != nil {
		return err
	}
	labels := c.machineLabels(m)
	labels[digestLabel] = d
	// Labels of the template count only if the instance names none.
	body := &compute.Instance{Name: name(c.Cluster, m.Name), Labels: labels}
	p.machines = append(p.machines, planned{resource{instances, zone, body.Name, body, url.Values{"sourceInstanceTemplate": {link}}, d}, m, link})
	return nil
}

func (c *Cloud) machineLabels(m Machine) map[string]string {
	labels := c.labels()
	labels["kimage-machine"] = clean(m.Name)
	for _, r := range m.Roles {
		labels["kimage-role-"+r] = "true"
	}
	return labels
}

// template is an instance template: whatever a machine is, its config too. It cannot be
// changed, so what it is like is part of its name.
func (c *Cloud) template(x Cluster, m Machine, role string, userData []byte) (resource, error) {
	properties := c.properties(x, m, role, userData)
	d, err := digest(properties)
	if err != nil {
		return resource{}, err
	}
	body := &compute.InstanceTemplate{Name: name(c.Cluster, m.Name, d[:8]), Description: c.described(d), Properties: properties}
	return resource{templates, "", body.Name, body, nil, d}, nil
}

func (c *Cloud) properties(x Cluster, m Machine, role string, userData []byte) *compute.InstanceProperties {
	size := m.Machine.GCE
	if size.MachineType == "" {
		size.MachineType = "e2-standard-2"
		if !m.Kubelet() {
			size.MachineType = "e2-medium"
		}
	}
	if size.DiskGiB == 0 {
		size.DiskGiB = 30
	}
	if size.DiskType == "" {
		size.DiskType = "pd-balanced"
	}
	nic := &compute.NetworkInterface{Network: "projects/" + c.Project + "/global/networks/" + c.Network, Subnetwork: c.subnetwork()}
	if len(m.Addresses) > 0 {
		nic.NetworkIP = m.Addresses[0]
	}
	if c.ExternalIP {
		nic.AccessConfigs = []*compute.AccessConfig{{Type: "ONE_TO_ONE_NAT", Name: "external"}}
	}
	p := &compute.InstanceProperties{
		MachineType: size.MachineType, Labels: c.machineLabels(m), Tags: &compute.Tags{Items: c.tags(m.Target)},
		Disks: []*compute.AttachedDisk{{Boot: true, AutoDelete: true, Type: "PERSISTENT", InitializeParams: &compute.AttachedDiskInitializeParams{
			SourceImage: x.Image, DiskSizeGb: int64(size.DiskGiB), DiskType: size.DiskType, Labels: c.labels()}}},
		NetworkInterfaces:      []*compute.NetworkInterface{nic},
		ShieldedInstanceConfig: &compute.ShieldedInstanceConfig{EnableSecureBoot: c.SecureBoot, EnableVtpm: true, EnableIntegrityMonitoring: true, ForceSendFields: []string{"EnableSecureBoot"}},
	}
	if a := c.account(role); a != "" {
		// To read its config is all that an instance ever asks Google for.
		p.ServiceAccounts = []*compute.ServiceAccount{{Email: a, Scopes: []string{"https://www.googleapis.com/auth/devstorage.read_only"}}}
	}
	// Keys of the project would let people in whom the cluster file does not name.
	yes := "true"
	p.Metadata = &compute.Metadata{Items: []*compute.MetadataItems{{Key: "block-project-ssh-keys", Value: &yes}}}
	if userData != nil {
		text := string(userData)
		p.Metadata.Items = append(p.Metadata.Items, &compute.MetadataItems{Key: "user-data", Value: &text})
	}
	return p
}

func (c *Cloud) subnetwork() string {
	return "projects/" + c.Project + "/regions/" + region(c.Zone) + "/subnetworks/" + c.Subnetwork
}

// tag is what firewall rules know machines of a role by.
func (c *Cloud) tag(role string) string { return name(c.Cluster, c.ID[:min(8, len(c.ID))], role) }

func (c *Cloud) tags(t cluster.Target) (tags []string) {
	for _, r := range t.Roles {
		tags = append(tags, c.tag(r))
	}
	return tags
}

// planFirewalls makes rules of the ports that must be open: by tag from machine to
// machine, and from the networks that people come from.
func (c *Cloud) planFirewalls(ports []cluster.Port) (out []resource, err error) {
	tagsOf := func(list string) (tags []string, people bool) {
		for _, r := range strings.Split(list, ", ") {
			switch r {
			case "people":
				people = true
			case "all":
				for _, r := range roles {
					tags = append(tags, c.tag(r))
				}
			default:
				tags = append(tags, c.tag(r))
			}
		}
		slices.Sort(tags)
		return tags, people
	}
	rule := func(p cluster.Port, suffix string, to, from, ranges []string) error {
		body := &compute.Firewall{Network: "projects/" + c.Project + "/global/networks/" + c.Network, Direction: "INGRESS", Priority: 1000, TargetTags: to, SourceTags: from, SourceRanges: ranges}
		for _, protocol := range strings.Split(p.Protocol, ", ") {
			body.Allowed = append(body.Allowed, &compute.FirewallAllowed{IPProtocol: protocol, Ports: []string{p.Port}})
		}
		body.Name = name(c.Cluster, strings.ReplaceAll(p.To, ", ", "-"), p.Port, suffix)
		d, err := digest(body)
		if err != nil {
			return err
		}
		body.Description = c.described(d)
		out = append(out, resource{firewalls, "", body.Name, body, nil, d})
		return nil
	}
	for _, p := range ports {
		to, _ := tagsOf(p.To)
		from, people := tagsOf(p.From)
		if len(from) > 0 {
			if err := rule(p, "nodes", to, from, nil); err != nil {
				return nil, err
			}
		}
		if people && len(c.Sources) > 0 {
			if err := rule(p, "people", to, nil, c.Sources); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Templates makes the instance templates and what they refer to.
func (c *Cloud) Templates(ctx context.Context, x Cluster) (names []string, err error) {
	p, err := c.plan(x)
	if err != nil {
		return nil, err
	}
	if err := c.makeTemplates(ctx, p); err != nil {
		return nil, err
	}
	for _, t := range p.templates {
		names = append(names, t.name)
	}
	return names, nil
}
