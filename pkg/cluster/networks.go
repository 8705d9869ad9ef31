package cluster

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/nearest"
)

// What a cluster gets that names no networks, by family.
var (
	defaultPods     = map[bool]string{true: "10.244.0.0/16", false: "fd00:10:244::/48"}
	defaultServices = map[bool]string{true: "10.96.0.0/12", false: "fd00:10:96::/112"}
)

// Sizes that Kubernetes sets.
const (
	nodeMask4, nodeMask6 = 24, 64 // pods of one node
	maxNodeBits          = 16     // kube-controller-manager: between the pod network's mask and a node's
	maxServiceBits       = 20     // kube-apiserver
	minServiceBits       = 4      // the API server has the first address, DNS the tenth
)

type cidr struct {
	path string
	netip.Prefix
}

// networks checks the cluster's networks and fills in their defaults.
func (c *checker) networks() {
	n := &c.Cluster.Spec.Network
	nodes := c.cidrs("spec.network.nodes", n.Nodes)
	families := c.families(nodes)
	if n.Pods == nil {
		for _, f := range families {
			n.Pods = append(n.Pods, defaultPods[f])
		}
	}
	if n.Services == nil {
		for _, f := range families {
			n.Services = append(n.Services, defaultServices[f])
		}
	}
	if n.DNSDomain == "" {
		n.DNSDomain = "cluster.local"
	}
	if !dnsName.MatchString(n.DNSDomain) {
		c.bad("spec.network.dnsDomain", "not a domain name")
	}
	pods, services := c.cidrs("spec.network.pods", n.Pods), c.cidrs("spec.network.services", n.Services)
	c.sizes(pods, services)
	c.sameFamilies(pods, services)
	all := slices.Concat(pods, services, nodes)
	for i, a := range all {
		for _, b := range all[:i] {
			if a.Overlaps(b.Prefix) {
				c.bad(a.path, "overlaps with %s (%s): choose networks of their own", b.path, b.Prefix)
			}
		}
	}
	for _, t := range c.Nodes {
		c.addresses(t, pods, services, nodes)
	}
	known := map[string][]string{"flannel": {"backend", "mtu"}}[n.Plugin]
	for k, v := range n.Options {
		path := join("spec.network.options", k)
		switch {
		case !slices.Contains(known, k):
			c.bad(path, "%v", nearest.Unknown("option of "+n.Plugin, k, known))
		case k == "backend" && v != "vxlan" && v != "host-gw":
			c.bad(path, "choose vxlan or host-gw")
		case k == "mtu":
			if m, err := strconv.Atoi(v); err != nil || m < 1280 || m > 65535 {
				c.bad(path, "give a number of bytes from 1280 to 65535")
			}
		}
	}
}

// families are those of the node networks, else of the machines' addresses, else
// IPv4; true is IPv4.
func (c *checker) families(nodes []cidr) (out []bool) {
	add := func(ip netip.Addr) {
		if !slices.Contains(out, ip.Is4()) {
			out = append(out, ip.Is4())
		}
	}
	for _, n := range nodes {
		add(n.Addr())
	}
	if len(out) == 0 {
		for _, t := range c.Nodes {
			for _, a := range t.Addresses {
				add(netip.MustParseAddr(a))
			}
		}
	}
	if len(out) == 0 {
		return []bool{true}
	}
	return out
}

func (c *checker) cidrs(path string, list []string) (out []cidr) {
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			c.bad(at, "not a network (such as 10.244.0.0/16 or fd00:10:244::/56)")
			continue
		case p.Masked() != p:
			c.bad(at, "the address has bits behind its length: did you mean %s?", p.Masked())
			continue
		}
		out = append(out, cidr{at, p})
	}
	return out
}

func (c *checker) sizes(pods, services []cidr) {
	kubelets := 0
	for _, t := range c.Targets() {
		if t.Pool {
			kubelets += t.Size
		} else if t.Kubelet() {
			kubelets++
		}
	}
	for _, p := range pods {
		mask := nodeMask6
		if p.Addr().Is4() {
			mask = nodeMask4
		}
		bits := mask - p.Bits()
		switch {
		case bits < 0:
			c.bad(p.path, "too small: every node takes a /%d of it", mask)
		case bits > maxNodeBits:
			c.bad(p.path, "too large: Kubernetes wants at least a /%d", mask-maxNodeBits)
		case float64(kubelets) > math.Pow(2, float64(bits)):
			c.bad(p.path, "has room for %d nodes, and the file has %d: use a /%d or larger", 1<<bits, kubelets, mask-int(math.Ceil(math.Log2(float64(kubelets)))))
		}
	}
	for _, s := range services {
		bits := s.Addr().BitLen() - s.Bits()
		if bits > maxServiceBits {
			c.bad(s.path, "too large: Kubernetes wants at most a /%d", s.Addr().BitLen()-maxServiceBits)
		} else if bits < minServiceBits {
			c.bad(s.path, "too small: use at least a /%d", s.Addr().BitLen()-minServiceBits)
		}
	}
}

