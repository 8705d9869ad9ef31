// Package netboot is what the boot ROM of a machine talks to: DHCP and TFTP, on one
// interface, until the machine runs iPXE and fetches over HTTP. Who gets what is the
// caller's to say (Config.Boot); the HTTP server is the caller's too.
//
//	firmware                       server
//	DISCOVER  to all, port 67  ->  OFFER: iPXE's program (by TFTP; HTTP boot: an URL)
//	REQUEST   port 4011        ->  ACK: the same (UEFI asks again)
//	RRQ       port 69          ->  the program
//	iPXE
//	DISCOVER  user class iPXE  ->  OFFER: the URL of a script
//
// By itself it gives no addresses: it speaks beside the network's DHCP server (proxyDHCP,
// PXE 2.1), and only to what boots from the network. With Config.Range or Config.Static
// it is the DHCP server. It does not serve IPv6, relays, or what asks from another subnet.
package netboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/pin/tftp/v3"
)

// Ports that are listened on.
const (
	dhcpPort    = 67
	tftpPort    = 69
	pxePort     = 4011 // boot servers (PXE 2.1, 2.2.3)
	clientPort  = 68
	packetBytes = 2048 // more than a frame
)

// Config is what New needs.
type Config struct {
	Interface string // all is served on it alone

	// Boot says what a machine boots: the name of a file in Files, or an URL for those
	// that can fetch one (iPXE, UEFI's HTTP boot). Without ok it gets no answer at all.
	// It is called for every question, by several goroutines, and must not wait.
	Boot func(Client) (file string, ok bool)

	// Files are served over TFTP; nil: none. For a directory take os.Root.FS: it does not
	// follow links out of it, as os.DirFS does. A newer iPXE also asks for autoexec.ipxe.
	Files fs.FS

	Range  Range                  // of addresses to give out; with neither it nor Static, another DHCP server gives them
	Static map[[6]byte]netip.Addr // by the card's address; none of them goes to another card
	// Reserved are not given to anybody but by Static.
	Reserved []netip.Addr
	Router   netip.Addr    // zero: none
	DNS      []netip.Addr  // empty: none
	Lease    time.Duration // zero: a day
	// LeaseFile keeps who has which address over a restart. Needed with Range.
	LeaseFile string
	// AllowOther serves addresses even if another DHCP server answers on the wire.
	AllowOther bool

	Logf func(format string, args ...any) // nil: nothing is logged
}

// Range is from the first to the last address; zero: none.
type Range struct{ From, To netip.Addr }

// Server answers machines that boot.
type Server struct {
	cfg     Config
	card    *net.Interface
	subnet  netip.Prefix // the server's address and its subnet
	mu      sync.Mutex   // what leases hold is used and changed under it
	leases  *leases      // nil: proxyDHCP
	limit   limiter
	dhcp    *net.UDPConn
	pxe     *net.UDPConn
	files   *net.UDPConn
	tftp    *tftp.Server
	ends    context.Context // of transfers; set by Run
	loading chan struct{}   // has room for the transfers that may run at once
}

