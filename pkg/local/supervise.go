package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/lan"
	"github.com/kimage-project/kimage/pkg/qemu"
)

const apiPort = 6443

// supervisor owns the machines.
type supervisor struct {
	set    Set
	run    string // directory of sockets
	logf   func(string, ...any)
	lan    *lan.Switch
	api    *api
	stop   context.CancelFunc
	socket map[string]string // of the switch's ports

	changing sync.Mutex // held while a machine is changed

	mu       sync.Mutex // of what follows
	spec     Spec
	machines map[string]*qemu.Machine
	started  map[string]time.Time
}

// Supervise runs the machines until ctx ends or somebody asks it to stop.
func (s Set) Supervise(ctx context.Context, logf func(string, ...any)) error {
	lock, err := os.OpenFile(s.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Who asks whether there is a supervisor holds the lock for a moment.
	for end := time.Now().Add(time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			break
		} else if time.Now().After(end) {
			return errors.New("the machines have a supervisor already")
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v := &supervisor{set: s, logf: logf, stop: cancel, socket: map[string]string{}, machines: map[string]*qemu.Machine{}, started: map[string]time.Time{}}
	if v.spec, err = s.Spec(); err != nil {
		return err
	}
	if err := s.sweep(); err != nil {
		return err
	}
	if v.run, err = os.MkdirTemp("", runPrefix); err != nil {
		return err
	}
	defer os.RemoveAll(v.run)
	if err := atomicfile.Write(s.path(runFile), []byte(v.run+"\n"), 0o600); err != nil {
		return err
	}
	if err := v.connect(); err != nil {
		return err
	}
	defer v.lan.Close()
	if err := v.listenAPI(); err != nil {
		return err
	}
	defer v.api.Close()
	defer v.end()
	for _, m := range v.spec.Machines {
		if err := v.start(ctx, m); err != nil {
			return fmt.Errorf("starting %s: %w", m.Name, err)
		}
	}
	go v.takeTurns(ctx)
	return v.answer(ctx)
}

// connect makes the network of the machines.
func (v *supervisor) connect() (err error) {
	if v.lan, err = lan.New(v.run); err != nil {
		return err
	}
	for i, m := range v.spec.Machines {
		if v.socket[m.Name], err = v.lan.Port(strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return v.giveAddresses(v.spec.Machines)
}

// giveAddresses has the switch give the machines theirs.
func (v *supervisor) giveAddresses(to []Machine) error {
	d := lan.DHCP{Subnet: v.spec.Subnet, Server: v.spec.Server, Addresses: map[[6]byte]netip.Addr{}}
	of := map[netip.Addr]string{}
	for _, m := range to {
		mac, err := net.ParseMAC(m.MAC)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("%s: %q is no card's address", m.Name, m.MAC)
		}
		if other := of[m.Address]; other != "" {
			return fmt.Errorf("%s and %s are to have one address, %s", other, m.Name, m.Address)
		}
		if m.Address.IsValid() {
			d.Addresses[[6]byte(mac)], of[m.Address] = m.Address, m.Name
		}
	}
	return v.lan.Serve(d)
}

// listenAPI opens the port that leads to the API servers, the same one as before.
func (v *supervisor) listenAPI() (err error) {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(v.spec.APIPort)))
	if err != nil {
		return fmt.Errorf("the port of the Kubernetes API: %w", err)
	}
	v.api = newAPI(ln, v.apiServers)
	if port := ln.Addr().(*net.TCPAddr).Port; port != v.spec.APIPort {
		v.spec.APIPort = port
		return v.set.Write(v.spec)
	}
	return nil
}

// apiServers are the ports of this computer that lead to one.
func (v *supervisor) apiServers() (all []int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range v.spec.Machines {
		if q := v.machines[m.Name]; m.API && q != nil && !q.Off() {
			all = append(all, q.Ports[apiPort])
		}
	}
	return all
}

// start switches a machine on, and makes its disk if it has none.
func (v *supervisor) start(ctx context.Context, m Machine) error {
	m, told := v.owning(m)
	c := qemu.Config{Dir: v.set.machineDir(m.Name), Sockets: v.run, Image: m.Image, Format: m.Format, DiskGiB: m.DiskGiB, CPUs: m.CPUs, MemoryMiB: m.MemoryMiB,
		Seed: m.Seed, FwCfg: m.FwCfg, UUID: m.UUID, Serial: m.Serial, Accel: v.spec.Accel, Paced: v.pacing(), Cache: "writeback", LAN: v.socket[m.Name], LANMAC: m.MAC}
	if m.API {
		c.Forward = []int{apiPort}
	}
	q := qemu.Open(c)
	if _, err := os.Stat(q.Disk()); errors.Is(err, fs.ErrNotExist) {
		if err := copyAll(told); err != nil {
			return err
		}
		if q, err = qemu.New(ctx, c); err != nil {
			return err
		}
	}
	if err := v.set.setConsoleAside(m.Name); err != nil {
		return err
	}
	if err := q.Start(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.machines[m.Name], v.started[m.Name] = q, time.Now()
	return nil
}

// owning is m with copies of its own of what it is told at first boot: it has them when
// it boots again, when the configs were made anew for others, with or without it. from
// has the files by these copies.
func (v *supervisor) owning(m Machine) (own Machine, from map[string]string) {
	from = map[string]string{}
	copied := func(file string) string {
		to := filepath.Join(v.set.machineDir(m.Name), filepath.Base(file))
		from[to] = file
		return to
	}
	if m.Seed != "" {
		m.Seed = copied(m.Seed)
	}
	m.FwCfg = maps.Clone(m.FwCfg)
	for key, file := range m.FwCfg {
		m.FwCfg[key] = copied(file)
	}
	return m, from
}

// copyAll copies files, by the names of the copies.
func copyAll(from map[string]string) error {
	for to, file := range from {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), atomicfile.Write(to, data, 0o600)); err != nil {
			return err
		}
	}
	return nil
}

