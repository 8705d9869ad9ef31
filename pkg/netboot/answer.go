package netboot

import (
	"bytes"
	"net"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// The longest names that fit: BOOTP's field with its zero, and an option.
const fileBytes, optionBytes = 127, 255

// answer is to a message on DHCP's port; nil: none.
func (s *Server) answer(m *dhcpv4.DHCPv4, from netip.AddrPort) *reply {
	kind := m.MessageType()
	client, boots := clientOf(m)
	if s.leases == nil && (!boots || kind != dhcpv4.MessageTypeDiscover) {
		return nil // the DHCP server's affair
	}
	if bytes.Equal(m.ClientHWAddr, s.card.HardwareAddr) || !s.limit.allow([6]byte(m.ClientHWAddr)) {
		return nil // the kernel brings back what otherDHCP sends
	}
	file := ""
	if boots && (kind == dhcpv4.MessageTypeDiscover || kind == dhcpv4.MessageTypeRequest) {
		ok := false
		if file, ok = s.bootFile(client); !ok {
			return nil
		}
	}
	var r *dhcpv4.DHCPv4
	switch {
	case s.leases != nil:
		r = s.lease(m)
	case boots:
		r = s.respond(m, dhcpv4.MessageTypeOffer)
	}
	if r == nil {
		return nil
	}
	to := everybody
	if ciaddr, _ := netip.AddrFromSlice(m.ClientIPAddr.To4()); ciaddr == from.Addr() && s.near(ciaddr) && r.MessageType() == dhcpv4.MessageTypeAck {
		to = netip.AddrPortFrom(ciaddr, clientPort) // it has an address, and renews it
	}
	if file != "" && r.MessageType() != dhcpv4.MessageTypeNak {
		s.boot(r, m, client, file)
		s.cfg.Logf("%s: %s %s", client, r.MessageType(), file)
	} else {
		s.cfg.Logf("%s: %s %s", r.ClientHWAddr, r.MessageType(), r.YourIPAddr)
	}
	return &reply{r, to}
}

// answerPXE is to a message on the port of boot servers, from a machine that has its
// address; nil: none.
func (s *Server) answerPXE(m *dhcpv4.DHCPv4, from netip.AddrPort) *reply {
	client, boots := clientOf(m)
	if !boots || m.MessageType() != dhcpv4.MessageTypeRequest || !s.near(from.Addr()) || from.Port() == 0 || !s.limit.allow([6]byte(m.ClientHWAddr)) {
		return nil
	}
	file, ok := s.bootFile(client)
	if !ok {
		return nil
	}
	r := s.respond(m, dhcpv4.MessageTypeAck)
	if r == nil {
		return nil
	}
	s.boot(r, m, client, file)
	s.cfg.Logf("%s: %s %s, to %s", client, r.MessageType(), file, from)
	return &reply{r, from}
}

// near: an address that another machine on the wire has.
func (s *Server) near(a netip.Addr) bool {
	return s.subnet.Contains(a) && a != s.subnet.Addr() && a != s.subnet.Masked().Addr() && a != last(s.subnet)
}

// bootFile asks Config.Boot, and refuses what the machine could not load.
func (s *Server) bootFile(c Client) (string, bool) {
	file, ok := s.cfg.Boot(c)
	if !ok {
		return "", false
	}
	url := strings.Contains(file, "://")
	switch {
	case file == "" || len(file) > optionBytes || !url && len(file) > fileBytes:
		s.cfg.Logf("%s: %q cannot be told over DHCP: up to %d bytes of a name, %d of an URL", c, file, fileBytes, optionBytes)
	case url && !c.IPXE && c.Firmware != HTTP:
		s.cfg.Logf("%s: no answer, as it cannot fetch %s before it runs iPXE", c, file)
	case !url && c.Firmware == HTTP:
		s.cfg.Logf("%s: no answer, as it boots over HTTP and %s is no URL", c, file)
	default:
		return file, true
	}
	return "", false
}

// respond starts the answer to a message.
func (s *Server) respond(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	us := net.IP(s.subnet.Addr().AsSlice())
	r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(us)))
	if err != nil {
		return nil
	}
	if kind == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr
	}
	// What it repeats must not outgrow the question.
	if len(r.Options.Get(dhcpv4.OptionClientIdentifier)) > optionBytes {
		r.Options.Del(dhcpv4.OptionClientIdentifier)
	}
	r.Options.Del(dhcpv4.OptionRelayAgentInformation)
	return r
}

// boot adds to an answer what the machine boots.
func (s *Server) boot(r, m *dhcpv4.DHCPv4, c Client, file string) {
	us := s.subnet.Addr()
	class := "PXEClient"
	if c.Firmware == HTTP {
		class = "HTTPClient"
	}
	r.UpdateOption(dhcpv4.OptClassIdentifier(class))
	if uuid := m.Options.Get(optionUUID); len(uuid) == 17 {
		r.UpdateOption(dhcpv4.OptGeneric(optionUUID, uuid))
	}
	r.ServerIPAddr = us.AsSlice()
	r.ServerHostName = us.String()
	if len(file) <= fileBytes {
		r.BootFileName = file
	}
	if c.Firmware == BIOS && !c.IPXE {
		// PXE_DISCOVERY_CONTROL 8: no menu, no other boot server, load this file. And no
		// options 66 and 67, whose strings old ROMs read on into what follows.
		r.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, []byte{6, 1, 8, 255}))
		return
	}
	// UEFI gets no option 43. Some of it ignores an answer that has one; without, it asks
	// again on port 4011, and all of it does.
	if c.Firmware != HTTP {
		r.UpdateOption(dhcpv4.OptTFTPServerName(us.String()))
	}
	r.UpdateOption(dhcpv4.OptBootFileName(file))
	if c.IPXE && s.leases != nil {
		// no-pxedhcp: it need not wait whether a proxyDHCP server answers as well.
		r.UpdateOption(dhcpv4.OptGeneric(optionIPXE, []byte{176, 1, 1}))
	}
}
