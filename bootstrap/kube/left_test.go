package kube

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestSwept: of what left the roster the Nodes that have been off for long are
// deleted, and of nothing else.
func TestSwept(t *testing.T) {
	now := time.Now()
	node := func(text string) (n apiNode) { // NAME, NAME=STATUS@AGO; NAME!: made just now, does not say since when it is not Ready
		name, status, _ := strings.Cut(text, "=")
		n.Metadata.Name, n.Metadata.CreationTimestamp = name, now.Add(-time.Hour)
		if fresh, ok := strings.CutSuffix(name, "!"); ok {
			n.Metadata.Name, n.Metadata.CreationTimestamp = fresh, now
			n.Status.Conditions = []condition{{Type: "Ready", Status: "Unknown"}}
		}
		if status, since, ok := strings.Cut(status, "@"); ok {
			ago, err := time.ParseDuration(since)
			if err != nil {
				t.Fatal(err)
			}
			n.Status.Conditions = []condition{{Type: "MemoryPressure", Status: "True", Since: now.Add(-time.Hour)}, {Type: "Ready", Status: status, Since: now.Add(-ago)}}
		}
		return n
	}
	peers := nodeconf.Peers{Nodes: []nodeconf.Peer{{Name: "a"}}, Pools: []nodeconf.Peer{{Name: "green"}}}
	pooled := func(pool string) string { return pool + "-0123456789" }
	if !inPool(pooled("blue"), "c", "blue") {
		t.Fatal("that is no name of a pool's machine")
	}
	for _, c := range []struct {
		name, left, nodes, stale, gone string
	}{
		{"nothing left", "", "a=False@60m x=False@60m", "", ""},
		{"off for long", "node:b", "a=False@60m b=Unknown@10m", "b", ""},
		{"off for a while", "node:b", "b=Unknown@9m", "", ""},
		{"kubelet down", "node:b", "b=False@10m", "b", ""},
		{"it is Ready, and has been for long", "node:b", "b=True@60m", "", ""},
		{"never Ready", "node:b", "b", "b", ""},
		{"made just now", "node:b", "b!", "", ""},
		{"no Node any more", "node:b node:c", "c=True@1m", "", "node:b"},
		{"listed again", "node:a", "a=False@60m", "", "node:a"},
		{"of somebody else, whose name begins the same", "node:b", "bb=False@60m", "", "node:b"},
		{"a pool", "pool:blue", pooled("blue") + "=False@60m " + pooled("green") + "=False@60m blue=False@60m", pooled("blue"), ""},
		{"two", "node:b node:c", "b=False@60m c=False@60m", "b c", ""},
	} {
		var nodes []apiNode
		for _, text := range strings.Fields(c.nodes) {
			nodes = append(nodes, node(text))
		}
		stale, gone := swept(strings.Fields(c.left), nodes, "c", peers, now)
		var names []string
		for _, n := range stale {
			names = append(names, n.Metadata.Name)
		}
		slices.Sort(names)
		if d := cmp.Diff([]string{c.stale, c.gone}, []string{strings.Join(names, " "), strings.Join(gone, " ")}); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}
