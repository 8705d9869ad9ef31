//go:build chaos

package etcd

import (
	"strings"
	"testing"
	"time"
)

// TestChaosNoQuorum takes the quorum from a real etcd of which one member was
// replaced since the founding: the last one says which machines are missing, and
// when they come back empty all say that a majority was lost.
func TestChaosNoQuorum(t *testing.T) {
	t.Parallel()
	c := newChaos(t, 2_000_002, programs(t), 3)
	t.Cleanup(func() { c.explain(2_000_002) })
	a, b, d := c.machines[0], c.machines[1], c.machines[2]
	off := func(m *chaosMachine) {
		m.off = true
		c.kill(m)
		c.killEtcd(m)
	}
	says := func(m *chaosMachine, words ...string) {
		t.Helper()
		all := func() bool {
			for _, w := range words {
				if !strings.Contains(m.said(), w) {
					return false
				}
			}
			return true
		}
		for end := time.Now().Add(time.Minute); !all(); c.wait(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s says %q, want %q", m.Name, m.said(), words)
			}
		}
	}
	c.calm()
	for _, m := range []*chaosMachine{d, a} { // a did not found what there is now
		off(m)
		c.image(m)
		m.off = false
		c.calm()
	}
	c.lookLast()
	if n := c.check.changes(); n < 9 { // three founded, two were removed, added and promoted
		t.Errorf("the logs have %d changes of members", n)
	}
	off(b)
	off(d)
	says(a, "etcd runs; etcd has no quorum", "of its 3 voters are down: b (", ", c (", "kimage recover --from a")
	c.image(b)
	c.image(d)
	b.off, d.off = false, false
	for _, m := range c.machines {
		says(m, "a majority was lost: b and c", "kimage recover --from a")
	}
}
