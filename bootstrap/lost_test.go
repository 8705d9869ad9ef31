package bootstrap

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/report"
)

// freePort is a port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// TestLostWorkers: workers that were off while their only master was replaced by one
// of another name and address are brought the new roster, one at the address of the
// cluster file, one at its Node's, and report to the new master.
func TestLostWorkers(t *testing.T) {
	c := newSeenCluster(t)
	c.peers.Nodes[1].Addresses = []string{c.net + "11"}
	m1 := c.machine("m1", "", "master", 9, c.ca)
	m1.store = m1.newStore()
	m1.unready = func(context.Context) (map[string][]string, error) {
		return map[string][]string{"crowd-7": {c.net + "12"}, "m1": {c.net + "13"}}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m1.hearReports(ctx, m1.dir, filepath.Join(m1.dir, "cluster.sock")) }()
	defer func() { cancel(); <-ended }()

	port := freePort(t)
	for _, w := range []*seenMachine{c.machine("w1", "", "worker", 2, c.ca), c.machine("crowd-7", "crowd", "worker", 2, c.ca)} {
		writeJSON(t, w.rosters.files[0], c.roster(t, 2, nodeconf.Master{Name: "m0", Address: c.net + "9"}))
		client, err := w.reportClient(filepath.Join(w.dir, "token"), w.dir)
		if err != nil {
			t.Fatal(err)
		}
		e := w.newEar()
		e.after = 0
		e.listen = func(ctx context.Context) error {
			return report.Receive(ctx, port, func(s nodeconf.SignedRoster, from string) { w.rosters.take(s, from) })
		}
		for range 2 {
			answered := w.reportAll(ctx, client)
			if e.heard(ctx, answered); answered {
				t.Fatal("a master that is gone has answered")
			}
		}
		if e.stop == nil {
			t.Fatalf("%s does not listen", w.name)
		}
		for end := time.Now().Add(10 * time.Second); w.rosters.highest().Serial != 9 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			m1.deliverRoster(ctx, port)
		}
		answered := false
		for end := time.Now().Add(10 * time.Second); !answered && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			answered = w.reportAll(ctx, client)
		}
		if !answered {
			t.Errorf("%s does not find the new master: its roster is %+v", w.name, w.rosters.highest().Roster)
		}
		if e.heard(ctx, answered); e.stop != nil {
			t.Errorf("%s still listens", w.name)
		}
		if err := report.Deliver(ctx, c.net+"11", port, w.rosters.highest().Signed); err == nil {
			t.Errorf("%s still takes rosters", w.name)
		}
	}
	if lost := m1.silent(ctx); lost["w1"] != nil || lost["crowd-7"] != nil || lost["m1"] != nil {
		t.Errorf("looked for although they report, or are masters: %v", lost)
	}
}

// TestForgedRoster: what strangers deliver changes nothing.
func TestForgedRoster(t *testing.T) {
	c := newSeenCluster(t)
	w := c.machine("w1", "", "worker", 2, c.ca)
	ctx, cancel := context.WithCancel(t.Context())
	port, ended := freePort(t), make(chan error, 1)
	go func() {
		ended <- report.Receive(ctx, port, func(s nodeconf.SignedRoster, from string) { w.rosters.take(s, from) })
	}()
	forged := c.operator
	forged.key = ed25519.NewKeyFromSeed([]byte(strings.Repeat("f", ed25519.SeedSize)))
	for _, signed := range []nodeconf.SignedRoster{
		forged.roster(t, 9, nodeconf.Master{Name: "evil", Address: c.net + "66"}),
		c.roster(t, 1, nodeconf.Master{Name: "old", Address: c.net + "66"}),
		{},
	} {
		err := errors.New("not yet")
		for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			err = report.Deliver(ctx, "127.0.0.1", port, signed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if r := w.rosters.highest(); r.Serial != 2 || r.Masters[0].Name != "m1" || exists(w.rosters.files[1]) {
		t.Errorf("it took %+v", r.Roster)
	}
}
