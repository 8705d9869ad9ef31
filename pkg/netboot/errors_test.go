package netboot

import (
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/kimage-project/kimage/pkg/need"
)

func newError(cfg Config) string {
	cfg.Boot = func(Client) (string, bool) { return "", false }
	s, err := New(cfg)
	if err == nil {
		s.close()
		return "none"
	}
	return err.Error()
}

func TestInterfaceErrors(t *testing.T) {
	w := newWire(t)
	if got, want := newError(Config{Interface: "eth7"}), `no interface "eth7": there are wire0 (10.77.0.1/24)`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	w.must("ip", "link", "add", "bare0", "type", "bridge")
	t.Cleanup(func() { exec.Command("ip", "link", "del", "bare0").Run() })
	if got := newError(Config{Interface: "bare0"}); !strings.HasPrefix(got, "interface bare0 has no IPv4 address: give it one") || !strings.Contains(got, "wire0 (10.77.0.1/24)") {
		t.Errorf("got %q", got)
	}
	w.must("ip", "address", "add", "10.78.0.1/24", "dev", "bare0")
	if got := newError(Config{Interface: "bare0"}); !strings.Contains(got, "is down: ip link set bare0 up") {
		t.Errorf("got %q", got)
	}
	if got := newError(Config{Interface: "lo"}); !strings.Contains(got, "interface lo is not Ethernet") {
		t.Errorf("got %q", got)
	}
	if p, err := Address("wire0"); err != nil || p.String() != "10.77.0.1/24" {
		t.Errorf("Address: %s, %v", p, err)
	}
}

func TestPortInUse(t *testing.T) {
	w := newWire(t)
	need.Program(t, "dnsmasq", "dnsmasq-base")
	cmd := exec.Command("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--port=0", "--user=root", "--interface=wire0", "--dhcp-range=10.77.0.50,10.77.0.60,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--pid-file=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said := &log{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	said.wait(t, "DHCP, ")
	if got := newError(Config{Interface: w.bridge}); !strings.HasPrefix(got, "UDP port 67 (DHCP) on wire0 is in use by dnsmasq (process ") {
		t.Errorf("got %q", got)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if got := newError(Config{Interface: w.bridge}); got != "none" {
		t.Errorf("after it has ended: %q", got)
	}
	// What the failed ones held is free again; on another interface it would be anyway.
	if got := newError(Config{Interface: w.bridge}); got != "none" {
		t.Errorf("again: %q", got)
	}
}

// TestRootIsNeeded runs itself without the rights that root has.
func TestRootIsNeeded(t *testing.T) {
	const inside = "KIMAGE_NETBOOT_POWERLESS"
	if os.Getenv(inside) != "" {
		if got := newError(Config{Interface: "wire0"}); !strings.Contains(got, "machines can only be booted by root") {
			t.Errorf("got %q", got)
		}
		return
	}
	newWire(t)
	need.Program(t, "setpriv", "util-linux")
	cmd := exec.Command("setpriv", "--bounding-set=-all", "--inh-caps=-all", os.Args[0], "-test.run=^TestRootIsNeeded$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestRootIsNeeded") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestNoise: after thousands of broken packets to all ports it still serves.
func TestNoise(t *testing.T) {
	w := newWire(t)
	need.Program(t, "curl", "curl")
	said, _ := w.serve(Config{Files: fstest.MapFS{"file": &fstest.MapFile{Data: noise(5000)}}, Boot: func(Client) (string, bool) { return "x", true }})
	h := w.host("52:54:00:17:08:01")
	h.must("ip", "address", "add", "10.77.0.3/24", "dev", "eth0")
	c := h.udp("10.77.0.3")
	r := rand.New(rand.NewPCG(1, 2))
	seeds := map[int][]byte{dhcpPort: question(dhcpv4.MessageTypeDiscover, "PXEClient", 7).ToBytes(), pxePort: question(dhcpv4.MessageTypeRequest, "PXEClient", 7).ToBytes(), tftpPort: []byte("\x00\x01file\x00octet\x00tsize\x000\x00blksize\x00512\x00")}
	for range 5000 {
		for port, seed := range seeds {
			b := append([]byte{}, seed...)
			for range 1 + r.IntN(8) {
				b[r.IntN(len(b))] = byte(r.Uint32())
			}
			if r.IntN(3) == 0 {
				b = b[:r.IntN(len(b))]
			}
			c.WriteTo(b, &net.UDPAddr{IP: wireAddress.AsSlice(), Port: port})
		}
	}
	// Transfers that nobody takes last until their timeout.
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(time.Second) {
		out, err := h.command("curl", "-sS", "-o", "/dev/null", "tftp://10.77.0.1/file").CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s\n%s", out, tail(said.String()))
		}
	}
}

func TestFirmwares(t *testing.T) {
	f, err := FindFirmwares("")
	if err != nil {
		need.Missing(t, err.Error())
	}
	for _, tt := range []struct {
		c    Client
		want string
	}{{Client{Arch: 0, Firmware: BIOS}, "undionly.kpxe"}, {Client{Arch: 7, Firmware: UEFI}, "snponly.efi"}, {Client{Arch: 9, Firmware: UEFI}, "snponly.efi"}, {Client{Arch: 16, Firmware: HTTP}, "snponly.efi"}, {Client{Arch: 6, Firmware: UEFI}, ""}} {
		name, ok := f.For(tt.c)
		if name != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.c, name, ok)
		}
		if ok {
			file, _, err := open(f, name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			file.Close()
		}
	}
	for _, name := range []string{"ipxe.iso", "qemu/pxe-e1000.rom", "../passwd", "."} {
		if _, _, err := open(f, name); err == nil {
			t.Errorf("%s opens", name)
		}
	}
	dir := t.TempDir()
	if _, err := FindFirmwares(dir); err == nil || !strings.Contains(err.Error(), "no undionly.kpxe in "+dir) || !strings.Contains(err.Error(), "Debian's package ipxe") {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"undionly.kpxe", "ipxe.efi", "ipxe-arm64.efi"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if f, err = FindFirmwares(dir); err != nil {
		t.Fatal(err)
	}
	if name, ok := f.For(Client{Arch: 11}); !ok || name != "ipxe-arm64.efi" {
		t.Errorf("arm64: %q, %v", name, ok)
	}
}
