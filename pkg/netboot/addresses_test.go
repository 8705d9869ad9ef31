package netboot

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/kimage-project/kimage/pkg/need"
)

// bound is what a client's script writes of its lease.
var bound = regexp.MustCompile(`(?m)^GOT (\S+)(.*)$`)

// script is one that DHCP clients run: it says what they got, and gives the card the address.
func script(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script")
	text := `#!/bin/sh
# udhcpc tells its reason as an argument, the others in the environment.
case "${1:-$reason}" in
bound|renew|BOUND|RENEW|REBOOT|REBIND)
	a=${ip:-$new_ip_address}
	ip address replace "$a/24" dev eth0
	echo "GOT $a $1$reason router=$router$new_routers dns=$dns$new_domain_name_servers lease=$lease$new_dhcp_lease_time mask=$subnet$new_subnet_mask next=$siaddr file=$boot_file$new_filename"
esac
`
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func got(t *testing.T, said *log, times int) (address, rest string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if all := bound.FindAllStringSubmatch(said.String(), -1); len(all) >= times {
			return all[times-1][1], all[times-1][2]
		}
		if time.Now().After(end) {
			t.Fatalf("no lease:\n%s", said)
		}
	}
}

func fullConfig(t *testing.T) Config {
	return Config{Range: wireRange, LeaseFile: filepath.Join(t.TempDir(), "leases.json"), AllowOther: true, Router: netip.MustParseAddr("10.77.0.254"), DNS: []netip.Addr{netip.MustParseAddr("10.77.0.253"), netip.MustParseAddr("9.9.9.9")},
		Static: map[[6]byte]netip.Addr{{0x52, 0x54, 0, 0x17, 8, 0x11}: netip.MustParseAddr("10.77.0.17"), {0x52, 0x54, 0, 0x17, 8, 0x12}: netip.MustParseAddr("10.77.0.100")}}
}

// TestLeases: real DHCP clients get addresses, renew them, and keep them over a restart.
func TestLeases(t *testing.T) {
	w := newWire(t)
	cfg := fullConfig(t)
	said, stop := w.serve(cfg)
	need.Program(t, "udhcpc", "udhcpc")
	need.Program(t, "dhclient", "isc-dhcp-client")
	file := script(t)

	first := w.host("52:54:00:17:08:01")
	udhcpc := first.command("udhcpc", "-f", "-i", "eth0", "-s", file, "-O", "dns")
	udhcpcSaid := &log{}
	udhcpc.Stdout, udhcpc.Stderr = udhcpcSaid, udhcpcSaid
	if err := udhcpc.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udhcpc.Process.Kill(); udhcpc.Wait() })
	a, rest := got(t, udhcpcSaid, 1)
	// .100 is somebody's own.
	if want := " bound router=10.77.0.254 dns=10.77.0.253 9.9.9.9 lease=86400 mask=255.255.255.0 next= file="; a != "10.77.0.101" || rest != want {
		t.Errorf("udhcpc got %s%s, want 10.77.0.101%s", a, rest, want)
	}

	second := w.host("52:54:00:17:08:02")
	dir := t.TempDir()
	dhclient := second.start("dhclient", "-d", "-v", "-4", "-sf", file, "-lf", dir+"/leases", "-pf", dir+"/pid", "-cf", "/dev/null", "eth0")
	if a, rest := got(t, dhclient, 1); a != "10.77.0.102" || !strings.Contains(rest, "router=10.77.0.254 dns=10.77.0.253 9.9.9.9 lease=86400 mask=255.255.255.0") {
		t.Errorf("dhclient got %s %s", a, rest)
	}

	third := w.host("52:54:00:17:08:11")
	if a, _ := got(t, third.start("udhcpc", "-f", "-i", "eth0", "-s", file), 1); a != "10.77.0.17" {
		t.Errorf("the machine with an address of its own got %s", a)
	}

	stop()
	said, _ = w.serve(cfg)
	if err := udhcpc.Process.Signal(syscall.SIGUSR1); err != nil { // renew
		t.Fatal(err)
	}
	if a, rest := got(t, udhcpcSaid, 2); a != "10.77.0.101" || !strings.Contains(rest, " renew ") {
		t.Errorf("after the restart udhcpc got %s %s", a, rest)
	}
	// One that is new must not get what the first had, and one that has lost its memory gets its own.
	if a, _ := got(t, w.host("52:54:00:17:08:03").start("udhcpc", "-f", "-i", "eth0", "-s", file), 1); a != "10.77.0.103" {
		t.Errorf("a new machine got %s", a)
	}
	if a, _ := got(t, second.start("udhcpc", "-f", "-i", "eth0", "-s", file), 1); a != "10.77.0.102" {
		t.Errorf("the second got %s after the restart", a)
	}
	if strings.Contains(said.String(), "Nak") {
		t.Errorf("refused:\n%s", said)
	}
}

