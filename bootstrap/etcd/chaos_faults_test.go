//go:build chaos

package etcd

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kimage-project/kimage/pkg/run"
)

// fault throws one fault.
func (c *chaos) fault() {
	m := c.machines[c.r.IntN(len(c.machines))]
	o := c.machines[c.r.IntN(len(c.machines))]
	switch x := c.r.IntN(100); {
	case x < 12:
		c.note("%s: kill -9 of the agent", m.Name)
		c.kill(m)
	case x < 22:
		c.note("%s: power cut", m.Name)
		c.kill(m)
		c.killEtcd(m)
	case x < 28:
		c.note("%s: kill -9 of etcd", m.Name)
		c.killEtcd(m)
	case x < 38 && c.lost > 0:
		c.lost--
		c.note("%s: imaged again", m.Name)
		c.kill(m)
		c.killEtcd(m)
		c.image(m)
	case x < 44 && c.lost > 0 && !m.away:
		c.lost--
		c.note("%s: rm -rf of the data, the agent lives", m.Name)
		c.killEtcd(m)
		c.removeData(m)
	case x < 54:
		if m.agent != nil {
			c.note("%s: agent paused", m.Name)
			agent := m.agent
			agent.Process.Signal(syscall.SIGSTOP)
			c.later(func() { agent.Process.Signal(syscall.SIGCONT) })
		}
	case x < 58:
		if pid := etcdOf(m.state()); pid != 0 {
			c.note("%s: etcd paused", m.Name)
			syscall.Kill(pid, syscall.SIGSTOP)
			c.later(func() { syscall.Kill(pid, syscall.SIGCONT) })
		}
	case x < 66:
		c.note("%s: cut off", m.Name)
		c.ip("-n", c.ns, "link", "set", "dev", m.Name+"0", "down")
		c.later(func() { c.ip("-n", c.ns, "link", "set", "dev", m.Name+"0", "up") })
	case x < 74 && m != o:
		c.note("%s: no way to %s", m.Name, o.Name)
		c.ip("-n", m.ns, "route", "replace", "blackhole", o.Address+"/32")
		c.later(func() { c.ip("-n", m.ns, "route", "delete", "blackhole", o.Address+"/32") })
	case x < 81:
		c.slow(m)
	case x < 87:
		jump := []string{"-438000h", "-24h", "3h", "300000h"}[c.r.IntN(4)]
		c.note("%s: clock jumps by %s", m.Name, jump)
		os.WriteFile(filepath.Join(m.Dir, "clock"), []byte(jump), 0o600)
		c.later(func() { os.Remove(filepath.Join(m.Dir, "clock")) })
	case x < 94:
		c.arm(m)
	default:
		if !m.away {
			c.note("%s: boots without KIMAGE", m.Name)
			c.kill(m)
			c.killEtcd(m)
			c.must(os.Rename(m.disk(), filepath.Join(m.Dir, "disk.away")))
			c.must(os.MkdirAll(m.disk(), 0o700))
			m.away = true
			c.later(func() { c.mount(m) })
		}
	}
}

// removeData removes all data at once, as nobody sees half of a removal by a
// later boot.
func (c *chaos) removeData(m *chaosMachine) {
	c.lookLast()
	data, _ := filepath.Glob(filepath.Join(m.state(), dataDir, "*"))
	for _, d := range data {
		os.Rename(d, filepath.Join(m.Dir, "removed"))
		os.RemoveAll(filepath.Join(m.Dir, "removed"))
	}
}

// arm cuts a machine's power in the first 100 ms of the next etcd there.
func (c *chaos) arm(m *chaosMachine) {
	c.note("%s: power will be cut in etcd's first moments", m.Name)
	m.armed, m.old = true, etcdOf(m.state())
}

// mount gives a machine its disk back, with another boot.
func (c *chaos) mount(m *chaosMachine) {
	if !m.away {
		return
	}
	c.kill(m)
	if written, _ := os.ReadDir(m.disk()); len(written) > 0 {
		c.t.Errorf("%s wrote %v below a mount point without KIMAGE", m.Name, written)
	}
	c.must(os.RemoveAll(m.disk()))
	c.must(os.Rename(filepath.Join(m.Dir, "disk.away"), m.disk()))
	m.away = false
}

// slow makes a machine's link slow: netem where the kernel has it, else a queue
// that fills up.
func (c *chaos) slow(m *chaosMachine) {
	c.note("%s: slow link", m.Name)
	tc := func(args ...string) error {
		return run.Run(context.Background(), run.Cmd{Argv: append([]string{"ip", "netns", "exec", m.ns, "tc", "qdisc"}, args...)})
	}
	if tc("add", "dev", "eth0", "root", "netem", "delay", "200ms", "100ms", "loss", "5%") != nil &&
		tc("add", "dev", "eth0", "root", "tbf", "rate", "96kbit", "burst", "3000", "latency", "700ms") != nil {
		return
	}
	c.later(func() { tc("delete", "dev", "eth0", "root") })
}
