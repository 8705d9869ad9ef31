//go:build chaos

package etcd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestTheseus replaces every etcd machine, one after the other, each by one of a
// new name and address that alone knows the newer roster, while a client writes
// and another machine, which is no member, is left alone. In the end nothing of
// the first cluster is there but its ID and what was written; and the machine that
// was never touched knows the new members, also after it was switched off and on.
func TestTheseus(t *testing.T) {
	c := newChaos(t, 0, programs(t), 7)
	t.Cleanup(func() { c.explain(0) })
	first, replacements, untouched := c.machines[:3], c.machines[3:6], c.machines[6]
	for _, m := range replacements {
		m.off = true
	}
	c.calm()
	c.write()
	id := c.clusterOf(first[0])
	members := slices.Clone(first)
	for i, m := range replacements {
		gone := first[i]
		members[i] = m
		c.roster.Serial++
		m.Roster = c.sign(members)
		c.tell(m)
		c.note("%s is replaced by %s", gone.Name, m.Name)
		destroy := func() {
			gone.off = true
			c.kill(gone)
			c.killEtcd(gone)
		}
		// Lost before, or taken away when its successor is there.
		if start := time.Now(); i%2 == 0 {
			destroy()
			m.off = false
			c.calm()
			t.Logf("%s in the place of %s, which was lost: %s", m.Name, gone.Name, time.Since(start).Round(time.Second))
		} else {
			m.off = false
			c.calm()
			destroy()
			t.Logf("%s in the place of %s, which ran: %s", m.Name, gone.Name, time.Since(start).Round(time.Second))
		}
	}
	c.kill(untouched)
	c.must(os.Remove(filepath.Join(untouched.Dir, "said"))) // it has to say so again
	c.calm()
	for _, m := range members {
		if got := c.clusterOf(m); got != id {
			t.Errorf("%s is in cluster %s, the first one was %s", m.Name, got, id)
		}
	}
	data, err := os.ReadFile(filepath.Join(untouched.state(), factsDir, rosterFile))
	c.must(err)
	var kept nodeconf.SignedRoster
	c.must(json.Unmarshal(data, &kept))
	r, err := kept.Open(untouched.Cluster.RosterKey, untouched.Cluster.UID)
	c.must(err)
	var names []string
	for _, m := range r.Members {
		names = append(names, m.Name)
	}
	if !slices.Equal(names, []string{"d", "e", "f"}) {
		t.Errorf("%s, which was never touched, knows the members %v", untouched.Name, names)
	}
	writes := c.written()
	c.lookLast()
	if n := c.check.changes(); n < 12 { // three founded, and each was removed, and another added and promoted
		t.Errorf("the logs have %d changes of members", n)
	}
	t.Logf("%d changes of members, %d acknowledged writes are there", c.check.changes(), writes)
}

// clusterOf is the ID of the cluster that a machine has pinned.
func (c *chaos) clusterOf(m *chaosMachine) string {
	data, err := os.ReadFile(filepath.Join(m.state(), factsDir, clusterFile))
	c.must(err)
	var pinned Cluster
	c.must(json.Unmarshal(data, &pinned))
	return pinned.ID
}
