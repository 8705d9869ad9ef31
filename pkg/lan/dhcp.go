package lan

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// DHCP gives machines the addresses that are meant for them. It gives no router and
// no name server: the switch leads nowhere.
type DHCP struct {
	Subnet netip.Prefix
	Server netip.Addr // of the server, which only DHCP knows
	// Addresses by the card's address; a card that is not among them gets none.
	Addresses map[[6]byte]netip.Addr
}

// serverMAC is locally administered, as those of virtual machines are.
var serverMAC = [6]byte{0x52, 0x54, 0, 0x17, 0x08, 0xff}

// lease is for good: there is nobody else to give the address to.
const lease = time.Duration(1<<32-1) * time.Second

// Serve has the switch answer DHCP.
func (s *Switch) Serve(d DHCP) error {
	for _, a := range append([]netip.Addr{d.Server}, values(d.Addresses)...) {
		if !a.Is4() || !d.Subnet.Contains(a) {
			return fmt.Errorf("%s is no IPv4 address of %s", a, d.Subnet)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dhcp = &d
	return nil
}

func values(m map[[6]byte]netip.Addr) (all []netip.Addr) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// Lengths of headers, and ports.
const (
	ipBytes, udpBytes      = 20, 8
	serverPort, clientPort = 67, 68
)

// answer is the frame that answers a frame; nil: none does.
func (d *DHCP) answer(frame []byte) []byte {
	request := d.request(frame)
	if request == nil || request.OpCode != dhcpv4.OpcodeBootRequest || len(request.ClientHWAddr) != 6 {
		return nil
	}
	client := [6]byte(request.ClientHWAddr)
	address, known := d.Addresses[client]
	if !known {
		return nil
	}
	if server := request.ServerIdentifier(); server != nil && !server.Equal(d.Server.AsSlice()) {
		return nil // it has chosen another
	}
	kind := dhcpv4.MessageTypeAck
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeInform:
	case dhcpv4.MessageTypeRequest:
		wanted := request.RequestedIPAddress()
		if wanted == nil {
			wanted = request.ClientIPAddr
		}
		if !wanted.Equal(address.AsSlice()) {
			kind = dhcpv4.MessageTypeNak
		}
	default:
		return nil
	}
	reply, err := dhcpv4.NewReplyFromRequest(request, dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(d.Server.AsSlice()), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(d.Server.AsSlice())))
	if err != nil {
		return nil
	}
	if kind != dhcpv4.MessageTypeNak {
		reply.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(d.Subnet.Bits(), 32)))
		if request.MessageType() != dhcpv4.MessageTypeInform {
			reply.YourIPAddr = address.AsSlice()
			reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(lease))
		}
	}
	// Who has no address yet hears what goes to all.
	return d.frame(client, reply.ToBytes())
}

// request is the DHCP message in a frame; nil: there is none for the server.
func (d *DHCP) request(frame []byte) *dhcpv4.DHCPv4 {
	const etherIPv4, protocolUDP = 0x0800, 17
	if len(frame) < headerBytes+ipBytes+udpBytes || binary.BigEndian.Uint16(frame[12:]) != etherIPv4 {
		return nil
	}
	ip := frame[headerBytes:]
	header, fragment := int(ip[0]&15)*4, binary.BigEndian.Uint16(ip[6:])&0x3fff
	if ip[0]>>4 != 4 || ip[9] != protocolUDP || fragment != 0 || header < ipBytes || len(ip) < header+udpBytes {
		return nil
	}
	udp := ip[header:]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != serverPort || length < udpBytes || length > len(udp) {
		return nil
	}
	m, err := dhcpv4.FromBytes(udp[udpBytes:length])
	if err != nil {
		return nil
	}
	return m
}

// frame carries a message to a machine, to the address of all.
func (d *DHCP) frame(to [6]byte, message []byte) []byte {
	f := make([]byte, headerBytes+ipBytes+udpBytes, headerBytes+ipBytes+udpBytes+len(message))
	copy(f, to[:])
	copy(f[6:], serverMAC[:])
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	ip := f[headerBytes:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(ipBytes+udpBytes+len(message)))
	copy(ip[12:16], d.Server.AsSlice())
	copy(ip[16:20], []byte{255, 255, 255, 255})
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ipBytes]))
	udp := ip[ipBytes:]
	binary.BigEndian.PutUint16(udp, serverPort)
	binary.BigEndian.PutUint16(udp[2:], clientPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(udpBytes+len(message))) // without a checksum, as IPv4 allows
	return append(f, message...)
}

// checksum is that of an IP header (RFC 1071).
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
