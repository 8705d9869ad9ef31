package main

import (
	"context"
	"errors"
	"fmt"
	"log"
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
their config into it, boot from it, and join. Beside a DHCP server on another computer
it only says what to boot; with --dhcp-range it gives addresses as well, to machines of
the cluster file their own, for good.

A machine whose disk holds kimage's data boots that disk, whatever its firmware tries
first, until kimage replace NAME releases it to be installed once more. Other people's
data is never written over unless the cluster file says so (machine.disks.install).

Ports: UDP 67, 69 and 4011 (root), and TCP --port, which also shows this table as a page.
What machines are told travels unencrypted: the network has to be trusted while they
are installed. A machine's config is given only during its installation, and only to
the hardware address that the cluster file says (match: {mac}).`,
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
	cmd    *cobra.Command
	flags  *serveFlags
	dir    string // NAME.serve, beside the cluster file
	uid    string
	is     *images.Installable           // what is written
	remote atomic.Pointer[remoteCluster] // nil: nobody can be asked
	server *metal.Server
}

func (f *serveFlags) run(cmd *cobra.Command) error {
	if f.network == "" {
		return fmt.Errorf("say which network the machines are on: --interface %s", strings.Join(interfaces(), " or "))
	}
	if f.port < 1 || f.port > 65535 {
		return fmt.Errorf("--port %d: give a TCP port, 1 to 65535", f.port)
	}
	seen, _ := os.Stat(f.file) // before it is read, so that no edit is missed
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
	if f.image == "" {
		err = doctor.Check(doctor.Bake)
	}
	if err != nil {
		return err
	}
	firmwares, err := netboot.FindFirmwares(f.ipxe)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(file.Stem() + ".serve")
	if err != nil {
		return err
	}
	d := &served{board: newBoard(cmd.ErrOrStderr()), cmd: cmd, flags: f, dir: dir}
	defer d.end()
	// What can be refused is refused before anything is made.
	machines, pool, err := d.machines(file)
	if err != nil {
		return err
	}
	agent, err := d.agent()
	if err != nil {
		return err
	}
	if f.image != "" {
		if err := d.open(cmd.Context(), f.image, file); err != nil {
			return err
		}
	}
	subnet, err := netboot.Address(f.network)
	if err != nil {
		return err
	}
	url := "http://" + net.JoinHostPort(subnet.Addr().String(), strconv.Itoa(f.port))
	web, err := net.Listen("tcp", strings.TrimPrefix(url, "http://"))
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: another program has the port: choose one with --port", err)
	}
	if err != nil {
		return err
	}
	defer web.Close()
	release, err := claimServe(dir)
	if err != nil {
		return err
	}
	defer release()
	boot.Files, boot.LeaseFile, boot.Logf = firmwares, filepath.Join(dir, "leases.json"), d.logf
	boot.Boot = func(c netboot.Client) (string, bool) { return d.loader(firmwares, c) }
	listening, err := netboot.New(boot)
	if err != nil {
		return err
	}
	configs, err := d.secrets(file)
	if err != nil {
		return err
	}
	image, place, err := d.image(cmd.Context(), file, agent)
	if err != nil {
		return err
	}
	d.server, err = metal.New(metal.Config{Dir: dir, URL: url, ClusterUID: d.uid, Machines: machines, Pool: pool, Image: image, SeedTo: place,
		Seed: func(_ context.Context, m metal.Machine) ([]byte, error) { return configs.of(m) }, Firmware: firmwares, Logf: d.logf})
	if err != nil {
		return err
	}
	lines := d.server.Lines
	d.lines.Store(&lines)
	d.logf("%d machines; image %s; %s shows how far they are; Ctrl-C ends", len(machines), image.ID, url)
	group, until := errgroup.WithContext(cmd.Context())
	group.Go(func() error { return listening.Run(until) })
	group.Go(func() error { return d.web(until, web) })
	group.Go(func() error { return d.watch(until, seen, configs) })
	group.Go(func() error { return d.phases(until) })
	if err := group.Wait(); cmd.Context().Err() == nil {
		return err
	}
	return nil // Ctrl-C
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

// claimServe keeps a second server away until release, which leaves no directory in which
// there is nothing.
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
	return func() {
		if all, err := os.ReadDir(dir); err == nil && len(all) == 1 {
			os.RemoveAll(dir)
		}
		f.Close()
	}, nil
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

// loader is what a machine's firmware or iPXE is told to boot.
func (d *served) loader(firmwares *netboot.Firmwares, c netboot.Client) (string, bool) {
	const archARM64, archHTTPARM64 = 11, 19 // what is installed is for amd64
	if c.Arch == archARM64 || c.Arch == archHTTPARM64 || !d.server.Meets(c.MAC.String(), c.UUID) {
		return "", false
	}
	if c.IPXE {
		return d.server.URL() + "/ipxe", true
	}
	name, ok := firmwares.For(c)
	if ok && c.Firmware == netboot.HTTP {
		name = d.server.URL() + metal.FirmwarePath + name
	}
	return name, ok
}

// web serves until ctx ends.
func (d *served) web(ctx context.Context, l net.Listener) error {
	h := &http.Server{Handler: d.server.Handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(lineWriter(d.logf), "", 0)}
	stop := context.AfterFunc(ctx, func() { h.Close() })
	defer stop()
	if err := h.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// lineWriter tells what is written to it.
type lineWriter func(string, ...any)

func (w lineWriter) Write(b []byte) (int, error) {
	w("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}

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
		d.logf("%s has changed; addresses that DHCP gives follow when kimage serve starts again", d.flags.file)
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
	now, err := d.secrets(f)
	if err != nil {
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
			if said.Report == nil || key[0] != "" { // a pool's machine has given itself a name
				continue
			}
			phase, why := said.Report.Phase, said.Report.Why
			if phase == local.PhaseReady {
				why = ""
			}
			if said.Silent {
				phase, why = "silent", fmt.Sprintf("the masters have not heard of it since %s, when it was %s", said.Heard.UTC().Format(time.DateTime), said.Report.Phase)
			}
			d.server.Heard(key[1], phase, why, said.Report.Since)
		}
	}
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

// image is what is written, and where a machine's config goes in it.
func (d *served) image(ctx context.Context, f *cluster.File, agent []byte) (image metal.Image, place install.Place, err error) {
	file := d.flags.image
	if file == "" {
		if file, err = (&localCluster{local.Set{Dir: d.dir}, d.flags.file}).bake(ctx, f, "metal", "raw"); err != nil {
			return image, place, err
		}
		if err := d.open(ctx, file, f); err != nil {
			return image, place, err
		}
	}
	image, err = packImage(ctx, progress.New(os.Stderr, 0), d.dir, file, d.is, agent)
	return image, install.Place{Partition: d.is.Partition, Type: "ext4", Directory: "var/lib/cloud/seed/nocloud"}, err
}

// open reads an image, which has to be what the cluster file wants.
func (d *served) open(ctx context.Context, file string, f *cluster.File) (err error) {
	if d.is, err = images.OpenInstallable(ctx, file); err != nil {
		return err
	}
	if err := fits(d.is, f); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// agent is the program that installs.
func (d *served) agent() ([]byte, error) {
	if d.flags.agent != "" {
		return os.ReadFile(d.flags.agent)
	}
	program, err := agents.ReadFile("agent/kimage-agent-amd64")
	if err != nil {
		return nil, fmt.Errorf("this kimage was built without its agent: name one by --agent: %w", err)
	}
	return program, nil
}
