package netboot

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
)

const (
	leaseTime    = 24 * time.Hour
	offerTime    = 30 * time.Second // for which an offer is kept for its machine
	maxAddresses = 1 << 16
	declineTime  = 10 * time.Minute // for which nobody gets an address that was found in use
)

// leases are the addresses that are given out. A machine is known by its card: the ROM,
// iPXE and the system it boots give themselves different names, and get one address.
type leases struct {
	file   string
	span   Range
	static map[[6]byte]netip.Addr
	never  map[netip.Addr]bool // static ones, and those of others that are known
	time   time.Duration
	now    func() time.Time
	held   map[netip.Addr]*held
}

// held is an address that somebody has, or had.
type held struct {
	mac     [6]byte   // zero: one that was declined
	expires time.Time // an offer's too
	offer   bool      // which is not on disk
}

// entry is a line of the file.
type entry struct {
	MAC     string     `json:"mac"`
	Address netip.Addr `json:"address"`
	Expires time.Time  `json:"expires"`
}

// openLeases checks Config's addresses and reads the file.
func openLeases(cfg Config, subnet netip.Prefix) (*leases, error) {
	l := &leases{file: cfg.LeaseFile, span: cfg.Range, static: cfg.Static, time: cfg.Lease, now: time.Now, held: map[netip.Addr]*held{}, never: map[netip.Addr]bool{subnet.Addr(): true, subnet.Masked().Addr(): true, last(subnet): true}}
	if l.time == 0 {
		l.time = leaseTime
	}
	if l.time < time.Minute {
		return nil, fmt.Errorf("leases of %s are too short: a minute at least", l.time)
	}
	inside := func(a netip.Addr) error {
		if !subnet.Contains(a) {
			return fmt.Errorf("%s is not in %s, the subnet of %s", a, subnet.Masked(), cfg.Interface)
		}
		return nil
	}
	if l.span != (Range{}) {
		if err := errors.Join(inside(l.span.From), inside(l.span.To)); err != nil {
			return nil, fmt.Errorf("range of addresses: %w", err)
		}
		if l.span.To.Less(l.span.From) {
			return nil, fmt.Errorf("range of addresses: %s comes after %s", l.span.From, l.span.To)
		}
		if a, b := l.span.From.As4(), l.span.To.As4(); binary.BigEndian.Uint32(b[:])-binary.BigEndian.Uint32(a[:]) >= maxAddresses {
			return nil, fmt.Errorf("range of addresses: more than %d", maxAddresses)
		}
		if l.file == "" {
			return nil, errors.New("a range of addresses needs a file for the leases: without it two machines could get one address after a restart")
		}
	}
	for _, a := range append(cfg.DNS, cfg.Router) {
		l.never[a] = true
	}
	if cfg.Router.IsValid() {
		if err := inside(cfg.Router); err != nil {
			return nil, fmt.Errorf("router: %w", err)
		}
	}
	for _, a := range cfg.DNS {
		if !a.Is4() {
			return nil, fmt.Errorf("name server %s is no IPv4 address", a)
		}
	}
	for mac, a := range cfg.Static {
		err := inside(a)
		if err == nil && l.never[a] {
			err = fmt.Errorf("%s has another use already", a)
		}
		if err != nil {
			return nil, fmt.Errorf("address of %s: %w", net.HardwareAddr(mac[:]), err)
		}
		l.never[a] = true
	}
	for _, a := range cfg.Reserved {
		l.never[a] = true
	}
	return l, l.read()
}

func (l *leases) read() error {
	var all []entry
	if l.file == "" {
		return nil
	}
	data, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return l.write() // that it cannot is known now, not at the first machine
	}
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		return fmt.Errorf("reading leases from %s: %w (without the file all are forgotten)", l.file, err)
	}
	for _, e := range all {
		mac, err := net.ParseMAC(e.MAC)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("reading leases from %s: %q is no address of a card", l.file, e.MAC)
		}
		if l.dynamic(e.Address) {
			l.held[e.Address] = &held{mac: [6]byte(mac), expires: e.Expires}
		}
	}
	return nil
}