// TestDecline: an address that is found in use is not given out again.
func TestDecline(t *testing.T) {
	w := newWire(t)
	need.Program(t, "dhcpcd", "dhcpcd-base")
	cfg := fullConfig(t)
	cfg.Static = nil
	said, _ := w.serve(cfg)
	w.host("52:54:00:17:08:09").must("ip", "address", "add", "10.77.0.100/24", "dev", "eth0")
	h := w.host("52:54:00:17:08:01")
	// It keeps files in places that are the computer's, and starts processes that outlive it.
	dhcpcd := h.start("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", `mount -t tmpfs none /run; mount -t tmpfs none /var/lib/dhcpcd; exec dhcpcd -B -4 -d -f /dev/null -c "$0" eth0`, script(t))
	said.wait(t, "10.77.0.100 is in use")
	if a, _ := got(t, dhcpcd, 1); a != "10.77.0.101" {
		t.Errorf("dhcpcd got %s", a)
	}
}

// TestOther: a server that gives addresses is not started beside another; one that does
// not says when there is none.
func TestOther(t *testing.T) {
	w := newWire(t)
	alone, _ := w.serve(Config{})
	alone.wait(t, "no DHCP server answers on wire0")
}

func TestOtherIsNamed(t *testing.T) {
	w := newWire(t)
	h := w.host("52:54:00:17:08:fe")
	h.dnsmasq()
	cfg := fullConfig(t)
	cfg.AllowOther, cfg.Interface, cfg.Boot = false, w.bridge, func(Client) (string, bool) { return "", false }
	_, err := New(cfg)
	if err == nil || !strings.Contains(err.Error(), "another DHCP server, 10.77.0.2, answers on wire0: serve beside it") {
		t.Errorf("got %v", err)
	}
	cfg.AllowOther = true
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.close()
}

// TestBeside: what does not boot from the network, or is unknown, hears nothing.
func TestBeside(t *testing.T) {
	w := newWire(t)
	need.Program(t, "udhcpc", "udhcpc")
	dnsmasq := w.host("52:54:00:17:08:fe").dnsmasq()
	asked := &log{}
	said, _ := w.serve(Config{Boot: func(c Client) (string, bool) { asked.printf("%s", c); return "", false }})
	said.wait(t, "beside the DHCP server 10.77.0.2")
	h := w.host("52:54:00:17:08:01")
	plain := h.start("udhcpc", "-f", "-i", "eth0", "-s", script(t))
	if a, _ := got(t, plain, 1); !strings.HasPrefix(a, "10.77.0.5") {
		t.Errorf("it got %s", a)
	}
	pxe := w.host("52:54:00:17:08:02").start("udhcpc", "-f", "-i", "eth0", "-s", script(t), "-V", "PXEClient:Arch:00007:UNDI:003016", "-x", "0x5d:0007")
	got(t, pxe, 1)
	asked.wait(t, "52:54:00:17:08:02 (UEFI, architecture 7)")
	if strings.Contains(asked.String(), "08:01") || strings.Contains(said.String(), "Offer") || strings.Contains(said.String(), "OFFER") {
		t.Errorf("asked: %s\nthe server: %s\ndnsmasq: %s", asked, said, dnsmasq)
	}
}

