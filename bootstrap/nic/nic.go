// Package nic looks at the network card that carries the node's address, and
// says what keeps the address from being there and being this machine's alone.
// It changes nothing, and does not look beyond the machine's own wire.
package nic

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Card is a network card of the machine, or a VLAN, bridge or bond on one.
type Card struct {
	Name      string
	Index     int
	MAC       string
	Up        bool // switched on
	Link      bool // a carrier is there
	Addresses []netip.Prefix
	Refused   []netip.Addr // IPv6: another machine has it, says the kernel
}

// Want is what the cluster file says of the node's address.
type Want struct {
	Addresses []netip.Addr   // empty: any
	Nodes     []netip.Prefix // the cluster's node networks; empty: any
	MAC       string         // of the card; empty: any
}

// NewWant reads what node.json says; it was checked when it was made.
func NewWant(addresses, nodes []string, mac string) Want {
	w := Want{MAC: strings.ToLower(mac)}
	for _, a := range addresses {
		if ip, err := netip.ParseAddr(a); err == nil {
			w.Addresses = append(w.Addresses, ip)
		}
	}
	for _, n := range nodes {
		if p, err := netip.ParsePrefix(n); err == nil {
			w.Nodes = append(w.Nodes, p)
		}
	}
	return w
}

// Cards are the machine's, without the ends of pods where there is hardware.
func Cards() ([]Card, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	devices := map[string]bool{}
	for _, l := range links {
		if _, err := os.Stat(filepath.Join(sysDir, l.Name, "device")); err == nil {
			addDevice(devices, l.Name)
		}
	}
	refused := refusedIPv6()
	var all []Card
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || len(devices) > 0 && !devices[l.Name] {
			continue
		}
		c := Card{Name: l.Name, Index: l.Index, MAC: l.HardwareAddr.String(), Up: l.Flags&net.FlagUp != 0, Link: l.Flags&net.FlagRunning != 0, Refused: refused[l.Index]}
		if c.Addresses, err = addresses(l.Index); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

const sysDir = "/sys/class/net"

// addDevice adds a card and the VLANs, bridges and bonds over it, but no
// plugin's tunnel.
func addDevice(devices map[string]bool, card string) {
	if devices[card] {
		return
	}
	devices[card] = true
	const upper = "upper_"
	above, _ := filepath.Glob(filepath.Join(sysDir, card, upper+"*"))
	for _, file := range above {
		name := strings.TrimPrefix(filepath.Base(file), upper)
		if uevent, err := os.ReadFile(filepath.Join(sysDir, name, "uevent")); err == nil && !strings.Contains(string(uevent), "DEVTYPE=vxlan") {
			addDevice(devices, name)
		}
	}
}

// addresses are those by which others could reach the card.
func addresses(index int) (out []netip.Prefix, err error) {
	list, err := (&net.Interface{Index: index}).Addrs()
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p)
		}
	}
	return out, err
}

// dadFailed is IFA_F_DADFAILED (linux/if_addr.h).
const dadFailed = 0x08

// refusedIPv6 reads, by the card's index, what the kernel's duplicate address
// detection found. A line is ADDRESS INDEX LENGTH SCOPE FLAGS NAME, the numbers
// in hexadecimal.
func refusedIPv6() map[int][]netip.Addr {
	out := map[int][]netip.Addr{}
	data, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	if err != nil {
		return out // no IPv6
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 6 || len(f[0]) != 32 {
			continue
		}
		flags, err := strconv.ParseUint(f[4], 16, 32)
		if err != nil || flags&dadFailed == 0 {
			continue
		}
		index, err := strconv.ParseInt(f[1], 16, 32)
		if err != nil {
			continue
		}
		var text []string
		for i := 0; i < 32; i += 4 {
			text = append(text, f[0][i:i+4])
		}
		if ip, err := netip.ParseAddr(strings.Join(text, ":")); err == nil {
			out[int(index)] = append(out[int(index)], ip)
		}
	}
	return out
}
