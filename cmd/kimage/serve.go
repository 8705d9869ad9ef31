package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/kimage-project/kimage/ignition"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/metal"
	"github.com/kimage-project/kimage/pkg/nearest"
	"github.com/kimage-project/kimage/pkg/netboot"
	"github.com/kimage-project/kimage/pkg/progress"
)

type serveFlags struct {
	file, identity, image, agent string
	network                      string // the interface
	dhcpRange, router, dns       string
	ipxe, pool                   string
	port                         int
}

func newServe() *cobra.Command {
	var s serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Install machines that boot from the network",
		Long: `Answers machines that boot from the network, by BIOS or UEFI: those of the cluster
file, by MAC address, UUID or serial number, get the image written to their disk and
their config into it, boot from it, and join. Beside a DHCP server that is there
already it only says what to boot; with --dhcp-range it gives addresses as well.

A machine whose disk holds kimage's data boots that disk, whatever its firmware tries
first, until kimage replace NAME releases it to be installed once more. Other people's
data is never written over unless the cluster file says so (machine.disks.install).

Ports: UDP 67, 69 and 4011 (root), and TCP --port, which also shows this table as a page.
What machines are told travels unencrypted: the network has to be trusted while they
are installed. A machine's config is given only to its hardware address, and only
during its installation.`,
		Example: `  kimage serve --interface eth1
  kimage serve --interface eth1 --dhcp-range 172.17.8.200-172.17.8.250`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	clusterFlag(cmd, &s.file)
	identityFlag(cmd, &s.identity)
	f := cmd.Flags()
	f.StringVar(&s.network, "interface", "", "the network that the machines are on, by its interface here (required)")
	f.StringVar(&s.dhcpRange, "dhcp-range", "", "FIRST-LAST: also give addresses, where no other DHCP server is")
	f.StringVar(&s.router, "router", "", "with --dhcp-range: the way out that machines are told (default: none)")
	f.StringVar(&s.dns, "dns", "", "with --dhcp-range: their name server (default: none)")
	f.StringVar(&s.image, "image", "", "raw image to write (default: baked)")
	f.StringVar(&s.agent, "agent", "", "kimage-agent to install with (default: the one inside kimage)")
	f.StringVar(&s.ipxe, "ipxe", "", "directory with undionly.kpxe and ipxe.efi (default: the system's package)")
	f.StringVar(&s.pool, "pool", "", "machines that the cluster file does not know become this pool's (default: they are refused)")
	f.IntVar(&s.port, "port", 8080, "TCP port for images, and for the page that shows how far machines are")
	return cmd
}

// served is the cluster whose machines are installed.
type served struct {
	*board
	flags  *serveFlags
	dir    string // NAME.serve, beside the cluster file
	state  *state.Store
	server atomic.Pointer[metal.Server] // nil: there is no image yet
}

func (f *serveFlags) run(cmd *cobra.Command) error {
	if f.network == "" {
		return fmt.Errorf("say which network the machines are on: --interface %s", strings.Join(interfaces(), " or "))
	}
	file, err := readCluster(cmd, f.file)
	if err != nil {
		return err
	}
	if file.OS.FirstBoot != "cloud-init" {
		return fmt.Errorf("%s takes its config by %s: machines with cloud-init can be installed over the network so far (kimage list os)", file.OS.Name, file.OS.FirstBoot)
	}
	boot := netboot.Config{Interface: f.network}
	if err := f.addresses(file, &boot); err != nil {
		return err
	}
	if err := doctor.Check(doctor.Bake); err != nil {
		return err
	}
	dir, err := filepath.Abs(file.Stem() + ".serve")
	if err != nil {
		return err
	}
	release, err := claimServe(dir)
	if err != nil {
		return err
	}
	defer release()
	st, err := state.Open(openState(cmd, file, f.identity))
	if err != nil {
		return err
	}
	defer st.Close()
	if err := st.Ensure(); err != nil {
		return err
	}
	if err := st.Save(); err != nil {
		return err
	}
	d := &served{board: newBoard(cmd.ErrOrStderr()), flags: f, dir: dir, state: st}
	return d.run(cmd.Context(), file, boot)
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

// addresses reads what DHCP is to give: machines that are known by name get their own.
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
	c.Static = map[[6]byte]netip.Addr{}
	for _, t := range file.Nodes {
		mac, err := net.ParseMAC(t.Match.MAC)
		if err != nil {
			continue // it is not known by its card
		}
		for _, text := range t.Addresses {
			if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
				c.Static[[6]byte(mac)] = a
			}
		}
	}
	return nil
}

// claimServe keeps a second server away.
func claimServe(dir string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, claimFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: another kimage serve runs for this cluster file", dir)
	}
	return func() { f.Close() }, nil
}

