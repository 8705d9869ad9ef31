package netboot

import (
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// lease is the answer of the server of addresses (RFC 2131, 4.3); nil: none. What a
// machine boots is not in it yet.
func (s *Server) lease(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	s.mu.Lock()
	defer s.mu.Unlock()
	mac := [6]byte(m.ClientHWAddr)
	us := s.subnet.Addr()
	wanted, _ := netip.AddrFromSlice(m.RequestedIPAddress().To4())
	has, _ := netip.AddrFromSlice(m.ClientIPAddr.To4())
	chosen, _ := netip.AddrFromSlice(m.ServerIdentifier().To4())
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		a := s.leases.pick(mac, wanted)
		if !a.IsValid() {
			if s.leases.span == (Range{}) {
				return nil // only those that are known get one
			}
			s.cfg.Logf("%s: no address is left for it: widen the range, or give it one of its own", m.ClientHWAddr)
			return nil
		}
		s.leases.offer(mac, a)
		return s.give(m, dhcpv4.MessageTypeOffer, a)
	case dhcpv4.MessageTypeRequest:
		if !wanted.IsValid() {
			wanted = has // it renews
		}
		if chosen.IsValid() && chosen != us {
			s.note(m, s.leases.release(mac, s.leases.pick(mac, netip.Addr{}))) // it has taken another's offer
			return nil
		}
		if !wanted.IsValid() || chosen != us && s.cfg.AllowOther && !s.leases.knows(mac, wanted) {
			return nil // it may be another's
		}
		if a := s.leases.pick(mac, wanted); a != wanted || !s.leases.mayHave(mac, a) {
			r := s.respond(m, dhcpv4.MessageTypeNak)
			if r != nil {
				r.UpdateOption(dhcpv4.OptMessage(wanted.String() + " is not for you"))
			}
			return r
		}
		if err := s.leases.take(mac, wanted); err != nil {
			s.note(m, err) // a promise that would not survive a restart is none
			return nil
		}
		return s.give(m, dhcpv4.MessageTypeAck, wanted)
	case dhcpv4.MessageTypeInform:
		if !s.near(has) {
			return nil
		}
		return s.give(m, dhcpv4.MessageTypeAck, netip.Addr{})
	case dhcpv4.MessageTypeRelease:
		s.note(m, s.leases.release(mac, has))
	case dhcpv4.MessageTypeDecline:
		s.cfg.Logf("%s: %s is in use by another machine", m.ClientHWAddr, wanted)
		s.note(m, s.leases.decline(mac, wanted))
	}
	return nil
}

func (s *Server) note(m *dhcpv4.DHCPv4, err error) {
	if err != nil {
		s.cfg.Logf("%s: %v", m.ClientHWAddr, err)
	}
}

// forGood is no end (RFC 2132, 9.2; RFC 2131, 3.3).
const forGood = (1<<32 - 1) * time.Second

// give is an answer with an address and what belongs to it; a zero: the machine has one.
func (s *Server) give(m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, a netip.Addr) *dhcpv4.DHCPv4 {
	r := s.respond(m, kind)
	if r == nil {
		return nil
	}
	if a.IsValid() {
		r.YourIPAddr = a.AsSlice()
		span := s.leases.time
		if s.leases.static[[6]byte(m.ClientHWAddr)] == a { // it keeps it when this server is gone
			span = forGood
		}
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(span))
	}
	r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(s.subnet.Bits(), 32)))
	r.UpdateOption(dhcpv4.OptBroadcastAddress(last(s.subnet).AsSlice()))
	if s.cfg.Router.IsValid() {
		r.UpdateOption(dhcpv4.OptRouter(s.cfg.Router.AsSlice()))
	}
	if len(s.cfg.DNS) > 0 {
		var all []net.IP
		for _, a := range s.cfg.DNS {
			all = append(all, a.AsSlice())
		}
		r.UpdateOption(dhcpv4.OptDNS(all...))
	}
	return r
}
