package bootstrap

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/run"
)

func TestScreenText(t *testing.T) {
	s := screen{name: "k8s-01", cluster: "demo", roles: "etcd, master", addresses: []string{"172.17.8.101 (eth1)", "10.0.2.15 (eth0)"},
		image: Manifest{ImageID: "0123456789ab", OS: "debian-13", Kubernetes: "v1.37.2", Runtime: "containerd", Network: "flannel"},
		phase: Phase{Phase: PhaseEtcd, Since: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC), Why: "all founding members must answer once: k8s-02 (no route to it: it is off, or not on this network), k8s-03 (\x1b[31mC:\\)"}}
	want := redraw + strings.TrimPrefix(`
kimage     k8s-01 of demo (etcd, master)
addresses  172.17.8.101 (eth1), 10.0.2.15 (eth0)
image      0123456789ab: debian-13, Kubernetes v1.37.2, containerd, flannel
phase      etcd since 2026-11-25 12:00:00 UTC
why        all founding members must answer once: k8s-02 (no route to it: it is
           off, or not on this network), k8s-03 (?[31mC:/)
more       kimage-agent status; journalctl -u kimage-agent

`, "\n")
	if diff := cmp.Diff(want, s.text()); diff != "" {
		t.Error(diff)
	}
	fresh := screen{name: "w1", cluster: "demo", roles: "worker"}.text()
	if !strings.Contains(fresh, "addresses  none\n") || strings.Contains(fresh, "phase") {
		t.Errorf("got %q", fresh)
	}
	for _, l := range report.Wrap(strings.Repeat("x", 200)+" y", 68) {
		if len(l) > 68 {
			t.Errorf("a line of %d", len(l))
		}
	}
}

// console is a terminal with agetty on it, and what it shows.
type console struct {
	master *os.File
	pid    int
	mu     sync.Mutex
	shown  bytes.Buffer
}

func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown.String()
}

func (c *console) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shown.Reset()
}

// newConsole runs agetty as on a serial console, with /run and /etc of its own.
func newConsole(t *testing.T) *console {
	t.Helper()
	need.Root(t, "a /run of its own")
	need.Program(t, "agetty", "util-linux")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	// As serial-getty@.service calls it; who logs in gets an echo.
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", `mount -t tmpfs tmpfs /run
		mkdir /run/etc /run/work; mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc
		exec agetty --login-program /bin/cat --login-options '/etc/hostname' --keep-baud 115200,57600,38400,9600 - vt220`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &console{master: master, pid: cmd.Process.Pid}
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := master.Read(buf)
			c.mu.Lock()
			c.shown.Write(buf[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); master.Close() })
	return c
}

// await waits until the console has shown text since it was cleared.
func (c *console) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !strings.Contains(c.text(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the console never showed %q, but %q", text, c.text())
		}
	}
}

// TestConsole: a real agetty on a real terminal shows each new status in
// place, above its prompt, until somebody types.
func TestConsole(t *testing.T) {
	c := newConsole(t)
	c.await(t, "login: ")
	s := &screens{root: fmt.Sprintf("/proc/%d/root", c.pid), reload: func(ctx context.Context) error {
		return run.Run(ctx, run.Cmd{Argv: []string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", c.pid), "agetty", "--reload"}})
	}}
	show := func(phase, why string) {
		t.Helper()
		now := screen{name: "k8s-01", cluster: "demo", roles: "worker", phase: Phase{Phase: phase, Why: why}}
		if err := s.show(t.Context(), now.text()); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct{ phase, why string }{{PhaseWaiting, "no link on eth0"}, {PhaseJoin, "an API server answers"}} {
		c.clear()
		show(x.phase, x.why)
		c.await(t, "why        "+x.why)
		c.await(t, "login: ")
		got := c.text()
		cleared := strings.LastIndex(got, redraw)
		if cleared < 0 || cleared > strings.Index(got, "kimage     k8s-01 of demo (worker)") || strings.Count(got[cleared:], "phase      ") != 1 || !strings.HasSuffix(got, "login: ") {
			t.Errorf("the screen was not redrawn in place: %q", got)
		}
	}
	c.clear()
	show(PhaseJoin, "an API server answers")
	time.Sleep(2 * time.Second)
	if got := c.text(); got != "" {
		t.Errorf("the same status was drawn again: %q", got)
	}
	if _, err := c.master.WriteString("som"); err != nil {
		t.Fatal(err)
	}
	c.await(t, "som")
	c.clear()
	show(PhaseReady, "")
	time.Sleep(3 * time.Second)
	if got := c.text(); got != "" {
		t.Errorf("a person who types was disturbed: %q", got)
	}
	if _, err := c.master.WriteString("ebody\r"); err != nil {
		t.Fatal(err)
	}
	c.await(t, "ebody")
}
