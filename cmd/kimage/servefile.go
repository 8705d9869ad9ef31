package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/ignition"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/metal"
	"github.com/kimage-project/kimage/pkg/nearest"
	"github.com/kimage-project/kimage/pkg/netboot"
)

// machines are those of the cluster file, and what unknown ones become.
func (d *served) machines(f *cluster.File) (all []metal.Machine, pool *metal.Machine, err error) {
	var pools, nameless []string
	for _, t := range f.Targets() {
		m := metal.Machine{Name: t.Name, Roles: t.Roles, Match: t.Match, Disk: t.Machine.Disks.Install}
		switch {
		case t.Pool:
			if pools = append(pools, t.Name); t.Name == d.flags.pool {
				m.Pool = t.Name
				pool = &m
			}
		default:
			if all = append(all, m); t.Match == (cluster.Match{}) {
				nameless = append(nameless, t.Name)
			} else if t.Match.MAC == "" && (t.Has(cluster.RoleEtcd) || t.Has(cluster.RoleMaster)) {
				d.logf("warning: whoever says the UUID or serial number of %s first gets its keys: give match: {mac}", t.Name)
			}
		}
	}
	if len(nameless) > 0 {
		d.logf("warning: %s cannot be told from others: give match: {mac}, uuid or serial", strings.Join(nameless, ", "))
	}
	if d.flags.pool != "" && len(pools) == 0 {
		return nil, nil, fmt.Errorf("--pool %s: %s has no pools", d.flags.pool, f.Path)
	}
	if d.flags.pool != "" && pool == nil {
		return nil, nil, nearest.Unknown("pool", d.flags.pool, pools)
	}
	if len(all) == len(nameless) && pool == nil {
		return nil, nil, fmt.Errorf("%s names no machine that could be told from others: give its nodes match: {mac}", f.Path)
	}
	return all, pool, nil
}

// watch takes over what changes in the cluster file.
func (d *served) watch(ctx context.Context, last os.FileInfo, configs *configs) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Second):
		}
		now, err := os.Stat(d.flags.file)
		if err != nil || last != nil && now.ModTime().Equal(last.ModTime()) && now.Size() == last.Size() {
			continue
		}
		last = now
		if err := d.reload(configs); err != nil {
			d.logf("%s has changed, and is not taken: %s", d.flags.file, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		d.logf("%s has changed", d.flags.file)
	}
}

func (d *served) reload(c *configs) error {
	f, err := loadCluster(d.flags.file)
	if err != nil {
		return err
	}
	if err := fits(d.is, f); err != nil {
		return fmt.Errorf("%w: start kimage serve again", err)
	}
	machines, pool, err := d.machines(f)
	if err != nil {
		return err
	}
	var dhcp netboot.Config
	if err := d.flags.addresses(f, &dhcp); err != nil {
		return err
	}
	now, err := d.secrets(f)
	if err != nil {
		return err
	}
	if err := d.net.SetAddresses(dhcp.Static, dhcp.Reserved); err != nil {
		return err
	}
	c.replace(now)
	d.server.Update(machines, pool)
	return nil
}

// phases asks the cluster how far its machines are once they are installed.
func (d *served) phases(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Second):
		}
		r := d.remote.Load()
		if r == nil {
			continue
		}
		for key, said := range r.ask(ctx).newest {
			name := key[1]
			if key[0] != "" {
				name = poolMachine(key[0], name, d.server.OfPool(key[0]))
			}
			if said.Report == nil || name == "" {
				continue
			}
			phase, why := said.Report.Phase, said.Report.Why
			if phase == local.PhaseReady {
				why = ""
			}
			if said.Silent {
				phase, why = "silent", fmt.Sprintf("the masters have not heard of it since %s, when it was %s", said.Heard.UTC().Format(time.DateTime), said.Report.Phase)
			}
			d.server.Heard(name, phase, why, said.Report.Since)
		}
	}
}

// poolMachine is the machine that has given itself a node's name in a pool; empty: none that was
// installed from here.
func poolMachine(pool, node string, installed []metal.Known) string {
	for _, m := range installed {
		if name, err := kube.PoolNameOf(pool, m.UUID, m.Serial, m.MAC); err == nil && name == node {
			return m.Name
		}
	}
	return ""
}

// fits says whether an image is what the cluster file wants.
func fits(is *images.Installable, f *cluster.File) error {
	spec := f.Cluster.Spec
	for _, x := range []struct{ what, has, wants string }{{"system", is.OS, f.OS.Name}, {"Kubernetes", is.Kubernetes, spec.Kubernetes}, {"runtime", is.Runtime, spec.Runtime}, {"network plugin", is.Network, spec.Network.Plugin}, {"architecture", is.Arch, "amd64"}} {
		if x.has != x.wants {
			return fmt.Errorf("the image has the %s %s, and %s is wanted (%s)", x.what, x.has, x.wants, f.Path)
		}
	}
	return nil
}

// secrets opens the cluster's secrets, makes what is missing, and gives them back: other
// commands want them too. It returns what machines are told at first boot.
func (d *served) secrets(f *cluster.File) (*configs, error) {
	c := openState(d.cmd, f, d.flags.identity)
	c.Logf = d.logf
	s, err := state.Open(c)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := s.Ensure(); err != nil {
		return nil, err
	}
	g, err := generator(f, s, "metal")
	if err != nil {
		return nil, err
	}
	all, err := g.All()
	if err != nil {
		return nil, err
	}
	fresh := s.Fresh()
	if err := s.Save(); err != nil {
		return nil, err
	}
	if fresh {
		d.logf("%s", madeSecrets(s, f))
	}
	d.uid = s.UID
	if r, err := remoteOf(f, s); err == nil {
		d.remote.Store(r)
	} else {
		d.logf("%v: how far machines are is known up to their installation", err)
	}
	made := &configs{by: map[string]ignition.Machine{}}
	for _, m := range all {
		made.by[m.Dir] = m
	}
	return made, nil
}

// interfaces are those of this computer that have an address which others can reach.
func interfaces() (names []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			names = append(names, i.Name)
		}
	}
	return names
}

// addresses reads what DHCP is to give: machines that are known by their card get their own.
func (f *serveFlags) addresses(file *cluster.File, c *netboot.Config) (err error) {
	if f.dhcpRange == "" {
		if f.router+f.dns != "" {
			return errors.New("--router and --dns are told with addresses only: give --dhcp-range")
		}
		return nil
	}
	if c.Range, err = netboot.ParseRange(f.dhcpRange); err != nil {
		return fmt.Errorf("--dhcp-range %s: %w", f.dhcpRange, err)
	}
	for flag, s := range map[string]string{"router": f.router, "dns": f.dns} {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return fmt.Errorf("--%s %s: not an IPv4 address", flag, s)
		}
		if flag == "router" {
			c.Router = a
		} else {
			c.DNS = []netip.Addr{a}
		}
	}
	subnet, err := netboot.Address(f.network)
	if err != nil {
		return err
	}
	c.Static = map[[6]byte]netip.Addr{}
	for _, t := range file.Nodes {
		for _, text := range t.Addresses {
			a, err := netip.ParseAddr(text)
			if err != nil || !subnet.Contains(a) {
				continue // of a network that DHCP here is not about
			}
			c.Reserved = append(c.Reserved, a)
			if mac, err := net.ParseMAC(t.Match.MAC); err == nil {
				c.Static[[6]byte(mac)] = a
			} else if t.Match != (cluster.Match{}) {
				return fmt.Errorf("--dhcp-range: %s has to have %s, and DHCP knows machines by their card: give it match: {mac}", t.Name, a)
			}
		}
	}
	return nil
}