func (c *checker) sameFamilies(pods, services []cidr) {
	for _, list := range [][]cidr{pods, services} {
		for i := range list {
			if i > 1 || i == 1 && list[0].Addr().Is4() == list[1].Addr().Is4() {
				c.bad(list[i].path, "one network per family, at most one IPv4 and one IPv6")
			}
		}
	}
	for i := range min(len(pods), len(services)) {
		if pods[i].Addr().Is4() != services[i].Addr().Is4() {
			c.bad(services[i].path, "pods and services need the same families in the same order")
		}
	}
	if len(pods) > 0 && len(services) > 0 && len(pods) != len(services) {
		c.bad("spec.network.services", "pods and services need the same families in the same order")
	}
}

// addresses checks the addresses of t against the networks.
func (c *checker) addresses(t Target, pods, services, nodes []cidr) {
	have := map[bool]bool{}
	for i, a := range t.Addresses {
		path := fmt.Sprintf("%s.address[%d]", t.path, i)
		if c.at[path] == nil {
			path = t.path + ".address"
		}
		ip := netip.MustParseAddr(a)
		if have[ip.Is4()] {
			c.bad(path, "one address per family")
		}
		have[ip.Is4()] = true
		for _, n := range slices.Concat(pods, services) {
			if n.Contains(ip) {
				c.bad(path, "lies in %s (%s)", n.path, n.Prefix)
			}
		}
		if len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n cidr) bool { return n.Contains(ip) }) {
			c.bad(path, "lies in none of spec.network.nodes (%s)", strings.Join(c.Cluster.Spec.Network.Nodes, ", "))
		}
	}
	if len(t.Addresses) == 0 {
		return
	}
	for i, p := range pods {
		if !have[p.Addr().Is4()] {
			c.bad(t.path+".address", "the cluster's networks are %s: add an address of that family", map[bool]string{true: "IPv4", false: "IPv6"}[p.Addr().Is4()])
		}
		if i == 0 && netip.MustParseAddr(t.Addresses[0]).Is4() != p.Addr().Is4() && have[p.Addr().Is4()] {
			c.bad(t.path+".address", "the first family is the cluster's: put the %s address first", map[bool]string{true: "IPv4", false: "IPv6"}[p.Addr().Is4()])
		}
	}
}

// ServiceAddress is the nth address of a service network.
func ServiceAddress(network string, n int) (string, error) {
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return "", err
	}
	ip := p.Addr()
	for range n {
		ip = ip.Next()
	}
	return ip.String(), nil
}

func (c *checker) machineNetwork(t Target, at func(string) string) {
	n := t.Machine.Network
	for i, g := range n.Gateway {
		path := at("network.gateway")
		ip, err := netip.ParseAddr(g)
		if err != nil {
			c.bad(path, "not an address")
			continue
		}
		if i > 1 || i == 1 && ip.Is4() == netip.MustParseAddr(zero(n.Gateway[0])).Is4() {
			c.bad(path, "at most one gateway per family")
		}
		if slices.Contains(t.Addresses, ip.String()) {
			c.bad(path, "this is the machine's own address")
		}
	}
	for i, s := range n.Nameservers {
		if _, err := netip.ParseAddr(s); err != nil {
			c.bad(at(fmt.Sprintf("network.nameservers[%d]", i)), "not an address")
		}
	}
	if n.VLAN < 0 || n.VLAN > 4094 {
		c.bad(at("network.vlan"), "give a VLAN ID from 1 to 4094")
	}
	if n.MTU != 0 && (n.MTU < 1280 || n.MTU > 65535) {
		c.bad(at("network.mtu"), "give a number of bytes from 1280 to 65535")
	}
	if len(n.Gateway) == 0 && len(n.Nameservers) == 0 && n.VLAN == 0 && n.MTU == 0 {
		return
	}
	switch {
	case t.Pool:
		c.bad(at("network"), "a static network needs a fixed address, and the machines of a pool have none: list them under spec.nodes, or use DHCP")
	case len(t.Addresses) == 0:
		c.bad(at("network"), "a static network needs %s.address", t.path)
	case t.Match.MAC == "":
		c.bad(at("network"), "a static network needs %s.match.mac: it tells which card is meant", t.path)
	}
	for _, a := range t.Addresses {
		if _, ok := c.prefix(a); !ok {
			c.bad(at("network"), "a static network needs the CIDR that holds %s under spec.network.nodes", a)
		}
	}
}