// New checks and binds. With a range it asks on the wire first, for about four seconds,
// whether another DHCP server is there.
func New(cfg Config) (*Server, error) {
	if cfg.Logf == nil {
		cfg.Logf = func(string, ...any) {}
	}
	if cfg.Boot == nil {
		return nil, errors.New("BUG: netboot.Config has no Boot")
	}
	card, subnet, err := findCard(cfg.Interface)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, card: card, subnet: subnet, limit: limiter{now: time.Now}, loading: make(chan struct{}, transfers)}
	if cfg.Range != (Range{}) || len(cfg.Static) > 0 {
		if s.leases, err = openLeases(cfg, subnet); err != nil {
			return nil, err
		}
	}
	if err := s.listen(); err != nil {
		s.close()
		return nil, err
	}
	if s.leases != nil && !cfg.AllowOther {
		other, err := s.otherDHCP(context.Background())
		if err == nil && other.IsValid() {
			err = fmt.Errorf("another DHCP server, %s, answers on %s: serve beside it (without a range of addresses), or stop it", other, cfg.Interface)
		}
		if err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Server) listen() (err error) {
	for _, l := range []struct {
		port int
		what string
		conn **net.UDPConn
	}{{dhcpPort, "DHCP", &s.dhcp}, {pxePort, "PXE", &s.pxe}, {tftpPort, "TFTP", &s.files}} {
		if *l.conn, err = listen(s.card.Name, l.port, l.what); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) close() {
	for _, c := range []*net.UDPConn{s.dhcp, s.pxe, s.files} {
		if c != nil {
			c.Close()
		}
	}
}

// SetAddresses takes other addresses that belong to cards, and others that nobody else gets,
// from the next question on. A machine that has one of them until now is refused it when it
// renews its lease. Without addresses to give there is nothing to set. An error, as of New's
// addresses or of the file of leases, leaves all as it was.
func (s *Server) SetAddresses(static map[[6]byte]netip.Addr, reserved []netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases == nil {
		return nil
	}
	cfg := s.cfg
	cfg.Static, cfg.Reserved = static, reserved
	now, err := openLeases(cfg, s.subnet)
	if err == nil {
		*s.leases = *now
	}
	return err
}

// Address is the server's, with its subnet.
func (s *Server) Address() netip.Prefix { return s.subnet }

// Run serves until ctx ends, which is no error. It can be called once.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.ends = ctx
	s.tftp = s.newTFTP()
	var wg sync.WaitGroup
	for _, serve := range []func() error{
		func() error { return s.serve(s.dhcp, s.answer) },
		func() error { return s.serve(s.pxe, s.answerPXE) },
		func() error { return s.tftp.Serve(s.files) },
	} {
		wg.Go(func() {
			if err := serve(); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	if s.leases == nil {
		wg.Go(func() { s.warnAlone(ctx) })
	}
	<-ctx.Done()
	s.close()
	// Transfers that run notice ctx at their next block. One whose machine is gone only
	// does at its timeout: nobody waits for it.
	go s.tftp.Shutdown()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// reply is a message and where it goes.
type reply struct {
	message *dhcpv4.DHCPv4
	to      netip.AddrPort
}

// everybody hears what is for a machine that has no address yet.
var everybody = netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)

// serve answers until the socket is closed.
func (s *Server) serve(conn *net.UDPConn, answer func(*dhcpv4.DHCPv4, netip.AddrPort) *reply) error {
	buf := make([]byte, packetBytes)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", conn.LocalAddr(), err)
		}
		m := request(buf[:n])
		if m == nil {
			continue
		}
		r := answer(m, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		if r == nil {
			continue
		}
		if err := s.send(conn, r); err != nil && !errors.Is(err, net.ErrClosed) {
			s.cfg.Logf("%s: sending to %s: %v", r.message.ClientHWAddr, r.to, err)
		}
	}
}

// request is the question in a packet; nil: there is none for the server.
func request(packet []byte) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.FromBytes(packet)
	if err != nil || m.OpCode != dhcpv4.OpcodeBootRequest || len(m.ClientHWAddr) != 6 || [6]byte(m.ClientHWAddr) == [6]byte{} || !m.GatewayIPAddr.IsUnspecified() {
		return nil
	}
	return m
}

// warnAlone says so if nobody gives addresses.
func (s *Server) warnAlone(ctx context.Context) {
	other, err := s.otherDHCP(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.cfg.Logf("looking for a DHCP server on %s: %v", s.card.Name, err)
	case !other.IsValid():
		s.cfg.Logf("warning: no DHCP server answers on %s, so machines get no address: start one, or have this one give addresses of a range", s.card.Name)
	default:
		s.cfg.Logf("beside the DHCP server %s on %s", other, s.card.Name)
	}
}
