package nic

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Why says what keeps the node's address from being there and its own, and what
// to do about it; empty: nothing. taken is the MAC of the machine that answers
// for an address.
func Why(w Want, cards []Card, taken map[netip.Addr]string) string {
	if len(cards) == 0 {
		return "this machine has no network card that its kernel knows: use another card, or an image with its driver"
	}
	own := candidates(w, cards)
	if !slices.ContainsFunc(own, func(c Card) bool { return c.Link }) {
		if !slices.ContainsFunc(own, func(c Card) bool { return c.Up }) {
			return fmt.Sprintf("no link: %s is switched off: see networkctl, or ip link set %s up", names(own), own[0].Name)
		}
		return fmt.Sprintf("no link on %s: is the cable in, and the port of the switch on?", names(own))
	}
	var have []netip.Prefix
	for _, c := range own {
		have = append(have, c.Addresses...)
	}
	on := func(p netip.Prefix) bool {
		return len(w.Nodes) == 0 || slices.ContainsFunc(w.Nodes, func(n netip.Prefix) bool { return n.Contains(p.Addr()) })
	}
	switch missing := w.missing(cards); {
	case len(missing) == 0 && (len(w.Addresses) > 0 || slices.ContainsFunc(have, on)):
		return duplicate(cards, taken)
	case len(have) == 0:
		return fmt.Sprintf("no lease: %s has a link and no address: does a DHCP server answer it? (machine.network.gateway makes the address static)", names(own))
	case !slices.ContainsFunc(have, on):
		return fmt.Sprintf("the address %s of %s is not on the node network (%s): connect the machine to that network, or correct spec.network.nodes", join(have), names(own), join(w.Nodes))
	default:
		return fmt.Sprintf("%s has %s, and the cluster file gives this machine %s: make the DHCP server give it that one, or correct the address in the cluster file", names(own), join(have), join(missing))
	}
}

// candidates are the cards that should carry the address: that of the MAC, else
// those on the node's networks, else all.
func candidates(w Want, cards []Card) []Card {
	if out := filter(cards, func(c Card) bool { return w.MAC != "" && c.MAC == w.MAC }); out != nil {
		return out
	}
	if out := filter(cards, func(c Card) bool {
		return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool {
			return slices.Contains(w.Addresses, p.Addr()) || slices.ContainsFunc(w.Nodes, func(n netip.Prefix) bool { return n.Contains(p.Addr()) })
		})
	}); out != nil {
		return out
	}
	return cards
}

func filter(cards []Card, keep func(Card) bool) (out []Card) {
	for _, c := range cards {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}

// missing are the wanted addresses that no card has. Which one has it does not
// matter: it may be one that the cluster file does not know of.
func (w Want) missing(cards []Card) (out []netip.Addr) {
	for _, a := range w.Addresses {
		if !slices.ContainsFunc(cards, func(c Card) bool {
			return slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
		}) {
			out = append(out, a)
		}
	}
	return out
}

// duplicate is about addresses that are there, and another machine's as well.
func duplicate(cards []Card, taken map[netip.Addr]string) string {
	const remedy = "as well: give each machine its own, and look for a machine that was cloned"
	for _, c := range cards {
		for _, p := range c.Addresses {
			if slices.Contains(c.Refused, p.Addr()) {
				return fmt.Sprintf("duplicate address: another machine has %s (%s) %s", p.Addr(), c.Name, remedy)
			}
			if mac := taken[p.Addr()]; mac != "" {
				return fmt.Sprintf("duplicate address: the machine with the card %s has %s (%s) %s", mac, p.Addr(), c.Name, remedy)
			}
		}
	}
	return ""
}

func names(cards []Card) string {
	var out []string
	for _, c := range cards {
		if c.MAC != "" {
			out = append(out, c.Name+" ("+c.MAC+")")
		} else {
			out = append(out, c.Name)
		}
	}
	return strings.Join(out, ", ")
}

func join[T fmt.Stringer](list []T) string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return strings.Join(out, ", ")
}
