package nic

import (
	"net/netip"
	"strings"
	"testing"
)

func TestWhy(t *testing.T) {
	card := func(name, mac string, link bool, addresses ...string) Card {
		c := Card{Name: name, MAC: mac, Up: true, Link: link}
		for _, a := range addresses {
			c.Addresses = append(c.Addresses, netip.MustParsePrefix(a))
		}
		return c
	}
	fixed := NewWant([]string{"172.17.8.101"}, []string{"172.17.8.0/24"}, "")
	pool := NewWant(nil, []string{"172.17.8.0/24"}, "")
	const m1, m2 = "52:54:00:00:00:01", "52:54:00:00:00:02"
	nat := card("eth0", m1, true, "10.0.2.15/24")
	for _, c := range []struct {
		name  string
		want  Want
		cards []Card
		taken map[netip.Addr]string
		why   string // empty: nothing is wrong
	}{
		{name: "as it should be", want: fixed, cards: []Card{nat, card("eth1", m2, true, "172.17.8.101/24")}},
		{name: "a pool's machine", want: pool, cards: []Card{nat, card("eth1", m2, true, "172.17.8.7/24")}},
		{name: "any address will do", want: Want{}, cards: []Card{nat}},
		{name: "no card", want: fixed, why: "no network card"},
		{name: "no link", want: fixed, cards: []Card{card("eth0", m1, false)}, why: "no link on eth0 (" + m1 + ")"},
		{name: "switched off", want: fixed, cards: []Card{{Name: "eth0", MAC: m1}}, why: "switched off"},
		{name: "no link on the card of the MAC", want: NewWant([]string{"172.17.8.101"}, nil, strings.ToUpper(m2)), cards: []Card{nat, card("eth1", m2, false)}, why: "no link on eth1"},
		{name: "a static address without a link", want: fixed, cards: []Card{card("eth0", m1, false, "172.17.8.101/24")}, why: "no link on eth0"},
		{name: "no lease", want: fixed, cards: []Card{card("eth0", m1, true)}, why: "no lease: eth0"},
		{name: "no lease on the card of the MAC", want: NewWant(nil, nil, m2), cards: []Card{nat, card("eth1", m2, true)}, why: "no lease: eth1"},
		{name: "not on the node network", want: fixed, cards: []Card{nat}, why: "10.0.2.15/24 of eth0 (" + m1 + ") is not on the node network (172.17.8.0/24)"},
		{name: "a pool's machine elsewhere", want: pool, cards: []Card{nat}, why: "not on the node network"},
		{name: "another address of the network", want: fixed, cards: []Card{nat, card("eth1", m2, true, "172.17.8.9/24")}, why: "eth1 (" + m2 + ") has 172.17.8.9/24, and the cluster file gives this machine 172.17.8.101"},
		{name: "one of two families", want: NewWant([]string{"172.17.8.101", "fd00::1"}, nil, ""), cards: []Card{card("eth1", m2, true, "172.17.8.101/24")}, why: "gives this machine fd00::1"},
		{name: "duplicate, IPv4", want: fixed, cards: []Card{card("eth1", m2, true, "172.17.8.101/24")}, taken: map[netip.Addr]string{netip.MustParseAddr("172.17.8.101"): m1}, why: "duplicate address: the machine with the card " + m1},
		{name: "duplicate, IPv6", want: NewWant([]string{"fd00::1"}, nil, ""), cards: []Card{{Name: "eth1", MAC: m2, Up: true, Link: true, Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::1/64")},
			Refused: []netip.Addr{netip.MustParseAddr("fd00::1")}}}, why: "duplicate address: another machine has fd00::1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Why(c.want, c.cards, c.taken); !strings.Contains(got, c.why) || c.why == "" && got != "" {
				t.Errorf("got %q, want %q", got, c.why)
			}
		})
	}
}
