package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/metal"
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

Debian and Ubuntu are installed by the image's own kernel, Flatcar by its vendor's live
system for the network, which is fetched and verified as images are (KIMAGE_MIRROR) and
needs 3 GiB of memory in the machine.

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
	net    *netboot.Server
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
	system, err := images.FindOS(file.OS.Name)
	if err != nil {
		return err
	}
	if err := system.Installs(); err != nil {
		return err
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
	if d.net, err = netboot.New(boot); err != nil {
		return err
	}
	configs, err := d.secrets(file)
	if err != nil {
		return err
	}
	image, err := d.image(cmd.Context(), file, agent)
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // packing takes much once, what follows little for weeks
	d.server, err = metal.New(metal.Config{Dir: dir, URL: url, ClusterUID: d.uid, Machines: machines, Pool: pool, Image: image, SeedTo: d.is.Seed,
		Seed: func(_ context.Context, m metal.Machine) ([]byte, error) { return configs.of(m) }, Firmware: firmwares, Logf: d.logf})
	if err != nil {
		return err
	}
	lines := d.server.Lines
	d.lines.Store(&lines)
	d.logf("%d machines; image %s; %s shows how far they are; Ctrl-C ends", len(machines), image.ID, url)
	group, until := errgroup.WithContext(cmd.Context())
	group.Go(func() error { return d.net.Run(until) })
	group.Go(func() error { return d.web(until, web) })
	group.Go(func() error { return d.watch(until, seen, configs) })
	group.Go(func() error { return d.phases(until) })
	if err := group.Wait(); cmd.Context().Err() == nil {
		return err
	}
	return nil // Ctrl-C
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

// image is what is written, and what writes it.
func (d *served) image(ctx context.Context, f *cluster.File, agent []byte) (image metal.Image, err error) {
	baker, file := &localCluster{local.Set{Dir: d.dir}, d.flags.file}, d.flags.image
	if file == "" {
		if file, err = baker.bake(ctx, f, "metal", "raw"); err != nil {
			return image, err
		}
		if err := d.open(ctx, file, f); err != nil {
			return image, err
		}
	}
	live, err := liveSystem(ctx, baker.baked(f, "metal", "raw"))
	if err != nil {
		return image, err
	}
	return packImage(ctx, progress.New(os.Stderr, 0), d.dir, file, d.is, live, agent)
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
