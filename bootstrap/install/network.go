package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cardWithin is how long drivers may take until the card is there.
const cardWithin = time.Minute

// connect loads drivers until the card that the machine booted from is there, and gives it
// its address.
func (i *installer) connect(ctx context.Context) error {
	i.screen.say("kimage: looking for drivers")
	var card string
	for began := time.Now(); ; {
		if err := i.modules.load(ctx); err != nil {
			return err
		}
		if card = findCard("/sys", i.set.mac); card != "" {
			break
		}
		if time.Since(began) > cardWithin {
			return fmt.Errorf("no driver of this system knows the card %s (there are: %s): bake an image with the drivers of real machines, --for metal", i.set.mac, strings.Join(cards("/sys"), ", "))
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err := configure(card, i.set); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", card, i.set.address, err)
	}
	i.screen.say("kimage: %s (%s) has the address %s", card, i.set.mac, i.set.address)
	for n := 0; ; n++ {
		carrier, _ := os.ReadFile(filepath.Join("/sys/class/net", card, "carrier"))
		if strings.TrimSpace(string(carrier)) == "1" {
			return nil
		}
		if n%20 == 10 {
			i.screen.say("kimage: no link on %s: is the cable in, and the port of the switch on?", card)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func cards(sys string) (all []string) {
	found, _ := filepath.Glob(filepath.Join(sys, "class/net/*/address"))
	for _, file := range found {
		mac, _ := os.ReadFile(file)
		if name := filepath.Base(filepath.Dir(file)); name != "lo" {
			all = append(all, name+" "+strings.TrimSpace(string(mac)))
		}
	}
	return all
}

// findCard is the card of that address; empty: none yet.
func findCard(sys, mac string) string {
	for _, c := range cards(sys) {
		if name, has, _ := strings.Cut(c, " "); strings.EqualFold(has, mac) {
			return name
		}
	}
	return ""
}

// rtEntry is struct rtentry of linux/route.h on 64-bit machines.
type rtEntry struct {
	_                          uint64
	destination, gateway, mask unix.RawSockaddrInet4
	flags                      uint16
	_                          int16
	_                          uint64
	_                          [4]uint64
	_                          [4]uint64
}

// configure switches a card on and gives it its address, and the way out.
func configure(card string, s settings) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	set := func(request uint, fill func(*unix.Ifreq) error) error {
		r, err := unix.NewIfreq(card)
		if err != nil {
			return err
		}
		if err := fill(r); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, request, r)
	}
	mask := net.CIDRMask(s.address.Bits(), 32)
	if err := set(unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP); return nil }); err != nil {
		return err
	}
	if err := set(unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(s.address.Addr().AsSlice()) }); err != nil {
		return err
	}
	if err := set(unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask) }); err != nil {
		return err
	}
	if !s.gateway.IsValid() {
		return nil
	}
	route := rtEntry{flags: unix.RTF_UP | unix.RTF_GATEWAY}
	route.destination.Family, route.mask.Family, route.gateway.Family = unix.AF_INET, unix.AF_INET, unix.AF_INET
	route.gateway.Addr = s.gateway.As4()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route)))
	if errno != 0 && !errors.Is(errno, unix.EEXIST) {
		return fmt.Errorf("routing by %s: %w", s.gateway, errno)
	}
	return nil
}
