package netboot

import (
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

const (
	romMAC  = "52:54:00:17:08:01"
	romUUID = "01234567-89ab-cdef-0123-456789abcdef"
	romTime = 3 * time.Minute
)

// trial is what makes it hard.
type trial int

const (
	slow trial = 1 + iota // the DHCP server answers three seconds after this one
	lost                  // this one's first answer is lost
)

// rom is a real firmware with a real card.
type rom struct {
	name string
	card string // QEMU's device, with options
	uefi bool
	http bool // UEFI boots over HTTP, not PXE
	// chain: the ROM is iPXE already, and is given the program for those that are not.
	chain bool
	want  Client // of the first question: Firmware and IPXE
	trial trial
}

var roms = []rom{
	// QEMU's cards bring iPXE with them, unless romfile is empty: then it is OVMF that asks.
	{name: "BIOS virtio", card: "virtio-net-pci", want: Client{Firmware: BIOS, IPXE: true}},
	{name: "BIOS e1000", card: "e1000", chain: true, want: Client{Firmware: BIOS, IPXE: true}},
	{name: "UEFI e1000", card: "e1000", uefi: true, want: Client{Firmware: UEFI, IPXE: true}},
	{name: "UEFI PXE", card: "virtio-net-pci,romfile=", uefi: true, want: Client{Firmware: UEFI}},
	{name: "UEFI HTTP", card: "virtio-net-pci,romfile=", uefi: true, http: true, want: Client{Firmware: HTTP}},
	{name: "BIOS slow", card: "e1000", chain: true, want: Client{Firmware: BIOS, IPXE: true}, trial: slow},
	{name: "BIOS lost", card: "virtio-net-pci", want: Client{Firmware: BIOS, IPXE: true}, trial: lost},
	{name: "UEFI slow", card: "virtio-net-pci,romfile=", uefi: true, want: Client{Firmware: UEFI}, trial: slow},
	{name: "UEFI lost", card: "virtio-net-pci,romfile=", uefi: true, want: Client{Firmware: UEFI}, trial: lost},
}

// TestROMs: a machine that is switched on fetches a script over HTTP and obeys it, beside
// a DHCP server and alone. Two of them do for every day; make roms ($KIMAGE_ROMS) boots all.
func TestROMs(t *testing.T) {
	if testing.Short() {
		t.Skip("boots firmware")
	}
	for _, r := range roms {
		for _, alone := range []bool{false, true} {
			if alone && r.trial != 0 {
				continue
			}
			name := r.name + map[bool]string{false: " beside dnsmasq", true: " alone"}[alone]
			if os.Getenv("KIMAGE_ROMS") != "" || name == "BIOS virtio beside dnsmasq" || name == "UEFI PXE alone" {
				t.Run(name, func(t *testing.T) { bootROM(t, r, alone) })
			}
		}
	}
}

func bootROM(t *testing.T, r rom, alone bool) {
	w := newWire(t)
	firmwares, err := FindFirmwares("")
	if err != nil {
		need.Missing(t, err.Error())
	}
	web := newScripts(t, firmwares)
	var mu sync.Mutex
	var asked []Client
	cfg := Config{Files: firmwares, Boot: func(c Client) (string, bool) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, c)
		if r.trial == lost && len(asked) == 1 {
			return "", false
		}
		name, ok := firmwares.For(c)
		switch {
		case r.chain && c.IPXE && !web.loaded(name):
			return name, ok
		case c.IPXE:
			return web.url("boot.ipxe"), true
		case c.Firmware == HTTP:
			return web.url(name), ok
		}
		return name, ok
	}}
	if r.chain {
		cfg.Files = web.watch(firmwares)
	}
	if alone {
		cfg.Range, cfg.LeaseFile = wireRange, filepath.Join(t.TempDir(), "leases.json")
	} else {
		var delay []string
		if r.trial == slow {
			delay = []string{"--dhcp-reply-delay=3"}
		}
		w.host("52:54:00:17:08:fe").dnsmasq(delay...)
	}
	said, _ := w.serve(cfg)
	console := startROM(t, r, w.tap())
	began := time.Now()
	select {
	case q := <-web.asked:
		t.Logf("%s after %s", q, time.Since(began).Round(time.Second/10))
		got := q.Query()
		if got.Get("mac") != romMAC || got.Get("uuid") != romUUID {
			t.Errorf("it says of itself %v", got)
		}
		if from := netip.MustParseAddr(got.Get("ip")); alone != (!from.Less(wireRange.From) && !wireRange.To.Less(from)) {
			t.Errorf("its address is %s", from)
		}
	case <-time.After(romTime):
		t.Errorf("no script was fetched; the console:\n%s", tail(console.String()))
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) == 0 {
		t.Fatal("Boot was not asked")
	}
	for _, c := range asked {
		if c.MAC.String() != romMAC || c.UUID != romUUID {
			t.Errorf("it was taken for %s, %s", c, c.UUID)
		}
	}
	if first := asked[0]; first.Firmware != r.want.Firmware || first.IPXE != r.want.IPXE {
		t.Errorf("the first to ask is %s, want %+v", first, r.want)
	}
	if t.Failed() {
		t.Logf("the server:\n%s", said)
	}
}

