// Package local keeps a set of virtual machines on this computer: they run until
// somebody ends them, whoever started them and whether or not that terminal is
// still there.
//
// A supervisor, a process of its own session, owns the machines, the switch between
// them and one port that leads to whichever of them answers as the API server. It
// holds a lock as long as it lives, so that a set has one, and after the computer's
// power cut is known to have none. Everybody else asks it through a socket.
//
//	DIR/machines.json    what runs; written before the supervisor starts
//	DIR/lock             held by the supervisor
//	DIR/run              names the directory of its sockets, whose paths must be short
//	DIR/supervisor.log   what it has to say
//	DIR/machines/NAME/   a machine's disk, what it was told at first boot, console.log, qemu.log
//
// Machines have two cards: one with a way out through this computer, and one on the
// switch, where DHCP gives each the address that is meant for it.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// Spec is a set of machines.
type Spec struct {
	User     string       `json:"user"`            // the account that first boot makes
	Accel    string       `json:"accel"`           // kvm or tcg
	Paced    bool         `json:"paced,omitempty"` // also where they are not crowded, see Pacing
	Subnet   netip.Prefix `json:"subnet"`
	Server   netip.Addr   `json:"server"`  // an address of Subnet that no machine has, for DHCP
	APIPort  int          `json:"apiPort"` // on 127.0.0.1; 0: chosen by the supervisor, and written here
	Machines []Machine    `json:"machines"`
}

// Machine is one of them.
type Machine struct {
	Name      string            `json:"name"`
	Pool      string            `json:"pool,omitempty"` // of the cluster file; the machine gives itself another name
	Roles     []string          `json:"roles"`
	API       bool              `json:"api"` // may answer on port 6443
	Image     string            `json:"image"`
	Format    string            `json:"format"`
	DiskGiB   int               `json:"diskGiB"`
	CPUs      int               `json:"cpus"`
	MemoryMiB int               `json:"memoryMiB"`
	MAC       string            `json:"mac"`
	UUID      string            `json:"uuid,omitempty"`
	Serial    string            `json:"serial,omitempty"`
	Address   netip.Addr        `json:"address"`
	Seed      string            `json:"seed,omitempty"`  // copied when the disk is made, as are
	FwCfg     map[string]string `json:"fwCfg,omitempty"` // these files
}

// Status is what the supervisor says.
type Status struct {
	PID      int             `json:"pid"`
	APIPort  int             `json:"apiPort"`
	Machines []MachineStatus `json:"machines"`
}

// MachineStatus is a machine now.
type MachineStatus struct {
	Name    string    `json:"name"`
	On      bool      `json:"on"`
	Since   time.Time `json:"since"` // when it was last switched on
	SSHPort int       `json:"sshPort"`
	Console string    `json:"console"` // socket of the serial port
}

// Set is a directory with machines.
type Set struct{ Dir string }

// ErrNotRunning: there is no supervisor.
var ErrNotRunning = errors.New("the machines are not running")

const (
	specFile = "machines.json"
	lockFile = "lock"
	runFile  = "run"
	logFile  = "supervisor.log"
	control  = "control" // in the directory of sockets
	machines = "machines"

	runPrefix = "kimage-run" // of that directory's name
)

// SupervisorLog has what the supervisor had to say.
func (s Set) SupervisorLog() string { return s.path(logFile) }

func (s Set) path(name string) string { return filepath.Join(s.Dir, name) }

// machineDir is a machine's own directory.
func (s Set) machineDir(name string) string { return filepath.Join(s.Dir, machines, name) }

// Spec reads what runs, or ran.
func (s Set) Spec() (spec Spec, err error) {
	data, err := os.ReadFile(s.path(specFile))
	if err != nil {
		return spec, err
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return spec, fmt.Errorf("reading %s: %w", s.path(specFile), err)
	}
	return spec, nil
}

// Write says what is to run.
func (s Set) Write(spec Spec) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(s.path(specFile), append(data, '\n'), 0o600)
}

// Running says whether there is a supervisor.
func (s Set) Running() (bool, error) {
	f, err := os.Open(s.path(lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Start starts the supervisor, which is program with args, and waits until it
// answers. It lives on when this process and its terminal are gone.
func (s Set) Start(ctx context.Context, program string, args ...string) error {
	if on, err := s.Running(); err != nil || on {
		return errors.Join(errors.New("the machines are running already"), err)
	}
	log, err := os.OpenFile(s.path(logFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if st, err := s.Status(ctx); err == nil && st.PID == cmd.Process.Pid {
			return nil
		}
		select {
		case err := <-ended:
			words, _ := os.ReadFile(s.path(logFile))
			return fmt.Errorf("the machines did not start (%v): %s", err, strings.TrimSpace(string(words)))
		case <-ctx.Done():
			cmd.Process.Signal(syscall.SIGTERM)
			<-ended
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Status asks the supervisor.
func (s Set) Status(ctx context.Context) (st Status, err error) {
	return st, s.ask(ctx, http.MethodGet, "/", &st)
}

// Stop ends the machines, as a power cut does, and the supervisor.
func (s Set) Stop(ctx context.Context) error {
	err := s.ask(ctx, http.MethodPost, "/stop", nil)
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	for { // until it is gone, so are its sockets
		on, err := s.Running()
		if err != nil || !on {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Remove ends the machines, and removes all that is theirs.
func (s Set) Remove(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	return errors.Join(s.sweep(), os.RemoveAll(s.Dir))
}

// sweep removes the sockets of a supervisor that was killed.
func (s Set) sweep() error {
	run, err := os.ReadFile(s.path(runFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if dir := strings.TrimSpace(string(run)); err == nil && strings.HasPrefix(filepath.Base(dir), runPrefix) {
		err = os.RemoveAll(dir)
	}
	return err
}

// Boot boots a machine fresh, by what machines.json now says: a new one, or one that is
// destroyed first.
func (s Set) Boot(ctx context.Context, name string) error {
	return s.ask(ctx, http.MethodPost, "/boot/"+name, nil)
}

// SwitchOn boots a machine that went off from its disk again.
func (s Set) SwitchOn(ctx context.Context, name string) error {
	return s.ask(ctx, http.MethodPost, "/on/"+name, nil)
}

// Drop ends a machine that machines.json no longer names, and removes what is its own.
func (s Set) Drop(ctx context.Context, name string) error {
	err := s.ask(ctx, http.MethodPost, "/drop/"+name, nil)
	if errors.Is(err, ErrNotRunning) {
		return os.RemoveAll(s.machineDir(name))
	}
	return err
}

func (s Set) ask(ctx context.Context, method, path string, into any) error {
	if on, err := s.Running(); err != nil {
		return err
	} else if !on {
		return ErrNotRunning
	}
	run, err := os.ReadFile(s.path(runFile))
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(strings.TrimSpace(string(run)), control))
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("asking the supervisor of the machines (%s): %w", s.path(logFile), err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(data)))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(data, into)
}
