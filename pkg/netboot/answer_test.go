package netboot

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

var (
	testMAC  = net.HardwareAddr{0x52, 0x54, 0, 0x17, 8, 1}
	testUUID = []byte{0, 0x67, 0x45, 0x23, 0x01, 0xab, 0x89, 0xef, 0xcd, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}
	zero     = netip.AddrPortFrom(netip.IPv4Unspecified(), clientPort)
)

// question is one of a machine that boots.
func question(kind dhcpv4.MessageType, class string, arch iana.Arch, more ...dhcpv4.Option) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(testMAC), dhcpv4.WithOption(dhcpv4.OptClassIdentifier(class)), dhcpv4.WithOption(dhcpv4.OptClientArch(arch)), dhcpv4.WithOption(dhcpv4.OptGeneric(optionUUID, testUUID)))
	if err != nil {
		panic(err)
	}
	for _, o := range more {
		m.UpdateOption(o)
	}
	return m
}

var (
	userClass = dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE"))
	features  = dhcpv4.OptGeneric(optionIPXE, []byte{19, 1, 1})
)

func TestClients(t *testing.T) {
	const discover = dhcpv4.MessageTypeDiscover
	for _, tt := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"BIOS", question(discover, "PXEClient:Arch:00000:UNDI:002001", 0), "52:54:00:17:08:01 (BIOS, architecture 0)"},
		{"x64", question(discover, "PXEClient:Arch:00007:UNDI:003016", 7), "52:54:00:17:08:01 (UEFI, architecture 7)"},
		{"x64 by the letter", question(discover, "PXEClient:Arch:00009:UNDI:003016", 9), "52:54:00:17:08:01 (UEFI, architecture 9)"},
		{"arm64", question(discover, "PXEClient:Arch:00011:UNDI:003000", 11), "52:54:00:17:08:01 (UEFI, architecture 11)"},
		{"HTTP", question(discover, "HTTPClient:Arch:00016:UNDI:003001", 16), "52:54:00:17:08:01 (HTTP, architecture 16)"},
		{"HTTP with PXE's architecture", question(discover, "HTTPClient", 7), "52:54:00:17:08:01 (HTTP, architecture 7)"},
		{"HTTP's architecture with PXE", question(discover, "PXEClient", 16), "52:54:00:17:08:01 (HTTP, architecture 16)"},
		{"iPXE", question(discover, "PXEClient:Arch:00000:UNDI:002001", 0, userClass), "52:54:00:17:08:01 (iPXE, BIOS, architecture 0)"},
		{"iPXE of UEFI", question(discover, "PXEClient:Arch:00007:UNDI:003010", 7, features), "52:54:00:17:08:01 (iPXE, UEFI, architecture 7)"},
		{"iPXE as RFC 3004", question(discover, "", 7, dhcpv4.OptRFC3004UserClass([]string{"x", "iPXE"})), "52:54:00:17:08:01 (iPXE, UEFI, architecture 7)"},
		{"gPXE", question(discover, "PXEClient", 0, features, dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("gPXE"))), "52:54:00:17:08:01 (BIOS, architecture 0)"},
		{"a system", question(discover, "dhcpcd-9.4.1", 0), ""},
		{"a system with nothing", question(discover, "", 0), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, ok := clientOf(tt.m)
			if ok != (tt.want != "") || ok && (c.String() != tt.want || c.UUID != "01234567-89ab-cdef-0123-456789abcdef") {
				t.Errorf("got %s, %s, %v, want %s", c, c.UUID, ok, tt.want)
			}
		})
	}
	m := question(discover, "PXEClient:Arch:00011:UNDI:003000", 0)
	m.Options.Del(dhcpv4.OptionClientSystemArchitectureType)
	m.Options.Del(optionUUID)
	if c, _ := clientOf(m); c.Arch != archARM64 || c.UUID != "" {
		t.Errorf("by its class alone it is %s, %s", c, c.UUID)
	}
}

