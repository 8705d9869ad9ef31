//go:build chaos

package etcd

import (
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestEtcdIdle: an agent whose etcd runs takes next to nothing for looking after
// it, and after two others.
func TestEtcdIdle(t *testing.T) {
	// In % of a core. It takes 0.04 on a quiet computer; beside other work the same
	// instructions take longer, and what is looked for, a loop without a pause, a
	// handshake per look, takes ten times as much.
	const limit = 0.1
	t.Setenv("GOMAXPROCS", "1") // as in the agent's unit
	c := newChaos(t, 2, programs(t), 3)
	for _, m := range c.machines {
		m.Settled = settled // as on a node
		c.tell(m)
		c.boot(m)
	}
	for start := time.Now(); ; {
		if ok, how := c.founded(); ok && how == allServe {
			break
		}
		if time.Since(start) > time.Minute {
			t.Fatal("nothing was founded")
		}
		c.wait(300 * time.Millisecond)
	}
	need.Idle(t, c.machines[0].agent.Process.Pid, limit, 30*time.Second)
}
