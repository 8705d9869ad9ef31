package netboot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Address is the first IPv4 address of an interface, with its subnet: where a server on
// it answers.
func Address(name string) (netip.Prefix, error) {
	_, p, err := findCard(name)
	return p, err
}

func findCard(name string) (*net.Interface, netip.Prefix, error) {
	card, err := net.InterfaceByName(name)
	if err != nil {
		return nil, netip.Prefix{}, fmt.Errorf("no interface %q: there are %s", name, cards())
	}
	p := addressOf(card)
	switch {
	case !p.IsValid():
		return nil, p, fmt.Errorf("interface %s has no IPv4 address: give it one (ip address add 192.0.2.1/24 dev %s), or take another: %s", name, name, cards())
	case card.Flags&net.FlagUp == 0:
		return nil, p, fmt.Errorf("interface %s is down: ip link set %s up", name, name)
	case card.Flags&net.FlagBroadcast == 0 || len(card.HardwareAddr) != 6:
		return nil, p, fmt.Errorf("interface %s is not Ethernet, so no machine boots from it: take another: %s", name, cards())
	}
	return card, p, nil
}

func addressOf(card *net.Interface) netip.Prefix {
	all, _ := card.Addrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p
		}
	}
	return netip.Prefix{}
}

// cards names the interfaces for people: those that could be meant.
func cards() string {
	all, err := net.Interfaces()
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, c := range all {
		if c.Flags&net.FlagLoopback != 0 {
			continue
		}
		name := c.Name
		if p := addressOf(&c); p.IsValid() {
			name += " (" + p.String() + ")"
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return "none but the loopback"
	}
	return strings.Join(names, ", ")
}

// listen opens a port on one interface alone. Others may have it on other interfaces.
func listen(card string, port int, what string) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			err = errors.Join(unix.BindToDevice(int(fd), card), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
		}); e != nil {
			return e
		}
		return err
	}}
	conn, err := config.ListenPacket(context.Background(), "udp4", fmt.Sprintf(":%d", port))
	switch {
	case err == nil:
		return conn.(*net.UDPConn), nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("UDP port %d (%s) on %s is in use%s: stop that, or serve on another interface", port, what, card, owner(port))
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("UDP port %d (%s) on %s: machines can only be booted by root (or with CAP_NET_BIND_SERVICE and CAP_NET_RAW)", port, what, card)
	default:
		return nil, fmt.Errorf("listening on UDP port %d (%s) on %s: %w", port, what, card, err)
	}
}

// owner is " by dnsmasq (process 17)", for an error; empty: nobody can tell.
func owner(port int) string {
	sockets := map[string]bool{}
	for _, table := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			if c := strings.Fields(lines.Text()); len(c) > 9 && strings.HasSuffix(c[1], fmt.Sprintf(":%04X", port)) {
				sockets["socket:["+c[9]+"]"] = true
			}
		}
		f.Close()
	}
	found := ""
	for pid := range processes() {
		all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range all {
			if link, err := os.Readlink(fd); err == nil && sockets[link] {
				name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				found = fmt.Sprintf(" by %s (process %d)", strings.TrimSpace(string(name)), pid)
			}
		}
	}
	return found
}

func processes() func(yield func(int) bool) {
	return func(yield func(int) bool) {
		all, err := os.ReadDir("/proc")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
		for _, e := range all {
			if pid, err := strconv.Atoi(e.Name()); err == nil && !yield(pid) {
				return
			}
		}
	}
}

// send sends from the server's address, which need not be the one the kernel would take.
func (s *Server) send(conn *net.UDPConn, r *reply) error {
	from := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(s.card.Index), Spec_dst: s.subnet.Addr().As4()})
	_, _, err := conn.WriteMsgUDPAddrPort(r.message.ToBytes(), from, r.to)
	return err
}
