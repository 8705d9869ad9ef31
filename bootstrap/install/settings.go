package install

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// settings come from the kernel's command line, where the boot loader put what it knew: so
// the machine needs no lease of its own.
//
//	kimage.server=http://10.0.0.1:8080 kimage.mac=52:54:00:17:08:01
//	kimage.ip=10.0.0.11 kimage.netmask=255.255.255.0 kimage.gateway=10.0.0.254
type settings struct {
	server  string
	mac     string // of the card
	address netip.Prefix
	gateway netip.Addr // zero: none
}

func parse(line string) (s settings, err error) {
	values := map[string]string{}
	for _, word := range strings.Fields(line) {
		if name, value, ok := strings.Cut(word, "="); ok {
			values[name] = value
		}
	}
	bad := func(name, want string) (settings, error) {
		return settings{}, fmt.Errorf("the kernel's command line has %s=%q, and it has to be %s: boot this machine by the script of kimage serve", name, values[name], want)
	}
	if s.server = values["kimage.server"]; s.server == "" {
		return bad("kimage.server", "the server's URL")
	}
	mac, err := net.ParseMAC(strings.ReplaceAll(values["kimage.mac"], "-", ":"))
	if err != nil {
		return bad("kimage.mac", "the address of the card that this machine booted from")
	}
	s.mac = mac.String()
	ip, err := netip.ParseAddr(values["kimage.ip"])
	if err != nil || !ip.Is4() {
		return bad("kimage.ip", "the IPv4 address of this machine")
	}
	mask, err := netip.ParseAddr(values["kimage.netmask"])
	if err != nil || !mask.Is4() {
		return bad("kimage.netmask", "a mask, as 255.255.255.0")
	}
	bits, size := net.IPMask(mask.AsSlice()).Size()
	if size == 0 {
		return bad("kimage.netmask", "a mask, as 255.255.255.0")
	}
	s.address = netip.PrefixFrom(ip, bits)
	if g := values["kimage.gateway"]; g != "" && g != "0.0.0.0" {
		if s.gateway, err = netip.ParseAddr(g); err != nil || !s.gateway.Is4() {
			return bad("kimage.gateway", "an IPv4 address, or missing")
		}
	}
	return s, nil
}