// testServer has no sockets.
func testServer(t testing.TB, boot func(Client) (string, bool)) (*Server, *log) {
	said := &log{}
	return &Server{cfg: Config{Boot: boot, Logf: said.printf}, card: &net.Interface{Name: "eth0", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, subnet: netip.MustParsePrefix("10.77.0.1/24"), limit: limiter{now: time.Now}}, said
}

func TestAnswers(t *testing.T) {
	const url = "http://10.77.0.1/x"
	client := netip.MustParseAddrPort("10.77.0.50:4011")
	long := url + strings.Repeat("x", 200)
	for _, tt := range []struct {
		name   string
		m      *dhcpv4.DHCPv4
		file   string
		pxe    bool // on port 4011
		to     netip.AddrPort
		class  string // empty: no answer
		vendor bool   // with option 43
		file67 string
	}{
		{name: "BIOS", m: question(dhcpv4.MessageTypeDiscover, "PXEClient", 0), file: "undionly.kpxe", to: everybody, class: "PXEClient", vendor: true},
		{name: "UEFI", m: question(dhcpv4.MessageTypeDiscover, "PXEClient", 7), file: "x.efi", to: everybody, class: "PXEClient", file67: "x.efi"},
		{name: "UEFI again", m: question(dhcpv4.MessageTypeRequest, "PXEClient", 7), file: "x.efi", pxe: true, to: client, class: "PXEClient", file67: "x.efi"},
		{name: "HTTP", m: question(dhcpv4.MessageTypeDiscover, "HTTPClient", 16), file: url, to: everybody, class: "HTTPClient", file67: url},
		{name: "iPXE", m: question(dhcpv4.MessageTypeDiscover, "PXEClient", 0, userClass), file: url, to: everybody, class: "PXEClient", file67: url},
		{name: "long URL", m: question(dhcpv4.MessageTypeDiscover, "PXEClient", 0, userClass), file: long, to: everybody, class: "PXEClient", file67: long},
		{name: "longer URL", m: question(dhcpv4.MessageTypeDiscover, "PXEClient", 0, userClass), file: long + long},
		{name: "an URL for a ROM", m: question(dhcpv4.MessageTypeDiscover, "PXEClient", 0), file: url},
		{name: "a name for HTTP", m: question(dhcpv4.MessageTypeDiscover, "HTTPClient", 16), file: "x.efi"},
		{name: "a system", m: question(dhcpv4.MessageTypeDiscover, "dhclient", 0), file: "x.efi"},
		{name: "to the DHCP server", m: question(dhcpv4.MessageTypeRequest, "PXEClient", 7), file: "x.efi"},
		{name: "a system, to 4011", m: question(dhcpv4.MessageTypeRequest, "dhclient", 0), file: "x.efi", pxe: true},
		{name: "unknown", m: question(dhcpv4.MessageTypeDiscover, "PXEClient", 0)},
		{name: "unknown, to 4011", m: question(dhcpv4.MessageTypeRequest, "PXEClient", 0), pxe: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, said := testServer(t, func(Client) (string, bool) { return tt.file, tt.file != "" })
			r := s.answer(tt.m, zero)
			if tt.pxe {
				r = s.answerPXE(tt.m, client)
			}
			if r == nil {
				if tt.class != "" {
					t.Errorf("no answer: %s", said)
				}
				return
			}
			got, err := dhcpv4.FromBytes(r.message.ToBytes())
			if err != nil {
				t.Fatal(err)
			}
			field := tt.file
			if len(field) > 127 {
				field = ""
			}
			if got.ClassIdentifier() != tt.class || r.to != tt.to || got.Options.Has(dhcpv4.OptionVendorSpecificInformation) != tt.vendor || string(got.Options.Get(dhcpv4.OptionBootfileName)) != tt.file67 || got.BootFileName != field {
				t.Errorf("the answer to %s: %s", r.to, got.Summary())
			}
			if !got.YourIPAddr.IsUnspecified() || !got.ServerIPAddr.Equal(net.IPv4(10, 77, 0, 1)) || !got.ServerIdentifier().Equal(net.IPv4(10, 77, 0, 1)) || !bytes.Equal(got.Options.Get(optionUUID), testUUID) || got.TransactionID != tt.m.TransactionID {
				t.Errorf("the answer: %s", got.Summary())
			}
		})
	}
}

// TestAsker: answers go to who asks, if that is on the wire.
func TestAsker(t *testing.T) {
	s, _ := testServer(t, func(Client) (string, bool) { return "x.efi", true })
	for _, from := range []string{"10.78.0.5:4011", "0.0.0.0:68", "10.77.0.255:4011", "10.77.0.0:68", "255.255.255.255:68", "10.77.0.1:4011", "10.77.0.5:0"} {
		if r := s.answerPXE(question(dhcpv4.MessageTypeRequest, "PXEClient", 7), netip.MustParseAddrPort(from)); r != nil {
			t.Errorf("%s is answered", from)
		}
	}
	m := question(dhcpv4.MessageTypeDiscover, "PXEClient", 7)
	m.GatewayIPAddr = net.IPv4(10, 77, 0, 9).To4()
	if request(m.ToBytes()) != nil {
		t.Error("a relay is answered")
	}
}

