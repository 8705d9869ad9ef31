package report

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

func TestKnownMachines(t *testing.T) {
	peers := nodeconf.Peers{Nodes: []nodeconf.Peer{{Name: "m1", Roles: []string{"etcd", "master"}, Addresses: []string{"10.0.0.1"}}, {Name: "w1", Roles: []string{"worker"}}},
		Pools: []nodeconf.Peer{{Name: "crowd", Roles: []string{"worker"}, Size: 7}}}
	r := nodeconf.Roster{Members: []nodeconf.Member{{Name: "e1", PeerURL: "https://10.0.0.9:2380"}, {Name: "m1", PeerURL: "https://10.0.0.1:2380"}},
		Masters: []nodeconf.Master{{Name: "m1", Address: "10.0.0.1"}, {Name: "m2", Address: "10.0.0.2"}}, Peers: peers}
	want := []Known{
		{Name: "m1", Roles: []string{"etcd", "master"}, Addresses: []string{"10.0.0.1"}},
		{Name: "w1", Roles: []string{"worker"}},
		{Name: "e1", Roles: []string{"etcd"}, Addresses: []string{"10.0.0.9"}},
		{Name: "m2", Roles: []string{"master"}, Addresses: []string{"10.0.0.2"}},
		{Name: "crowd", Pool: true, Roles: []string{"worker"}, Size: 7},
	}
	if diff := cmp.Diff(want, KnownMachines(r)); diff != "" {
		t.Error(diff)
	}
}

func TestList(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	known := []Known{{Name: "m1"}, {Name: "w1"}, {Name: "crowd", Pool: true, Size: 2}}
	s := &Store{Known: func() []Known { return known }, Now: func() time.Time { return now }, Ready: "ready"}
	list := func() (out []string, ok bool) {
		machines, pools, ok := s.List()
		for _, m := range machines {
			phase := "never"
			if m.Report != nil {
				phase = m.Report.Phase
			}
			out = append(out, fmt.Sprintf("%s %s silent:%t", m.Name, phase, m.Silent))
		}
		return append(out, fmt.Sprintf("%d of %d", pools[0].Heard, pools[0].Size)), ok
	}
	check := func(wantOK bool, want ...string) {
		t.Helper()
		got, ok := list()
		if diff := cmp.Diff(want, got); diff != "" || ok != wantOK {
			t.Errorf("ok: %t\n%s", ok, diff)
		}
	}
	put := func(pool, name, phase string) {
		t.Helper()
		if err := s.Put(pool, "10.0.0.1", Report{Name: name, Phase: phase}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
	}
	check(false, "m1 never silent:true", "w1 never silent:true", "0 of 2")
	put("", "m1", "ready")
	put("", "w1", "stopped")
	put("crowd", "crowd-1", "ready")
	check(false, "m1 ready silent:false", "w1 stopped silent:false", "crowd-1 ready silent:false", "1 of 2")
	put("", "w1", "ready")
	put("crowd", "crowd-2", "ready")
	check(true, "m1 ready silent:false", "w1 ready silent:false", "crowd-1 ready silent:false", "crowd-2 ready silent:false", "2 of 2")
	now = now.Add(SilentAfter)
	check(false, "m1 ready silent:true", "w1 ready silent:true", "crowd-1 ready silent:true", "crowd-2 ready silent:true", "0 of 2")
	// One token cannot fill the memory.
	for i := range 100 {
		put("crowd", fmt.Sprintf("crowd-x%d", i), "ready")
	}
	if machines, _, _ := s.List(); len(machines) != 2+2*2+8 {
		t.Errorf("%d machines are kept", len(machines))
	}
	// A pool's machine with a node's name is not the node.
	known = append(known, Known{Name: "crowd-x99"})
	if machines, _, _ := s.List(); machines[0].Name != "crowd-x99" || machines[0].Report != nil {
		t.Errorf("got %+v", machines[0])
	}
}

func TestClean(t *testing.T) {
	got := Report{Name: "w1", Why: "a\x1b[2J\nb\u202e" + strings.Repeat("é", maxWhy), Addresses: make([]string, 100)}.clean()
	if !strings.HasPrefix(got.Why, "a?[2J b?é") || len(got.Why) > maxWhy || len(got.Addresses) != maxAddresses {
		t.Errorf("got %q, %d addresses", got.Why[:20], len(got.Addresses))
	}
}
