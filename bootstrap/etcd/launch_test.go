package etcd

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestCommandLines(t *testing.T) {
	cfg := Config{Name: "a", Address: "10.0.0.1", State: "/var/lib/kimage/state", PKI: "/etc/kimage/pki", Heartbeat: defaultHeartbeat, Election: defaultElection}
	rec := Record{ClusterUID: "uid", Generation: 1, Roster: "digest", Members: []Founder{{"a", "https://10.0.0.1:2380", "i1"}, {"b", "https://10.0.0.2:2380", "i2"}}}
	seeded := rec
	seeded.Seed = "abc"
	six := cfg
	six.Address, six.Heartbeat = "fd00::1", 100*time.Millisecond
	own := Facts{Incarnation: Incarnation{ID: "i1"}}
	joins := own
	joins.Cluster = Cluster{Incarnation: "i1", Joining: "b=https://10.0.0.2:2380,a=https://10.0.0.1:2380"}
	got := strings.Join([]string{
		"etcd:", strings.Join(cfg.launch(own, nodeconf.Roster{}, "https://10.0.0.1:2380").Argv, "\n"),
		"etcd, IPv6:", strings.Join(six.launch(own, nodeconf.Roster{}, "https://[fd00::1]:2380").Argv, "\n"),
		"etcd that joins:", strings.Join(cfg.launch(joins, nodeconf.Roster{}, "https://10.0.0.1:2380").Argv, "\n"),
		"etcdutl:", strings.Join(restoreArgs(rec, "a", "SEED", "DIR"), "\n"),
		"etcdutl with a snapshot:", strings.Join(restoreArgs(seeded, "b", "SEED", "DIR"), "\n"), ""}, "\n")
	const file = "testdata/commandlines.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (rewrite it with -update):\n%s", file, got)
	}
}

// TestEmptySeed: the same bytes each time, small.
func TestEmptySeed(t *testing.T) {
	var all [2]string
	for i := range all {
		p := t.TempDir() + "/seed"
		if err := writeEmptySeed(p); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = string(data)
	}
	if all[0] != all[1] || len(all[0]) > 64<<10 {
		t.Errorf("%d and %d bytes, equal: %t", len(all[0]), len(all[1]), all[0] == all[1])
	}
}

func TestCheckSeed(t *testing.T) {
	p := t.TempDir() + "/seed"
	if err := checkSeed(p, "x"); err == nil || !strings.Contains(err.Error(), "copy it to") {
		t.Errorf("missing: %v", err)
	}
	if err := os.WriteFile(p, []byte("snapshot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkSeed(p, "16d2fb1bb3e2d2d8e4ab1ab6d7c67ab1f0b79e2dbf1f7ef0b1b8a7fd7cd3a2ce"); err == nil || !strings.Contains(err.Error(), "is not the snapshot") {
		t.Errorf("another: %v", err)
	}
}

func TestTiming(t *testing.T) {
	members := func(n int) nodeconf.Roster { return nodeconf.Roster{Members: make([]nodeconf.Member, n)} }
	for n, want := range map[int]time.Duration{0: defaultElection, 1: time.Second, 3: defaultElection} {
		if heartbeat, election := timing(members(n)); election != want || election != 10*heartbeat {
			t.Errorf("%d members: %s, %s", n, heartbeat, election)
		}
	}
}
