package kube

import (
	"net"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

func TestAwaits(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name   string
		change func(*State)
		want   string
	}{
		{"etcd", func(s *State) { s.Etcd = Unknown }, AwaitsEtcd},
		{"runtime", func(s *State) { s.Runtime, s.Etcd = false, Unknown }, AwaitsRuntime},
		{"after a failure", func(s *State) { s.Failures, s.FailedAt, s.Etcd = 1, now, Unknown }, AwaitsRetry},
		{"another master starts", func(s *State) { s.API = APIStarting }, AwaitsOthers},
		{"silence", func(s *State) {}, AwaitsOthers},
		{"token", func(s *State) { s.API, s.Token = APIReady, No }, AwaitsOthers},
		{"nothing: it joins", func(s *State) { s.API, s.Token, s.NodeReady = APIReady, Yes, No }, AwaitsNothing},
		{"nothing: it initialises", func(s *State) { s.APIRefused = true }, AwaitsNothing},
		{"nothing: it has joined", func(s *State) { s.Done, s.Certificate.Until = &Done{}, now.Add(time.Hour) }, AwaitsNothing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := State{Now: now, Name: "m1", Master: true, Runtime: true, APISince: now, Etcd: Yes, Initialised: No}
			tt.change(&s)
			if got := s.Awaits(Decide(s)); got != tt.want {
				t.Errorf("got %q, want %q (%+v)", got, tt.want, Decide(s))
			}
		})
	}
}

// TestProbeRefused: only a machine that refuses has no API server; one that
// accepts and says nothing may yet have one.
func TestProbeRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.78:"+apiPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	self, closed, open := nodeconf.Master{Name: "k8s-01", Address: "127.0.0.76"}, nodeconf.Master{Name: "m2", Address: "127.0.0.77"}, nodeconf.Master{Name: "m3", Address: "127.0.0.78"}
	for _, tt := range []struct {
		name    string
		masters []nodeconf.Master
		want    bool
	}{
		{"no roster", nil, false},
		{"no other", []nodeconf.Master{self}, true},
		{"all refuse", []nodeconf.Master{self, closed}, true},
		{"one accepts", []nodeconf.Master{self, closed, open}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			firstBoot(t, root)
			n := newNode(t, Config{Node: single(), Root: root, API: "127.0.0.79:" + apiPort, Roster: func() nodeconf.Roster { return nodeconf.Roster{Masters: tt.masters} }})
			api, refused, detail := n.probeAPI(t.Context(), true)
			if api != APISilent || refused != tt.want {
				t.Errorf("got %d, %t (%s)", api, refused, detail)
			}
		})
	}
}
