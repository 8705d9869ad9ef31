package nic

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// arpPacket is ARP over Ethernet for IPv4 (RFC 826).
type arpPacket struct {
	Hardware, Protocol uint16
	HardwareLen        uint8
	ProtocolLen        uint8
	Operation          uint16
	SenderMAC          [6]byte
	SenderIP           [4]byte
	TargetMAC          [6]byte
	TargetIP           [4]byte
}

const (
	arpBytes     = 28
	arpRequest   = 1
	hostPrefix   = 32             // clouds give it, and answer for every address themselves
	probeTimeout = time.Second    // RFC 5227 PROBE_MAX
	probes       = 2              // one may be lost
	ethernetARP  = unix.ETH_P_ARP // of the frame
	ethernetIPv4 = unix.ETH_P_IP  // inside the packet
	broadcast    = "\xff\xff\xff\xff\xff\xff"
)

// Taken asks the wire, by probes as in RFC 5227 section 2.1.1, whether another
// machine answers for an IPv4 address of the wanted ones that is on a card. A
// probe names no sender, so that nobody's table changes by it. For IPv6 the
// kernel has asked before it uses an address: see Card.Refused.
func Taken(ctx context.Context, w Want, cards []Card) (map[netip.Addr]string, error) {
	var own []string
	for _, c := range cards {
		own = append(own, c.MAC)
	}
	out := map[netip.Addr]string{}
	var errs []error
	for _, c := range candidates(w, cards) {
		for _, p := range c.Addresses {
			if !p.Addr().Is4() || p.Bits() == hostPrefix || !c.Link || len(w.Addresses) > 0 && !slices.Contains(w.Addresses, p.Addr()) {
				continue
			}
			mac, err := probe(ctx, c, p.Addr(), own)
			if err != nil {
				errs = append(errs, fmt.Errorf("asking on %s for %s: %w", c.Name, p.Addr(), err))
			}
			if mac != "" {
				out[p.Addr()] = mac
			}
		}
	}
	return out, errors.Join(errs...)
}

// probe is the MAC of another machine that answers for addr; empty: none does.
func probe(ctx context.Context, c Card, addr netip.Addr, own []string) (string, error) {
	mac, err := net.ParseMAC(c.MAC)
	if err != nil || len(mac) != 6 {
		return "", nil // no Ethernet
	}
	network := binary.BigEndian.AppendUint16(nil, ethernetARP)
	protocol := binary.NativeEndian.Uint16(network)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
	if err != nil {
		return "", err
	}
	socket := os.NewFile(uintptr(fd), "arp")
	defer socket.Close()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: c.Index}); err != nil {
		return "", err
	}
	ask := arpPacket{Hardware: unix.ARPHRD_ETHER, Protocol: ethernetIPv4, HardwareLen: 6, ProtocolLen: 4, Operation: arpRequest, SenderMAC: [6]byte(mac), TargetIP: addr.As4()}
	var frame bytes.Buffer
	if err := binary.Write(&frame, binary.BigEndian, ask); err != nil {
		return "", err
	}
	to := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: c.Index, Halen: 6}
	copy(to.Addr[:], broadcast)
	for range probes {
		if err := unix.Sendto(fd, frame.Bytes(), 0, to); err != nil {
			return "", err
		}
		if other := hear(ctx, socket, addr, own); other != "" {
			return other, nil
		}
	}
	return "", ctx.Err()
}

// hear waits for a packet of another machine that says addr is its own.
func hear(ctx context.Context, socket *os.File, addr netip.Addr, own []string) string {
	deadline := time.Now().Add(probeTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := socket.SetReadDeadline(deadline); err != nil {
		return ""
	}
	for buf := make([]byte, 256); ; {
		n, err := socket.Read(buf)
		if err != nil {
			return ""
		}
		var p arpPacket
		if n < arpBytes || binary.Read(bytes.NewReader(buf[:n]), binary.BigEndian, &p) != nil {
			continue
		}
		from := net.HardwareAddr(p.SenderMAC[:]).String()
		if p.Protocol == ethernetIPv4 && p.SenderIP == addr.As4() && !slices.Contains(own, from) {
			return from
		}
	}
}
