package ignition

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/kimage-project/kimage/pkg/cluster"
)

// static says whether t has an address that its config must set.
func static(t cluster.Target) bool {
	n := t.Machine.Network
	return len(n.Gateway) > 0 || len(n.Nameservers) > 0 || n.VLAN != 0 || n.MTU != 0
}

// networkd writes systemd-networkd's files for a static address.
func (g *Generator) networkd(p *plan) {
	t, n := p.target, p.target.Machine.Network
	var l3 strings.Builder
	for _, a := range t.Addresses {
		fmt.Fprintf(&l3, "Address=%s\n", g.file.WithPrefix(a))
	}
	for _, gw := range n.Gateway {
		fmt.Fprintf(&l3, "Gateway=%s\n", gw)
	}
	for _, dns := range n.Nameservers {
		fmt.Fprintf(&l3, "DNS=%s\n", dns)
	}
	link := ""
	if n.MTU != 0 {
		link = fmt.Sprintf("\n[Link]\nMTUBytes=%d\n", n.MTU)
	}
	match := "[Match]\nMACAddress=" + t.Match.MAC + "\nType=ether\n\n[Network]\n"
	const dir = "/etc/systemd/network/"
	if n.VLAN == 0 {
		p.add(dir+"10-kimage.network", 0o644, []byte(match+"LinkLocalAddressing=ipv6\n"+l3.String()+link))
		return
	}
	name := vlanName(n.VLAN)
	p.add(dir+"10-kimage.network", 0o644, []byte(match+"VLAN="+name+"\nLinkLocalAddressing=no\n"+link))
	p.add(dir+"10-kimage-vlan.netdev", 0o644, fmt.Appendf(nil, "[NetDev]\nName=%s\nKind=vlan\n\n[VLAN]\nId=%d\n", name, n.VLAN))
	p.add(dir+"10-kimage-vlan.network", 0o644, []byte("[Match]\nName="+name+"\n\n[Network]\nLinkLocalAddressing=ipv6\n"+l3.String()+link))
}

func vlanName(id int) string { return fmt.Sprintf("node.%d", id) }

// networkManager writes NetworkManager's keyfile for a static address
// (nm-settings-keyfile(5)); without a parent a VLAN's is the card of the MAC.
func (g *Generator) networkManager(p *plan) {
	t, n := p.target, p.target.Machine.Network
	var b strings.Builder
	kind := "ethernet"
	if n.VLAN != 0 {
		kind = "vlan"
	}
	fmt.Fprintf(&b, "[connection]\nid=kimage\ntype=%s\nautoconnect-priority=100\n", kind)
	if n.VLAN != 0 {
		fmt.Fprintf(&b, "interface-name=%s\n", vlanName(n.VLAN))
	}
	fmt.Fprintf(&b, "\n[ethernet]\nmac-address=%s\n", strings.ToUpper(t.Match.MAC))
	if n.MTU != 0 {
		fmt.Fprintf(&b, "mtu=%d\n", n.MTU)
	}
	if n.VLAN != 0 {
		fmt.Fprintf(&b, "\n[vlan]\nid=%d\n", n.VLAN)
	}
	for _, family := range []struct {
		name string
		is4  bool
	}{{"ipv4", true}, {"ipv6", false}} {
		var addresses []string
		for _, a := range t.Addresses {
			if netip.MustParseAddr(a).Is4() == family.is4 {
				addresses = append(addresses, g.file.WithPrefix(a))
			}
		}
		fmt.Fprintf(&b, "\n[%s]\n", family.name)
		if len(addresses) == 0 {
			fmt.Fprintf(&b, "method=%s\n", map[bool]string{true: "disabled", false: "link-local"}[family.is4])
			continue
		}
		b.WriteString("method=manual\n")
		for i, a := range addresses {
			fmt.Fprintf(&b, "address%d=%s\n", i+1, a)
		}
		for _, gw := range n.Gateway {
			if netip.MustParseAddr(gw).Is4() == family.is4 {
				fmt.Fprintf(&b, "gateway=%s\n", gw)
			}
		}
		var dns []string
		for _, s := range n.Nameservers {
			if netip.MustParseAddr(s).Is4() == family.is4 {
				dns = append(dns, s)
			}
		}
		if len(dns) > 0 {
			fmt.Fprintf(&b, "dns=%s;\n", strings.Join(dns, ";"))
		}
	}
	p.add("/etc/NetworkManager/system-connections/kimage.nmconnection", 0o600, []byte(b.String()))
}

// networkConfig is cloud-init's network-config, version 2
// (https://docs.cloud-init.io/en/latest/reference/network-config-format-v2.html).
func (g *Generator) networkConfig(t cluster.Target) map[string]any {
	match := map[string]any{"name": "e*"}
	if t.Match.MAC != "" {
		match = map[string]any{"macaddress": t.Match.MAC}
	}
	card := map[string]any{"match": match}
	out := map[string]any{"version": 2, "ethernets": map[string]any{"node": card}}
	if !static(t) {
		card["dhcp4"] = true
		if g.hasIPv6() {
			card["dhcp6"] = true
		}
		return out
	}
	n := t.Machine.Network
	l3 := card
	if n.MTU != 0 {
		card["mtu"] = n.MTU
	}
	if n.VLAN != 0 {
		l3 = map[string]any{"id": n.VLAN, "link": "node"}
		if n.MTU != 0 {
			l3["mtu"] = n.MTU
		}
		out["vlans"] = map[string]any{vlanName(n.VLAN): l3}
	}
	var addresses []string
	for _, a := range t.Addresses {
		addresses = append(addresses, g.file.WithPrefix(a))
	}
	l3["addresses"] = addresses
	var routes []map[string]string
	for _, gw := range n.Gateway {
		to := "0.0.0.0/0" // every version of cloud-init knows it; "default" is newer
		if !netip.MustParseAddr(gw).Is4() {
			to = "::/0"
		}
		routes = append(routes, map[string]string{"to": to, "via": gw})
	}
	if routes != nil {
		l3["routes"] = routes
	}
	if len(n.Nameservers) > 0 {
		l3["nameservers"] = map[string]any{"addresses": n.Nameservers}
	}
	return out
}

func (g *Generator) hasIPv6() bool {
	for _, p := range g.file.Cluster.Spec.Network.Pods {
		if strings.Contains(p, ":") {
			return true
		}
	}
	return false
}
