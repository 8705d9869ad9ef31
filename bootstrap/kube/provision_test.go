package kube

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestDue follows the record of tokens through the rosters of a cluster's life.
func TestDue(t *testing.T) {
	key := "1"
	grantsOf := func(names string) (all []grant, peers nodeconf.Peers) {
		for _, name := range strings.Fields(names) {
			name, pool := strings.CutSuffix(name, "*")
			all = append(all, grant{pool: pool, name: name, id: name + key})
			if p := (nodeconf.Peer{Name: name}); pool {
				peers.Pools = append(peers.Pools, p)
			} else {
				peers.Nodes = append(peers.Nodes, p)
			}
		}
		return all, peers
	}
	var r record
	for _, step := range []struct {
		name, key, listed string
		generation        int
		serial            int
		want, left        string
	}{
		{"the first", "1", "a b w*", 1, 1, "+a1 +b1 +w1", ""},
		{"the same again", "1", "a b w*", 1, 1, "", ""},
		{"one of a new name", "1", "a b c w*", 1, 2, "+c1", ""},
		{"a master that has not heard of it", "1", "a b w*", 1, 1, "", ""},
		{"one takes another's place, a node has the name of a pool", "1", "a d w", 1, 3, "+d1 +w1 -b1 -c1 -w1", "node:b node:c pool:w"},
		{"a master that has not heard of it, again", "1", "a b c w*", 1, 2, "", "node:b node:c pool:w"},
		{"the old name comes back", "1", "a b d w", 1, 4, "+b1", "node:c pool:w"},
		{"a new join key", "2", "a b d w", 1, 4, "+a2 +b2 +d2 +w2 -a1 -b1 -d1 -w1", "node:c pool:w"},
		{"a master that has the old one", "1", "a b d w", 1, 4, "", "node:c pool:w"},
		{"a new generation", "2", "a", 2, 1, "-b1 -b2 -d1 -d2 -w1 -w2", "node:b node:c node:d node:w pool:w"},
		{"that of the old one", "2", "a b d w", 1, 9, "", "node:b node:c node:d node:w pool:w"},
	} {
		key = step.key
		all, peers := grantsOf(step.listed)
		roster := nodeconf.Roster{Generation: step.generation, Serial: step.serial, Peers: peers}
		grants, revoked := r.due(all, roster)
		var got []string
		for _, g := range grants {
			got = append(got, "+"+g.id)
		}
		for _, entry := range revoked {
			_, _, id := parseEntry(entry)
			got = append(got, "-"+id)
		}
		slices.Sort(got)
		if d := cmp.Diff(step.want, strings.Join(got, " ")); d != "" {
			t.Errorf("%s: %s", step.name, d)
		}
		r.took(grants, roster)
		if d := cmp.Diff(step.left, strings.Join(r.left, " ")); d != "" {
			t.Errorf("%s: left: %s", step.name, d)
		}
		if again, _ := r.due(all, roster); len(again) > 0 {
			t.Errorf("%s: granted again: %v", step.name, again)
		}
	}
	if got := fmt.Sprint(r.roster, r.tokens); got != "2.1[node:a:a1 node:a:a2]" {
		t.Errorf("got %s", got)
	}
}
