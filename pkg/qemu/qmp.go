package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kimage-project/kimage/pkg/run"
)

// monitorFile is the socket on which qemu takes commands
// (https://www.qemu.org/docs/master/interop/qmp-spec.html).
func (m *Machine) monitorFile() string { return m.socket("qmp") }

// Pause stops the machine's processors and its clock, until Resume: the machine
// does not notice.
func (m *Machine) Pause(ctx context.Context) error { return m.monitor(ctx, "stop") }

// Resume lets a paused machine go on.
func (m *Machine) Resume(ctx context.Context) error { return m.monitor(ctx, "cont") }

func (m *Machine) monitor(ctx context.Context, command string) error {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "unix", m.monitorFile())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	answers := bufio.NewReader(conn)
	for _, c := range []string{"qmp_capabilities", command} {
		if _, err := fmt.Fprintf(conn, "{\"execute\": %q}\n", c); err != nil {
			return err
		}
		if err := answer(answers); err != nil {
			return fmt.Errorf("qemu's monitor, %s: %w", c, err)
		}
	}
	return nil
}

// answer reads up to the answer of a command; greeting and events come between.
func answer(r *bufio.Reader) error {
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return err
		}
		var a struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &a); err != nil {
			return err
		}
		switch {
		case a.Error != nil:
			return errors.New(a.Error.Desc)
		case a.Return != nil:
			return nil
		}
	}
}

// CopyDisk copies the disk of a running machine as Kill would leave it now: what
// the machine did not flush may be missing. The machine stands still for as long
// as that takes, and its clock goes on.
func (m *Machine) CopyDisk(ctx context.Context, to string) error {
	pid := m.cmd.Process.Pid
	if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	defer m.cmd.Process.Signal(syscall.SIGCONT)
	for stopped := false; !stopped; {
		var err error
		if stopped, err = allStopped(pid); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return run.Run(ctx, run.Cmd{Argv: []string{"cp", "--sparse=always", "--reflink=auto", m.Disk(), to}})
}

// allStopped: a thread in the middle of writing stops when that is done.
func allStopped(pid int) (bool, error) {
	all, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
	if err != nil || len(all) == 0 {
		return false, errors.Join(errors.New("qemu is gone"), err)
	}
	for _, file := range all {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it ended
		}
		_, rest, _ := strings.Cut(string(data), ") ") // NAME) STATE
		if !strings.HasPrefix(rest, "T") {
			return false, nil
		}
	}
	return true, nil
}
