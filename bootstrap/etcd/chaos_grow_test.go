//go:build chaos

package etcd

import (
	"testing"
	"time"
)

// TestGrow: a cluster of one grows to three and to five, and shrinks to three without
// the machine that founded it, while a client writes. Only a machine that is new, or
// one that stays, is told of each change.
func TestGrow(t *testing.T) {
	t.Parallel()
	c := newChaos(t, 2_000_001, programs(t), 5)
	t.Cleanup(func() { c.explain(2_000_001) })
	founder := c.machines[0]
	c.roster.Founding, c.roster.Members, c.roster.Left = []string{founder.Name}, nil, nil
	founder.Roster = c.sign(c.machines[:1])
	c.tell(founder)
	for _, m := range c.machines[1:] {
		m.off = true
	}
	c.calm()
	c.write()
	id := c.clusterOf(founder)
	for _, step := range []struct {
		name             string
		first, past, new int // of the machines: the members, and from which on they are new
	}{{"three", 0, 3, 1}, {"five", 0, 5, 3}, {"three others", 2, 5, 4}} {
		began := time.Now()
		members := c.machines[step.first:step.past]
		c.roster.Serial++
		signed := c.sign(members)
		c.note("the roster has %d members", len(members))
		for _, m := range c.machines[step.new:step.past] {
			m.Roster, m.off = signed, false
			c.tell(m)
			c.kill(m) // it is booted again, and reads it
		}
		c.calm()
		t.Logf("%s: %s", step.name, time.Since(began).Round(time.Second))
		for _, m := range members {
			if got := c.clusterOf(m); got != id {
				t.Errorf("%s is in cluster %s, the first one was %s", m.Name, got, id)
			}
		}
	}
	t.Logf("%d acknowledged writes are there", c.written())
}
