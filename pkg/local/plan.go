package local

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/parttable"
)

// diskGiB is the disk that a machine sees; what it does not use takes no room.
const diskGiB = 20

// Plan makes the machines of a cluster file: one per node, and as many of each pool
// as are expected. What they boot is left to the caller. accel is kvm or tcg.
func Plan(f *cluster.File, accel string) (Spec, error) {
	s := Spec{Accel: accel}
	taken := map[netip.Addr]bool{}
	for _, t := range f.Nodes {
		if a, ok := ipv4(t); ok {
			taken[a] = true
			if p, err := netip.ParsePrefix(f.WithPrefix(a.String())); err == nil && !s.Subnet.IsValid() {
				s.Subnet = p.Masked()
			}
		}
	}
	if !s.Subnet.IsValid() {
		return s, fmt.Errorf("%s: no node has an IPv4 address, and local machines get no others", f.Path)
	}
	next := s.Subnet.Addr()
	free := func() (netip.Addr, error) {
		for next = next.Next(); s.Subnet.Contains(next.Next()); next = next.Next() { // the last one is that of all
			if !taken[next] {
				return next, nil
			}
		}
		return next, fmt.Errorf("%s: %s has no address left", f.Path, s.Subnet)
	}
	var err error
	if s.Server, err = free(); err != nil {
		return s, err
	}
	add := func(t cluster.Target, name, pool string) error {
		m := Machine{Name: name, Pool: pool, Roles: t.Roles, API: t.Has(cluster.RoleMaster), DiskGiB: diskGiB, MAC: strings.ToLower(t.Match.MAC), UUID: t.Match.UUID, Serial: t.Match.Serial}
		m.CPUs, m.MemoryMiB = size(t, accel)
		if m.MAC == "" {
			m.MAC = madeMAC(f.Cluster.Metadata.Name + "/" + name)
		}
		if pool != "" && m.UUID == "" {
			// What else it could name itself by is the first card, which is the same everywhere.
			m.UUID = parttable.DeriveGUID("machine", f.Cluster.Metadata.Name, name)
		}
		if a, ok := ipv4(t); ok {
			m.Address = a
		} else if m.Address, err = free(); err != nil {
			return err
		}
		if !s.Subnet.Contains(m.Address) {
			return fmt.Errorf("%s: %s (%s) is not on the network of the others, %s: local machines have one", f.Path, name, m.Address, s.Subnet)
		}
		s.Machines = append(s.Machines, m)
		return nil
	}
	for _, t := range f.Nodes {
		if err := add(t, t.Name, ""); err != nil {
			return s, err
		}
	}
	for _, t := range f.Pools {
		for i := range t.Size {
			if err := add(t, fmt.Sprintf("%s-%d", t.Name, i+1), t.Name); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// FreeAddress is one of the subnet that none of these machines has, nor any that plan
// gives a fixed one.
func (s Spec) FreeAddress(plan Spec) (netip.Addr, error) {
	taken := map[netip.Addr]bool{s.Server: true}
	for _, m := range slices.Concat(s.Machines, plan.Machines) {
		taken[m.Address] = true
	}
	for a := s.Subnet.Addr().Next(); s.Subnet.Contains(a.Next()); a = a.Next() { // the last one is that of all
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no address left", s.Subnet)
}

// ipv4 is the target's first IPv4 address.
func ipv4(t cluster.Target) (netip.Addr, bool) {
	for _, a := range t.Addresses {
		if a, err := netip.ParseAddr(a); err == nil && a.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// size is what the file says, or what the roles need. Only masters have much to do at
// once; an emulated machine with one processor needs no atomic instructions.
func size(t cluster.Target, accel string) (cpus, memoryMiB int) {
	switch {
	case t.Has(cluster.RoleMaster):
		cpus, memoryMiB = 2, 2560
	case t.Has(cluster.RoleWorker):
		cpus, memoryMiB = 2, 1536
	default:
		cpus, memoryMiB = 1, 512
	}
	if accel == "tcg" && !t.Has(cluster.RoleMaster) {
		cpus = 1
	}
	q := t.Machine.QEMU
	if q.CPUs > 0 {
		cpus = q.CPUs
	}
	if q.MemoryMiB > 0 {
		memoryMiB = q.MemoryMiB
	}
	return cpus, memoryMiB
}

// madeMAC is a card's address, the same one for the same machine.
func madeMAC(of string) string {
	sum := sha256.Sum256([]byte(of))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", sum[0], sum[1], sum[2])
}

// MemoryMiB is what all machines have.
func (s Spec) MemoryMiB() (sum int) {
	for _, m := range s.Machines {
		sum += m.MemoryMiB
	}
	return sum
}

// Crowded says that the machines are emulated and have more processors than this
// computer: they get on slower than their clocks if nothing is done about it.
func (s Spec) Crowded() bool {
	cpus := 0
	for _, m := range s.Machines {
		cpus += m.CPUs
	}
	return s.Accel != "kvm" && cpus > runtime.NumCPU()
}

// Pacing says that the machines' time passes as fast as they get on, see qemu.Pace.
func (s Spec) Pacing() bool { return s.Crowded() || s.Paced && s.Accel != "kvm" }

// Names are those of all machines.
func (s Spec) Names() (all []string) {
	for _, m := range s.Machines {
		all = append(all, m.Name)
	}
	return all
}

// Machine is the one of a name; nil: there is none.
func (s Spec) Machine(name string) *Machine {
	i := slices.IndexFunc(s.Machines, func(m Machine) bool { return m.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Machines[i]
}
