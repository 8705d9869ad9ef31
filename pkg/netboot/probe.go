package netboot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// How another DHCP server is looked for. ISC's waits a second for an answer to a ping
// before it offers an address.
const probes, probeWait = 3, 1300 * time.Millisecond

// otherDHCP asks as a machine would for an address, and returns who offers one; zero:
// nobody. Nothing is taken: an offer that is not requested lapses.
func (s *Server) otherDHCP(ctx context.Context) (netip.Addr, error) {
	// Not through port 68, which this computer's own DHCP client may have.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("looking for another DHCP server: %w (are you root?)", err)
	}
	defer unix.Close(fd)
	ipv4 := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: s.card.Index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})); err != nil {
		return netip.Addr{}, fmt.Errorf("looking for another DHCP server: %w", err)
	}
	question, err := dhcpv4.NewDiscovery(s.card.HardwareAddr, dhcpv4.WithBroadcast(true))
	if err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, packetBytes)
	for range probes {
		if err := s.send(s.dhcp, &reply{question, netip.AddrPortFrom(everybody.Addr(), dhcpPort)}); err != nil {
			return netip.Addr{}, fmt.Errorf("looking for another DHCP server on %s: %w", s.card.Name, err)
		}
		for end := time.Now().Add(probeWait); time.Now().Before(end); {
			if ctx.Err() != nil {
				return netip.Addr{}, ctx.Err()
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
					continue
				}
				return netip.Addr{}, fmt.Errorf("looking for another DHCP server on %s: %w", s.card.Name, err)
			}
			if a := offeredBy(buf[:n], question.TransactionID); a.IsValid() {
				return a, nil
			}
		}
	}
	return netip.Addr{}, nil
}

// offeredBy is the server that offers an address in an IP packet; zero: it is something else.
func offeredBy(packet []byte, id dhcpv4.TransactionID) netip.Addr {
	const ipBytes, udpBytes, protocolUDP = 20, 8, 17
	if len(packet) < ipBytes || packet[0]>>4 != 4 || packet[9] != protocolUDP {
		return netip.Addr{}
	}
	udp := packet[min(len(packet), int(packet[0]&15)*4):]
	if len(udp) < udpBytes || binary.BigEndian.Uint16(udp[2:]) != clientPort {
		return netip.Addr{}
	}
	m, err := dhcpv4.FromBytes(udp[udpBytes:])
	if err != nil || m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != id || m.MessageType() != dhcpv4.MessageTypeOffer || m.YourIPAddr.IsUnspecified() {
		return netip.Addr{} // who offers no address is a proxyDHCP server
	}
	if a, ok := netip.AddrFromSlice(m.ServerIdentifier().To4()); ok {
		return a
	}
	return netip.AddrFrom4([4]byte(packet[12:16]))
}