func (l *leases) write() error {
	if l.file == "" {
		return nil // without a range
	}
	all := []entry{}
	for a, h := range l.held {
		if !h.offer && h.mac != [6]byte{} {
			all = append(all, entry{net.HardwareAddr(h.mac[:]).String(), a, h.expires.UTC().Truncate(time.Second)})
		}
	}
	slices.SortFunc(all, func(a, b entry) int { return a.Address.Compare(b.Address) })
	data, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	f, err := atomicfile.Create(l.file, 0o600)
	if err != nil {
		return fmt.Errorf("writing leases: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("writing %s: %w", l.file, err)
	}
	return f.Commit()
}

// dynamic: one of the range that anybody may get.
func (l *leases) dynamic(a netip.Addr) bool {
	return a.IsValid() && l.span.From.IsValid() && !a.Less(l.span.From) && !l.span.To.Less(a) && !l.never[a]
}

// free: one that this machine may get.
func (l *leases) free(mac [6]byte, a netip.Addr) bool {
	if h := l.held[a]; h != nil && h.mac != mac && l.now().Before(h.expires) {
		return false
	}
	return l.dynamic(a)
}

// pick is the address for a machine, the wanted one if that can be; zero: none is left.
// What it had it gets again; what others had lately comes last.
func (l *leases) pick(mac [6]byte, wanted netip.Addr) netip.Addr {
	if a, ok := l.static[mac]; ok {
		return a
	}
	for a, h := range l.held {
		if h.mac == mac {
			return a
		}
	}
	if l.free(mac, wanted) {
		return wanted
	}
	var oldest netip.Addr
	for a := l.span.From; l.span.From.IsValid() && !l.span.To.Less(a); a = a.Next() {
		if !l.free(mac, a) {
			continue
		}
		if l.held[a] == nil {
			return a
		}
		if !oldest.IsValid() || l.held[a].expires.Before(l.held[oldest].expires) {
			oldest = a
		}
	}
	return oldest
}

// offer keeps an address for a machine for a while.
func (l *leases) offer(mac [6]byte, a netip.Addr) {
	if h := l.held[a]; l.dynamic(a) && (h == nil || h.mac != mac || h.offer || l.now().After(h.expires)) {
		l.held[a] = &held{mac: mac, expires: l.now().Add(offerTime), offer: true}
	}
}

// take gives an address to a machine. Without an error that is on disk.
func (l *leases) take(mac [6]byte, a netip.Addr) error {
	if !l.dynamic(a) {
		return nil // static
	}
	for other, h := range l.held {
		if h.mac == mac && other != a {
			delete(l.held, other)
		}
	}
	l.held[a] = &held{mac: mac, expires: l.now().Add(l.time)}
	return l.write()
}

// release lets an address go; the machine gets it again if it is free then.
func (l *leases) release(mac [6]byte, a netip.Addr) error {
	h := l.held[a]
	if h == nil || h.mac != mac {
		return nil
	}
	if h.offer {
		delete(l.held, a)
		return nil
	}
	h.expires = l.now()
	return l.write()
}

// decline: the machine found the address in use.
func (l *leases) decline(mac [6]byte, a netip.Addr) error {
	if h := l.held[a]; h == nil || h.mac != mac {
		return nil
	}
	l.held[a] = &held{expires: l.now().Add(declineTime)}
	return l.write()
}

// last is the address of a subnet that is for all.
func last(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	mask := net.CIDRMask(p.Bits(), 32)
	for i := range a {
		a[i] |= ^mask[i]
	}
	return netip.AddrFrom4(a)
}

// ParseRange reads 192.168.1.100-192.168.1.199.
func ParseRange(s string) (Range, error) {
	from, to, _ := strings.Cut(s, "-")
	a, err := netip.ParseAddr(strings.TrimSpace(from))
	b, err2 := netip.ParseAddr(strings.TrimSpace(to))
	if err != nil || err2 != nil || !a.Is4() || !b.Is4() {
		return Range{}, fmt.Errorf("%q is no range of addresses, as 192.168.1.100-192.168.1.199 is", s)
	}
	return Range{a, b}, nil
}

// knows: the server has given that address to that machine.
func (l *leases) knows(mac [6]byte, a netip.Addr) bool {
	h := l.held[a]
	return l.static[mac] == a || h != nil && h.mac == mac
}

// mayHave: an address that is the machine's, or is free.
func (l *leases) mayHave(mac [6]byte, a netip.Addr) bool {
	return l.static[mac] == a || l.free(mac, a)
}