// end switches all machines off.
func (v *supervisor) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, q := range v.machines {
		q.Kill()
	}
}

// answer serves the control socket.
func (v *supervisor) answer(ctx context.Context) error {
	ln, err := net.Listen("unix", filepath.Join(v.run, control))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v.status()) })
	mux.HandleFunc("POST /stop", func(http.ResponseWriter, *http.Request) { v.stop() })
	for verb, do := range map[string]func(context.Context, string) error{"boot": v.boot, "on": v.on, "drop": v.drop} {
		mux.HandleFunc("POST /"+verb+"/{name}", func(w http.ResponseWriter, r *http.Request) {
			if err := do(ctx, r.PathValue("name")); err != nil {
				v.logf("%s %s: %v", verb, r.PathValue("name"), err)
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		// The answer to who asked for it goes out first.
		server.Shutdown(context.WithoutCancel(ctx))
	}
	return err
}

func (v *supervisor) status() Status {
	v.mu.Lock()
	defer v.mu.Unlock()
	st := Status{PID: os.Getpid(), APIPort: v.spec.APIPort}
	for _, m := range v.spec.Machines {
		s := MachineStatus{Name: m.Name, Since: v.started[m.Name]}
		if q := v.machines[m.Name]; q != nil {
			s.On, s.SSHPort, s.Console = !q.Off(), q.SSHPort, q.ConsoleSocket()
		}
		st.Machines = append(st.Machines, s)
	}
	return st
}

// boot boots one machine fresh, as machines.json now describes it: a new one, or one
// that is destroyed first.
func (v *supervisor) boot(ctx context.Context, name string) error {
	v.changing.Lock()
	defer v.changing.Unlock()
	spec, err := v.set.Spec()
	if err != nil {
		return err
	}
	m := spec.Machine(name)
	if m == nil {
		return fmt.Errorf("there is no machine %s", name)
	}
	if v.socket[name] == "" {
		if v.socket[name], err = v.lan.Port(strconv.Itoa(len(v.socket))); err != nil {
			return err
		}
	}
	if err := v.take(func(all []Machine) []Machine {
		if i := slices.IndexFunc(all, func(x Machine) bool { return x.Name == name }); i >= 0 {
			all[i] = *m
			return all
		}
		return append(all, *m)
	}); err != nil {
		return err
	}
	if q := v.machine(name); q != nil {
		q.Kill()
	}
	if err := os.RemoveAll(v.set.machineDir(name)); err != nil {
		return err
	}
	return v.start(ctx, *m)
}

// on boots a machine that went off from its disk again.
func (v *supervisor) on(ctx context.Context, name string) error {
	v.changing.Lock()
	defer v.changing.Unlock()
	if q := v.machine(name); q != nil && !q.Off() {
		return nil
	}
	all := v.list()
	i := slices.IndexFunc(all, func(m Machine) bool { return m.Name == name })
	if i < 0 {
		return fmt.Errorf("there is no machine %s", name)
	}
	return v.start(ctx, all[i])
}

// drop ends a machine that machines.json no longer names.
func (v *supervisor) drop(_ context.Context, name string) error {
	v.changing.Lock()
	defer v.changing.Unlock()
	spec, err := v.set.Spec()
	if err != nil {
		return err
	}
	if spec.Machine(name) != nil {
		return fmt.Errorf("%s still names %s", specFile, name)
	}
	if q := v.machine(name); q != nil {
		q.Kill()
	}
	// Its port of the switch stays: ports are told apart by their number.
	err = v.take(func(all []Machine) []Machine {
		return slices.DeleteFunc(all, func(m Machine) bool { return m.Name == name })
	})
	v.mu.Lock()
	delete(v.machines, name)
	v.mu.Unlock()
	return errors.Join(err, os.RemoveAll(v.set.machineDir(name)))
}

// take changes the list of machines, unless they could not have their addresses then.
func (v *supervisor) take(change func([]Machine) []Machine) error {
	all := change(v.list())
	if err := v.giveAddresses(all); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.spec.Machines = all
	return nil
}

// list is a copy of the machines.
func (v *supervisor) list() []Machine {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.spec.Machines)
}

func (v *supervisor) pacing() bool {
	return Spec{Accel: v.spec.Accel, Paced: v.spec.Paced, Machines: v.list()}.Pacing()
}

func (v *supervisor) machine(name string) *qemu.Machine {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.machines[name]
}
