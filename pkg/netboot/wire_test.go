package netboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"golang.org/x/sys/unix"
)

// TestMain has the tests run in a network of their own, if root runs them: what is said
// there stays there.
func TestMain(m *testing.M) {
	const inside = "KIMAGE_NETBOOT_NETWORK"
	if os.Geteuid() == 0 && os.Getenv(inside) == "" {
		// In a container root may not have one; then what needs it is skipped.
		if unshare, err := exec.LookPath("unshare"); err == nil && exec.Command(unshare, "--net", "true").Run() == nil {
			os.Setenv(inside, "1")
			err = syscall.Exec(unshare, append([]string{"unshare", "--net", "--"}, os.Args...), os.Environ())
			fmt.Fprintln(os.Stderr, "unshare:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// wire is a network: a bridge of the test's, whose address the server has.
type wire struct {
	t      testing.TB
	bridge string
	hosts  int
}

var (
	wireAddress = netip.MustParseAddr("10.77.0.1")
	wireRange   = Range{netip.MustParseAddr("10.77.0.100"), netip.MustParseAddr("10.77.0.109")}
)

func newWire(t testing.TB) *wire {
	t.Helper()
	need.Root(t, "a network namespace")
	need.Program(t, "ip", "iproute2")
	need.Program(t, "nsenter", "util-linux")
	if os.Getenv("KIMAGE_NETBOOT_NETWORK") == "" {
		need.Missing(t, "unshare --net does not work here, or is missing: apt-get install util-linux")
	}
	w := &wire{t: t, bridge: "wire0"}
	w.must("ip", "link", "set", "lo", "up")
	w.must("ip", "link", "add", w.bridge, "type", "bridge")
	t.Cleanup(func() { exec.Command("ip", "link", "del", w.bridge).Run() })
	w.must("ip", "address", "add", wireAddress.String()+"/24", "dev", w.bridge)
	w.must("ip", "link", "set", w.bridge, "up")
	return w
}

func (w *wire) must(argv ...string) string {
	w.t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// tap is for a virtual machine.
func (w *wire) tap() string {
	w.t.Helper()
	w.must("ip", "tuntap", "add", "tap0", "mode", "tap")
	w.t.Cleanup(func() { exec.Command("ip", "link", "del", "tap0").Run() })
	w.must("ip", "link", "set", "tap0", "master", w.bridge, "up")
	return "tap0"
}

// host is another computer on the wire, whose card is eth0.
type host struct {
	t   testing.TB
	pid int
}

func (w *wire) host(mac string) *host {
	w.t.Helper()
	// Its network lives as long as this process.
	holder := exec.Command("unshare", "--net", "--", "sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	h := &host{w.t, holder.Process.Pid}
	own, _ := os.Readlink("/proc/self/ns/net")
	for ns := own; ns == own; time.Sleep(5 * time.Millisecond) {
		ns, _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", h.pid))
	}
	w.hosts++
	veth := fmt.Sprintf("veth%d", w.hosts)
	w.must("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", strconv.Itoa(h.pid))
	w.t.Cleanup(func() { exec.Command("ip", "link", "del", veth).Run() })
	w.must("ip", "link", "set", veth, "master", w.bridge, "up")
	h.must("ip", "link", "set", "lo", "up")
	h.must("ip", "link", "set", "eth0", "up")
	return h
}

func (h *host) command(argv ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(h.pid), "-n", "--"}, argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	return cmd
}

func (h *host) must(argv ...string) string {
	h.t.Helper()
	out, err := h.command(argv...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// start runs a program until the test ends.
func (h *host) start(argv ...string) *log {
	h.t.Helper()
	out := &log{}
	cmd := h.command(argv...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return out
}

// udp is a socket on the host.
func (h *host) udp(address string) *net.UDPConn {
	h.t.Helper()
	type result struct {
		c   *net.UDPConn
		err error
	}
	done := make(chan result)
	go func() {
		// The thread comes back: were it to end, so would the programs that were started from it (Pdeathsig).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var c *net.UDPConn
		own, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer own.Close()
			var f *os.File
			if f, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid)); err == nil {
				defer f.Close()
				err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			}
		}
		if err == nil {
			c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(address)})
			err = errors.Join(err, unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
		}
		done <- result{c, err}
	}()
	r := <-done
	if r.err != nil {
		h.t.Fatal(r.err)
	}
	h.t.Cleanup(func() { r.c.Close() })
	return r.c
}

// dnsmasq is a DHCP server with addresses from 10.77.0.50 to .60.
func (h *host) dnsmasq(more ...string) *log {
	h.t.Helper()
	need.Program(h.t, "dnsmasq", "dnsmasq-base")
	h.must("ip", "address", "add", "10.77.0.2/24", "dev", "eth0")
	out := h.start(append([]string{"dnsmasq", "--keep-in-foreground", "--log-facility=-", "--log-dhcp", "--conf-file=/dev/null", "--port=0", "--user=root", "--interface=eth0", "--dhcp-range=10.77.0.50,10.77.0.60,1h",
		"--dhcp-leasefile=" + h.t.TempDir() + "/leases", "--pid-file="}, more...)...)
	out.wait(h.t, "DHCP, IP range")
	return out
}

// log is what was said so far.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) printf(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// wait waits until something was said.
func (l *log) wait(t testing.TB, what string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(l.String(), what); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in:\n%s", what, l)
		}
	}
}

// serve runs a server on the wire until the test ends, or stop is called.
func (w *wire) serve(cfg Config) (said *log, stop func()) {
	w.t.Helper()
	said = &log{}
	cfg.Interface, cfg.Logf = w.bridge, said.printf
	if cfg.Boot == nil {
		cfg.Boot = func(Client) (string, bool) { return "", false }
	}
	s, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			w.t.Error("Run does not end")
		}
		if w.t.Failed() {
			w.t.Logf("the server:\n%s", said)
		}
	})
	w.t.Cleanup(stop)
	return said, stop
}
