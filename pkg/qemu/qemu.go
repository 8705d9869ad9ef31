// Package qemu runs virtual machines on this computer, with or without KVM,
// and talks to them: serial console, SSH, power.
//
// A machine is one qemu process and a directory with its disk overlay and its
// logs; when the process that started it ends, so does the machine. A network
// between machines is a switch's business (package lan); here it is a socket.
package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kimage-project/kimage/pkg/run"
)

// Firmware that boots a machine.
const (
	BIOS = "bios"
	UEFI = "uefi"
)

// OVMF's images, package ovmf.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Interface is what systemd calls the machine's first network card, by which SSH
// comes in, and LANInterface the one that is connected to other machines.
const (
	Interface    = "enp0s16"
	LANInterface = "enp0s17"
)

// MAC is that of the first card, of every machine; so is its address, 10.0.2.15.
const MAC = "52:54:00:12:34:56"

// Config describes a machine.
type Config struct {
	Dir       string // the machine's own files; made
	Image     string // raw or qcow2; not written to
	Format    string // of Image
	DiskGiB   int    // size of the disk the machine sees; 0: the image's
	Seed      string // volume with first-boot configuration; empty: none
	Firmware  string // BIOS or UEFI; empty: BIOS
	CPUs      int
	MemoryMiB int    // 0: 1024
	UUID      string // of the machine, in SMBIOS; empty: none
	Serial    string // serial number in SMBIOS; empty: none
	LAN       string // a switch's socket for a second card; empty: no such card
	LANMAC    string // of the second card
	Accel     string // kvm or tcg; empty: tcg, which works everywhere
	Paced     bool   // an emulated machine's time passes as fast as it gets on, see Pace
	Cache     string // qemu's cache mode of the disk; empty: unsafe, which this computer's power cut does not survive
	Sockets   string // directory for the machine's sockets, whose paths must be short; empty: Dir
	Forward   []int  // TCP ports of the machine's first card that this computer's loopback shall lead to, besides SSH's
	Isolated  bool   // no way out: only the forwarded SSH port is reachable
	Capture   string // file for all that the first card sends and receives, in pcap format; empty: none
	// Kernel boots the machine instead of its disk, with Initrd and the command
	// line Append; empty: the disk's boot loader.
	Kernel, Initrd, Append string
	FwCfg                  map[string]string // fw_cfg item (opt/...) to a file
	Second                 string            // raw file of a second disk, which is written to; empty: none
	NoReboot               bool              // a machine that restarts itself is off
}

// Machine is a running or stopped machine.
type Machine struct {
	c       Config
	cmd     *exec.Cmd
	exited  chan struct{}
	exitErr error
	SSHPort int
	Ports   map[int]int // Forward's, to those of this computer
}

// Open is a machine that New made before.
func Open(c Config) *Machine { return &Machine{c: c} }