// startROM switches a machine with an empty disk on.
func startROM(t *testing.T, r rom, tap string) *log {
	t.Helper()
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	disk := filepath.Join(t.TempDir(), "empty.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	argv := []string{"-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-uuid", romUUID,
		"-drive", "file=" + disk + ",format=raw,if=virtio", "-netdev", "tap,id=n,script=no,downscript=no,ifname=" + tap}
	card := r.card + ",netdev=n,mac=" + romMAC
	if r.uefi {
		const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
		empty, err := os.ReadFile(vars)
		if err != nil {
			need.Missing(t, "OVMF is missing: apt-get install ovmf")
		}
		own := filepath.Join(t.TempDir(), "vars.fd")
		if err := os.WriteFile(own, empty, 0o600); err != nil {
			t.Fatal(err)
		}
		argv = append(argv, "-drive", "if=pflash,format=raw,readonly=on,file="+code, "-drive", "if=pflash,format=raw,file="+own)
		// What the firmware is not to try.
		argv = append(argv, "-fw_cfg", "name=opt/org.tianocore/IPv6Support,string=n", "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string="+map[bool]string{false: "y", true: "n"}[r.http])
	} else {
		argv = append(argv, "-boot", "n")
	}
	cmd := exec.Command("qemu-system-x86_64", append(argv, "-device", card)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	console := &log{}
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return console
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// scripts is the HTTP server: a script that has the machine ask once more, telling of itself.
type scripts struct {
	asked chan *url.URL
	mu    sync.Mutex
	names map[string]bool // that TFTP has served
}

func newScripts(t *testing.T, firmwares *Firmwares) *scripts {
	s := &scripts{asked: make(chan *url.URL, 10), names: map[string]bool{}}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(firmwares))
	mux.HandleFunc("GET /boot.ipxe", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "#!ipxe\nchain --replace http://"+wireAddress.String()+"/hello?mac=${mac}&uuid=${uuid}&ip=${ip}\n")
	})
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		s.asked <- r.URL
		fmt.Fprint(w, "#!ipxe\nsleep 60\n")
	})
	l, err := net.Listen("tcp4", wireAddress.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return s
}

func (s *scripts) url(name string) string { return "http://" + wireAddress.String() + "/" + name }

func (s *scripts) loaded(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[name]
}

// watch notes which files are opened.
func (s *scripts) watch(files fs.FS) fs.FS { return watched{files, s} }

type watched struct {
	fs.FS
	s *scripts
}

func (w watched) Open(name string) (fs.File, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.names[name] = true
	return w.FS.Open(name)
}