func TestLimit(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := limiter{now: func() time.Time { return now }}
	count := func(mac [6]byte, times int) (n int) {
		for range times {
			if l.allow(mac) {
				n++
			}
		}
		return n
	}
	if n := count([6]byte{1}, 100); n != burst {
		t.Errorf("%d answers at once, want %d", n, burst)
	}
	now = now.Add(3 * time.Second)
	if n := count([6]byte{1}, 100); n != 3 {
		t.Errorf("%d answers after three seconds, want 3", n)
	}
	now = now.Add(time.Hour)
	n := 0
	for i := range 2 * machines {
		n += count([6]byte{2, byte(i), byte(i >> 8)}, 1)
	}
	if n != burstAll {
		t.Errorf("%d answers to all, want %d", n, burstAll)
	}
	if len(l.by) > machines {
		t.Errorf("%d machines are remembered", len(l.by))
	}
	now = now.Add(time.Minute)
	if count([6]byte{3}, 1) != 1 {
		t.Error("a minute after the flood a machine is not answered")
	}
}

// FuzzDHCP: whatever is said, no answer goes to others than the asker and everybody, or is
// much longer than the question.
func FuzzDHCP(f *testing.F) {
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeDecline} {
		f.Add(question(kind, "PXEClient:Arch:00007:UNDI:003016", 7).ToBytes())
		f.Add(question(kind, "HTTPClient:Arch:00016:UNDI:003016", 16).ToBytes())
		f.Add(question(kind, "PXEClient", 0, userClass, features, dhcpv4.OptRequestedIPAddress(net.IPv4(10, 77, 0, 101)), dhcpv4.OptClientIdentifier(bytes.Repeat([]byte{1}, 40))).ToBytes())
		f.Add(question(kind, "dhclient", 0, dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 1)), dhcpv4.OptRequestedIPAddress(net.IPv4(10, 77, 0, 101))).ToBytes())
	}
	boot := func(c Client) (string, bool) {
		if c.IPXE || c.Firmware == HTTP {
			return "http://10.77.0.1/boot.ipxe", c.Arch != 9
		}
		return "undionly.kpxe", c.Arch != 9
	}
	from := netip.MustParseAddrPort("10.77.0.101:68")
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := request(packet)
		if m == nil {
			return
		}
		proxy, _ := testServer(t, boot)
		full, _ := testServer(t, boot)
		full.leases = &leases{span: wireRange, time: time.Hour, now: time.Now, held: map[netip.Addr]*held{}, never: map[netip.Addr]bool{}}
		full.cfg.Router, full.cfg.DNS = wireAddress, []netip.Addr{wireAddress}
		for _, r := range []*reply{proxy.answer(m, from), proxy.answerPXE(m, from), full.answer(m, from), full.answer(m, zero), full.answer(m, from), full.answerPXE(m, from)} {
			if r == nil {
				continue
			}
			if r.to != from && r.to != everybody {
				t.Errorf("the answer goes to %s", r.to)
			}
			if b := r.message.ToBytes(); len(b) > max(300, len(packet))+300 {
				t.Errorf("%d bytes answer %d", len(b), len(packet))
			}
		}
		offeredBy(packet, m.TransactionID)
	})
}

// FuzzOffer reads what is on the wire as IP.
func FuzzOffer(f *testing.F) {
	offer, err := dhcpv4.NewReplyFromRequest(question(dhcpv4.MessageTypeDiscover, "", 0), dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithYourIP(net.IPv4(10, 77, 0, 50)))
	if err != nil {
		f.Fatal(err)
	}
	header := make([]byte, 28)
	header[0], header[9], header[23] = 0x45, 17, clientPort
	copy(header[12:], []byte{10, 77, 0, 2})
	packet := append(header, offer.ToBytes()...)
	if got := offeredBy(packet, offer.TransactionID); got != netip.MustParseAddr("10.77.0.2") {
		f.Fatalf("offered by %s", got)
	}
	f.Add(packet)
	f.Fuzz(func(_ *testing.T, b []byte) { offeredBy(b, offer.TransactionID) })
}