func (d *served) run(ctx context.Context, file *cluster.File, boot netboot.Config) error {
	machines, pool, err := d.machines(file)
	if err != nil {
		return err
	}
	// What can be refused is refused before an image is baked.
	firmwares, err := netboot.FindFirmwares(d.flags.ipxe)
	if err != nil {
		return err
	}
	boot.Files, boot.LeaseFile, boot.Logf = firmwares, filepath.Join(d.dir, "leases.json"), d.logf
	boot.Boot = func(c netboot.Client) (string, bool) { return d.loader(firmwares, c) }
	listening, err := netboot.New(boot)
	if err != nil {
		return err
	}
	url := "http://" + net.JoinHostPort(listening.Address().Addr().String(), strconv.Itoa(d.flags.port))
	web, err := net.Listen("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return fmt.Errorf("%w: another program has the port: choose one with --port", err)
	}
	defer web.Close()
	image, place, err := d.image(ctx, file)
	if err != nil {
		return err
	}
	configs, err := d.configs(file)
	if err != nil {
		return err
	}
	server, err := metal.New(metal.Config{Dir: d.dir, URL: url, ClusterUID: d.state.UID, Machines: machines, Pool: pool, Image: image, SeedTo: place,
		Seed: func(_ context.Context, m metal.Machine) ([]byte, error) { return configs.of(m) }, Firmware: firmwares, Logf: d.logf})
	if err != nil {
		return err
	}
	d.server.Store(server)
	d.logf("%d machines; image %s; %s shows how far they are; Ctrl-C ends", len(machines), image.ID, url)
	group, until := errgroup.WithContext(ctx)
	group.Go(func() error { return listening.Run(until) })
	group.Go(func() error { return d.web(until, web) })
	group.Go(func() error { return d.watch(until, configs) })
	group.Go(func() error { return d.phases(until, file) })
	group.Go(func() error { return d.show(until, server.Lines) })
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil // Ctrl-C
}

// loader is what a machine's firmware or iPXE is told to boot. Asked before there is
// anything to boot, it is told nothing.
func (d *served) loader(firmwares *netboot.Firmwares, c netboot.Client) (string, bool) {
	server := d.server.Load()
	if server == nil || !server.Meets(c.MAC.String(), c.UUID) {
		return "", false
	}
	if c.IPXE {
		return server.URL() + "/ipxe", true
	}
	name, ok := firmwares.For(c)
	if ok && c.Firmware == netboot.HTTP {
		name = server.URL() + metal.FirmwarePath + name
	}
	return name, ok
}

// web serves until ctx ends.
func (d *served) web(ctx context.Context, l net.Listener) error {
	h := &http.Server{Handler: d.server.Load().Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	if err := h.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// machines are those of the cluster file that a network boot can tell apart.
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
		case t.Match == cluster.Match{}:
			nameless = append(nameless, t.Name)
		default:
			all = append(all, m)
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
	if len(all) == 0 && pool == nil {
		return nil, nil, fmt.Errorf("%s names no machine that could be told from others: give its nodes match: {mac}", f.Path)
	}
	return all, pool, nil
}

// watch takes over what changes in the cluster file.
func (d *served) watch(ctx context.Context, configs *configs) error {
	last, _ := os.Stat(d.flags.file)
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
	machines, pool, err := d.machines(f)
	if err != nil {
		return err
	}
	now, err := d.configs(f)
	if err != nil {
		return err
	}
	c.replace(now)
	d.server.Load().Update(machines, pool)
	return nil
}

// phases asks the cluster how far its machines are once they are installed.
func (d *served) phases(ctx context.Context, f *cluster.File) error {
	r, err := remoteOf(f, d.state)
	if err != nil {
		d.logf("%v: how far machines are is known up to their installation", err)
		<-ctx.Done()
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Second):
		}
		h := r.ask(ctx)
		for key, said := range h.newest {
			if said.Report != nil && !said.Silent && key[0] == "" {
				d.server.Load().Heard(key[1], said.Report.Phase, map[bool]string{true: said.Report.Why}[said.Report.Phase != local.PhaseReady])
			}
		}
	}
}

// image is what is written, and where a machine's config goes in it.
func (d *served) image(ctx context.Context, f *cluster.File) (image metal.Image, place install.Place, err error) {
	file := d.flags.image
	if file == "" {
		if file, err = (&localCluster{local.Set{Dir: d.dir}, d.flags.file}).bake(ctx, f, "metal", "raw"); err != nil {
			return image, place, err
		}
	}
	is, err := images.OpenInstallable(ctx, file)
	if err != nil {
		return image, place, err
	}
	if is.OS != f.OS.Name {
		return image, place, fmt.Errorf("%s is %s, and %s wants %s", file, is.OS, f.Path, f.OS.Name)
	}
	image, err = packImage(ctx, progress.New(os.Stderr, 0), d.dir, file, is, d.flags.agent)
	return image, install.Place{Partition: is.Partition, Type: "ext4", Directory: "var/lib/cloud/seed/nocloud"}, err
}

// configs are what machines are told at first boot.
func (d *served) configs(f *cluster.File) (*configs, error) {
	g, err := generator(f, d.state, "metal")
	if err != nil {
		return nil, err
	}
	all, err := g.All()
	if err != nil {
		return nil, err
	}
	c := &configs{by: map[string]ignition.Machine{}}
	for _, m := range all {
		c.by[m.Dir] = m
	}
	return c, nil
}