// New makes the machine's disk; Start boots it.
func New(ctx context.Context, c Config) (*Machine, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	m := Open(c)
	image, err := filepath.Abs(c.Image)
	if err != nil {
		return nil, err
	}
	argv := []string{"qemu-img", "create", "-q", "-f", "qcow2", "-F", c.Format, "-b", image, m.Disk()}
	if c.DiskGiB > 0 {
		argv = append(argv, strconv.Itoa(c.DiskGiB)+"G")
	}
	if err := run.Run(ctx, run.Cmd{Argv: argv}); err != nil {
		return nil, fmt.Errorf("making the disk of %s: %w", c.Dir, err)
	}
	if c.Firmware == UEFI {
		vars, err := os.ReadFile(ovmfVars)
		if err != nil {
			return nil, fmt.Errorf("UEFI firmware (package ovmf): %w", err)
		}
		if err := os.WriteFile(filepath.Join(c.Dir, "vars.fd"), vars, 0o600); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Disk is the file of the machine's disk, qcow2.
func (m *Machine) Disk() string { return filepath.Join(m.c.Dir, "disk.qcow2") }

// Console is everything the machine wrote to its serial port since it was made.
func (m *Machine) Console() string {
	data, _ := os.ReadFile(m.consoleFile())
	return string(data)
}

// ConsoleSocket leads to the machine's serial port, both ways. What is written
// there is in Console as well.
func (m *Machine) ConsoleSocket() string { return m.socket("console") }

func (m *Machine) socket(name string) string {
	if m.c.Sockets == "" {
		return filepath.Join(m.c.Dir, name)
	}
	return filepath.Join(m.c.Sockets, filepath.Base(m.c.Dir)+"."+name)
}

func (m *Machine) consoleFile() string { return filepath.Join(m.c.Dir, "console.log") }

// Start powers the machine on.
func (m *Machine) Start(context.Context) error {
	path, err := run.Find("qemu-system-x86_64")
	if err != nil {
		return fmt.Errorf("package qemu-system-x86: %w", err)
	}
	if m.SSHPort, err = freePort(); err != nil {
		return err
	}
	m.Ports = map[int]int{}
	for _, p := range m.c.Forward {
		if m.Ports[p], err = freePort(); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(filepath.Join(m.c.Dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	m.cmd = exec.Command(path, m.argv()...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("starting qemu: %w", err)
	}
	m.exited = make(chan struct{})
	go func() {
		m.exitErr = m.cmd.Wait()
		close(m.exited)
	}()
	return nil
}

func (m *Machine) argv() []string {
	accel := append([]string{"-accel", "tcg,thread=multi"}, emulated()...)
	switch {
	case m.c.Accel == "kvm":
		accel = []string{"-accel", "kvm", "-cpu", "max"}
	case m.c.Paced:
		accel = Pace()
	}
	restrict := ""
	if m.c.Isolated {
		restrict = ",restrict=on"
	}
	forward := fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:22", m.SSHPort)
	for _, p := range m.c.Forward {
		forward += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", m.Ports[p], p)
	}
	argv := append(accel,
		"-name", filepath.Base(m.c.Dir), "-machine", "q35", "-smp", strconv.Itoa(max(1, m.c.CPUs)), "-m", strconv.Itoa(cmp.Or(m.c.MemoryMiB, 1024)),
		"-nodefaults", "-display", "none", "-vga", "std",
		"-chardev", "socket,id=console,server=on,wait=off,path="+value(m.ConsoleSocket())+",logfile="+value(m.consoleFile())+",logappend=on", "-serial", "chardev:console",
		"-drive", "file="+value(m.Disk())+",if=virtio,format=qcow2,discard=unmap,cache="+cmp.Or(m.c.Cache, "unsafe"),
		"-netdev", "user,id=net,ipv6=off"+restrict+forward, "-device", "virtio-net-pci,netdev=net,bus=pcie.0,addr=0x10,mac="+MAC,
		"-device", "virtio-rng-pci",
		"-qmp", "unix:"+value(m.monitorFile())+",server=on,wait=off",
	)
	if m.c.Capture != "" {
		argv = append(argv, "-object", "filter-dump,id=capture,netdev=net,maxlen=128,file="+value(m.c.Capture)) // as far as addresses and ports go
	}
	if m.c.LAN != "" {
		argv = append(argv, "-netdev", "stream,id=lan,server=off,addr.type=unix,addr.path="+value(m.c.LAN), "-device", "virtio-net-pci,netdev=lan,bus=pcie.0,addr=0x11,mac="+m.c.LANMAC)
	}
	if m.c.UUID != "" {
		argv = append(argv, "-uuid", m.c.UUID)
	}
	if m.c.Serial != "" {
		argv = append(argv, "-smbios", "type=1,serial="+value(m.c.Serial))
	}
	if m.c.Seed != "" {
		argv = append(argv, "-drive", "file="+value(m.c.Seed)+",if=virtio,format=raw,readonly=on")
	}
	if m.c.Second != "" {
		argv = append(argv, "-drive", "file="+value(m.c.Second)+",if=virtio,format=raw,cache="+cmp.Or(m.c.Cache, "unsafe"))
	}
	if m.c.NoReboot {
		argv = append(argv, "-no-reboot")
	}
	if m.c.Kernel != "" {
		argv = append(argv, "-kernel", m.c.Kernel, "-initrd", m.c.Initrd, "-append", m.c.Append)
	}
	for _, name := range slices.Sorted(maps.Keys(m.c.FwCfg)) {
		argv = append(argv, "-fw_cfg", "name="+name+",file="+value(m.c.FwCfg[name]))
	}
	if m.c.Firmware == UEFI {
		argv = append(argv,
			"-drive", "if=pflash,format=raw,readonly=on,file="+ovmfCode, "-drive", "if=pflash,format=raw,file="+value(filepath.Join(m.c.Dir, "vars.fd")))
	}
	return argv
}

// emulated is a processor without what a real one gains by and an emulated one loses:
// ERMS (the kernel copies byte by byte, and not by eight), SMAP (it ends a translated
// block twice in each copy from a program) and a fifth level of page tables. It boots
// 10 % faster.
func emulated() []string { return []string{"-cpu", "max,erms=off,smap=off,la57=off"} }

// Pace is how qemu emulates a machine whose time passes as fast as it gets on: each
// instruction takes one nanosecond, and where it waits time passes as elsewhere. Without
// that, on a computer with too much to do, the machine's deadlines pass before it had the
// time to meet them: the leader's lease is lost, a request given up and made again, and
// all of it has to be done once more. The machine's clock falls behind; that of its
// mainboard (RTC) does not. All its processors are one thread.
// (https://www.qemu.org/docs/master/devel/tcg-icount.html)
func Pace() []string {
	return append([]string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on,align=off"}, emulated()...)
}

// value is one in a list of options: a comma would end it.
func value(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Wait waits until the machine is off.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-m.exited:
		return m.exitErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Started says whether a machine was ever switched on.
func (m *Machine) Started() bool { return m.exited != nil }

// Off says whether a machine that was started is off.
func (m *Machine) Off() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// Kill pulls the plug.
func (m *Machine) Kill() {
	if m.cmd == nil || m.cmd.Process == nil {
		return
	}
	m.cmd.Process.Kill()
	<-m.exited
}

// WaitConsole waits until the console shows text.
func (m *Machine) WaitConsole(ctx context.Context, text string) error {
	for {
		if strings.Contains(m.Console(), text) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the console never showed %q: %w; its end: %s", text, ctx.Err(), tail(m.Console(), 2000))
		case <-m.exited:
			return errors.New("the machine went off before the console showed " + text)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}