func TestPick(t *testing.T) {
	now := time.Unix(1e9, 0)
	cfg := Config{Interface: "eth0", Range: Range{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.4")}, LeaseFile: filepath.Join(t.TempDir(), "leases"), Lease: time.Hour}
	l, err := openLeases(cfg, netip.MustParsePrefix("10.77.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	l.now = func() time.Time { return now }
	mac := func(i byte) [6]byte { return [6]byte{2, 0, 0, 0, 0, i} }
	for i, step := range []struct {
		mac    byte
		wanted string
		take   bool
		after  time.Duration
		want   string
	}{
		{mac: 1, want: "10.77.0.2", take: true}, // .1 is the server's
		{mac: 2, want: "10.77.0.3"},             // only offered
		{mac: 3, want: "10.77.0.4", take: true, wanted: "10.77.0.4"},
		{mac: 4, want: "invalid IP"},
		{mac: 4, want: "10.77.0.3", after: time.Minute, take: true}, // the offer has lapsed
		{mac: 1, want: "10.77.0.2", wanted: "10.77.0.4"},
		{mac: 5, want: "10.77.0.2", after: time.Hour - time.Minute, take: true}, // that ended first
		{mac: 6, want: "10.77.0.4"},
		{mac: 5, want: "10.77.0.2", wanted: "10.77.0.3"},
	} {
		now = now.Add(step.after)
		wanted, _ := netip.ParseAddr(step.wanted)
		a := l.pick(mac(step.mac), wanted)
		if a.String() != step.want {
			t.Errorf("step %d: got %s, want %s", i, a, step.want)
		}
		if !a.IsValid() {
			continue
		}
		l.offer(mac(step.mac), a)
		if step.take {
			if err := l.take(mac(step.mac), a); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSetAddresses: a card that gets an address of its own while the server runs has it from
// the next question on, and who had it until then is refused it.
func TestSetAddresses(t *testing.T) {
	s, _ := testServer(t, func(Client) (string, bool) { return "", false })
	s.cfg.Interface, s.cfg.Range, s.cfg.LeaseFile = "eth0", Range{netip.MustParseAddr("10.77.0.101"), netip.MustParseAddr("10.77.0.109")}, filepath.Join(t.TempDir(), "leases")
	if err := s.SetAddresses(nil, nil); err != nil || s.leases != nil {
		t.Fatalf("beside another server: %v", err)
	}
	var err error
	if s.leases, err = openLeases(s.cfg, s.subnet); err != nil {
		t.Fatal(err)
	}
	wants := func(last, address byte) *dhcpv4.DHCPv4 {
		m := question(dhcpv4.MessageTypeRequest, "", 0, dhcpv4.OptRequestedIPAddress(net.IPv4(10, 77, 0, address)), dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 1)))
		m.ClientHWAddr[5] = last
		return m
	}
	ask := func(last, address byte, kind dhcpv4.MessageType) {
		t.Helper()
		if r := s.lease(wants(last, address)); r == nil || r.MessageType() != kind {
			t.Errorf("card %d asks for .%d, and is told %v", last, address, r)
		}
	}
	ask(8, 101, dhcpv4.MessageTypeAck)
	ask(9, 102, dhcpv4.MessageTypeAck)
	own := map[[6]byte]netip.Addr{{0x52, 0x54, 0, 0x17, 8, 1}: netip.MustParseAddr("10.77.0.101")}
	if err := s.SetAddresses(own, []netip.Addr{netip.MustParseAddr("10.77.0.103")}); err != nil {
		t.Fatal(err)
	}
	ask(1, 101, dhcpv4.MessageTypeAck)
	ask(8, 101, dhcpv4.MessageTypeNak)
	ask(7, 103, dhcpv4.MessageTypeNak)
	ask(9, 102, dhcpv4.MessageTypeAck)
	if err := s.SetAddresses(map[[6]byte]netip.Addr{{1}: netip.MustParseAddr("10.78.0.1")}, nil); err == nil {
		t.Error("an address of another subnet is taken")
	}
	ask(1, 101, dhcpv4.MessageTypeAck)
}

func TestLeasesAreChecked(t *testing.T) {
	address := netip.MustParseAddr
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := Range{address("10.77.0.100"), address("10.77.0.109")}
	for _, tt := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"another subnet", Config{Range: Range{address("10.78.0.100"), address("10.78.0.109")}, LeaseFile: "x"}, "10.78.0.100 is not in 10.77.0.0/24, the subnet of eth0"},
		{"the wrong way", Config{Range: Range{good.To, good.From}, LeaseFile: "x"}, "10.77.0.109 comes after 10.77.0.100"},
		{"half a range", Config{Range: Range{From: good.From}, LeaseFile: "x"}, "is not in"},
		{"no file", Config{Range: good}, "needs a file"},
		{"broken file", Config{Range: good, LeaseFile: broken}, "reading leases from " + broken},
		{"no such folder", Config{Range: good, LeaseFile: "/does/not/exist/leases"}, "/does/not/exist"},
		{"twice", Config{Static: map[[6]byte]netip.Addr{{1}: good.From, {2}: good.From}}, "10.77.0.100 has another use already"},
		{"the server's", Config{Static: map[[6]byte]netip.Addr{{1}: address("10.77.0.1")}}, "10.77.0.1 has another use already"},
		{"everybody's", Config{Static: map[[6]byte]netip.Addr{{1}: address("10.77.0.255")}}, "10.77.0.255 has another use already"},
		{"router elsewhere", Config{Range: good, LeaseFile: "x", Router: address("10.78.0.1")}, "router: 10.78.0.1 is not in"},
		{"a second", Config{Range: good, LeaseFile: "x", Lease: time.Second}, "too short"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Interface = "eth0"
			if _, err := openLeases(tt.cfg, netip.MustParsePrefix("10.77.0.1/24")); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for s, want := range map[string]Range{"10.77.0.100-10.77.0.109": good, "10.77.0.100 - 10.77.0.109": good, "10.77.0.100": {}, "a-b": {}, "::1-::2": {}, "": {}} {
		if r, err := ParseRange(s); r != want || (err == nil) != (want != Range{}) {
			t.Errorf("ParseRange(%q) = %v, %v", s, r, err)
		}
	}
}
