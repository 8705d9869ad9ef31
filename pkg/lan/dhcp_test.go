package lan

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var testDHCP = DHCP{Subnet: netip.MustParsePrefix("172.17.8.0/24"), Server: netip.MustParseAddr("172.17.8.1"),
	Addresses: map[[6]byte]netip.Addr{{0x52, 0x54, 0, 0x17, 8, 1}: netip.MustParseAddr("172.17.8.101")}}

// asking is the frame in which a machine without an address asks.
func asking(t *testing.T, mac [6]byte, with ...dhcpv4.Modifier) []byte {
	t.Helper()
	message, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(mac[:])}, with...)...)
	if err != nil {
		t.Fatal(err)
	}
	d := DHCP{Server: netip.IPv4Unspecified()}
	frame := d.frame(broadcast, message.ToBytes())
	copy(frame[6:], mac[:])
	udp := frame[headerBytes+ipBytes:]
	binary.BigEndian.PutUint16(udp, clientPort)
	binary.BigEndian.PutUint16(udp[2:], serverPort)
	return frame
}

// told is what an answer says, which any machine must accept as a frame.
func told(t *testing.T, mac [6]byte, frame []byte) *dhcpv4.DHCPv4 {
	t.Helper()
	ip := frame[headerBytes:]
	if [6]byte(frame[:6]) != mac || checksum(ip[:ipBytes]) != 0 || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) || int(binary.BigEndian.Uint16(ip[ipBytes+4:])) != len(ip)-ipBytes || binary.BigEndian.Uint16(ip[ipBytes+2:]) != clientPort {
		t.Fatalf("a frame that no machine takes: %x", frame)
	}
	message, err := dhcpv4.FromBytes(ip[ipBytes+udpBytes:])
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// TestDHCP: a machine gets the address that is meant for its card, no other, and no
// way out.
func TestDHCP(t *testing.T) {
	known, stranger := [6]byte{0x52, 0x54, 0, 0x17, 8, 1}, [6]byte{0x52, 0x54, 0, 0x17, 8, 9}
	kind := dhcpv4.WithMessageType
	wants := func(last byte) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(172, 17, 8, last)))
	}
	of := func(last byte) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(172, 17, 8, last)))
	}
	for _, tt := range []struct {
		name string
		mac  [6]byte
		with []dhcpv4.Modifier
		want dhcpv4.MessageType // none: no answer
		gets bool
	}{
		{"discovers", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeDiscover)}, dhcpv4.MessageTypeOffer, true},
		{"requests it", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeRequest), wants(101), of(1)}, dhcpv4.MessageTypeAck, true},
		{"had it before its reboot", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeRequest), wants(101)}, dhcpv4.MessageTypeAck, true},
		{"has it, and renews", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(net.IPv4(172, 17, 8, 101))}, dhcpv4.MessageTypeAck, true},
		{"requests another's", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeRequest), wants(102)}, dhcpv4.MessageTypeNak, false},
		{"has chosen another server", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeRequest), wants(101), of(2)}, dhcpv4.MessageTypeNone, false},
		{"wants to know more", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(net.IPv4(172, 17, 8, 101))}, dhcpv4.MessageTypeAck, false},
		{"goes", known, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeRelease)}, dhcpv4.MessageTypeNone, false},
		{"is a stranger", stranger, []dhcpv4.Modifier{kind(dhcpv4.MessageTypeDiscover)}, dhcpv4.MessageTypeNone, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := testDHCP.answer(asking(t, tt.mac, tt.with...))
			if (frame != nil) != (tt.want != dhcpv4.MessageTypeNone) {
				t.Fatalf("answered with %x", frame)
			}
			if frame == nil {
				return
			}
			m := told(t, tt.mac, frame)
			if m.MessageType() != tt.want || m.YourIPAddr.Equal(net.IPv4(172, 17, 8, 101)) != tt.gets || len(m.Router()) > 0 || len(m.DNS()) > 0 {
				t.Errorf("told %s", m.Summary())
			}
			if tt.gets && (m.SubnetMask().String() != "ffffff00" || m.IPAddressLeaseTime(0) != lease) {
				t.Errorf("told %s", m.Summary())
			}
		})
	}
}

// TestServe: the machine that asks is answered, nobody else hears of it, and what
// strangers ask passes on to a server that may be there.
func TestServe(t *testing.T) {
	s, sockets := network(t, "a", "b")
	a, b := plugIn(t, sockets[0], 1), plugIn(t, sockets[1], 9)
	meet(a, b)
	if err := s.Serve(testDHCP); err != nil {
		t.Fatal(err)
	}
	send := func(m *machine) []byte {
		frame := asking(t, m.mac, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
		if _, err := m.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
			t.Fatal(err)
		}
		return frame
	}
	send(a)
	a.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	frame, err := readFrame(a.r)
	if err != nil {
		t.Fatal(err)
	}
	if m := told(t, a.mac, frame); m.MessageType() != dhcpv4.MessageTypeOffer {
		t.Errorf("told %s", m.Summary())
	}
	a.say(b.mac, "what b hears first")
	b.hears("what b hears first")
	a.hears(string(send(b)[headerBytes:]))
	outside := testDHCP
	outside.Server = netip.MustParseAddr("10.0.0.1")
	if err := s.Serve(outside); err == nil {
		t.Error("a server outside of its subnet is accepted")
	}
}

// FuzzRequest: no frame of a machine makes the switch fall over.
func FuzzRequest(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, headerBytes+ipBytes+udpBytes))
	f.Fuzz(func(_ *testing.T, frame []byte) { testDHCP.answer(frame) })
}
