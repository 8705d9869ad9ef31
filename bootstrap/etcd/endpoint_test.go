package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// identity makes a machine's files and reads them.
func identity(t *testing.T, a, trusted *authority, name string, now func() time.Time, floor time.Time) *trust {
	t.Helper()
	dir := t.TempDir()
	a.issue(t, filepath.Join(dir, nodeconf.EtcdPeer), name, "127.0.0.1")
	if err := os.WriteFile(filepath.Join(dir, nodeconf.PeerCA+".crt"), trusted.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	tr, err := loadTrust(dir, now, floor)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestEndpoint has other agents, and who is none, ask a over TLS.
func TestEndpoint(t *testing.T) {
	peers, others := newAuthority(t, "peers"), newAuthority(t, "others")
	floor := time.Now().Add(-time.Minute)
	s := newSim(t, 1, 3)
	s.addRoster(3, 1, 2)
	s.addRoster(4, 1, 3) // d is new
	m := s.machines[0]
	m.config = s.rosters[1]
	m.facts.Roster = &s.rosters[1]
	s.faults = false
	s.boot(m)
	if err := m.agent.member.renew(m.agent.member.observe()); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(m.agent.handler())
	server.TLS = identity(t, peers, peers, "a", time.Now, floor).config(x509.ExtKeyUsageClientAuth, func(string) error { return nil })
	server.StartTLS()
	defer server.Close()
	_, portText, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	port, err := net.LookupPort("tcp", portText)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		as     string
		of     *authority
		trusts *authority
		to     string
		uid    string
		roster int
		now    func() time.Time
		want   string // in the error; empty: an answer
	}{
		{name: "a member", as: "b"},
		{name: "a member of a newer roster only", as: "d", roster: 2},
		{name: "a member that has left the roster", as: "e"},
		{name: "another authority", as: "b", of: others, want: "remote error"},
		{name: "another authority at the server", as: "b", trusts: others, want: "unknown authority"},
		{name: "another machine at the address", as: "b", to: "c", want: "is a: two machines have one address"},
		{name: "another cluster", as: "b", uid: "uid2", want: "this is cluster uid"},
		{name: "a clock that was lost", as: "b", now: func() time.Time { return time.Unix(0, 0) }},
		{name: "a clock far ahead", as: "b", now: func() time.Time { return time.Now().AddDate(50, 0, 0) }, want: "expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			of, trusts, now, to, uid := peers, peers, time.Now, "a", "uid"
			if c.of != nil {
				of = c.of
			}
			if c.trusts != nil {
				trusts = c.trusts
			}
			if c.now != nil {
				now = c.now
			}
			if c.to != "" {
				to = c.to
			}
			if c.uid != "" {
				uid = c.uid
			}
			client := newClient(identity(t, of, trusts, c.as, now, floor), uid, port, 5*time.Second)
			st, err := client.ask(context.Background(), nodeconf.Member{Name: to, PeerURL: "https://127.0.0.1:2380"}, Question{ClusterUID: uid, Roster: s.rosters[c.roster]})
			switch {
			case c.want == "" && (err != nil || st.Name != "a" || st.Incarnation == "" || st.Digest != s.rosters[1].Digest()):
				t.Errorf("got %+v, %v", st, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		if resp, err := c.Post(server.URL+questionPath, "application/json", strings.NewReader("{}")); err == nil {
			t.Errorf("got %s", resp.Status)
		}
	})
	t.Run("the newest roster was kept", func(t *testing.T) {
		if a := Decide(m.agent.observe(t.Context())); a.Do != TakeRoster || a.Roster.Digest() != s.rosters[2].Digest() {
			t.Errorf("got %+v", a)
		}
	})
}

// TestEndIsNoticed: who asks a member whose etcd has ended ends its pause, but only
// once: members that wait would wake each other for ever.
func TestEndIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name    string
		last    Verb
		running bool
		want    bool
	}{
		{"it ended", Keep, false, true},
		{"it runs", Keep, true, false},
		{"it is being started", Start, false, false},
		{"it waits", Wait, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAgent(Config{Running: func(context.Context) (bool, error) { return c.running, nil }}, nil)
			a.last.Do = c.last
			a.live(t.Context(), &Status{Data: true}, false)
			if got := len(a.woken) > 0; got != c.want {
				t.Errorf("woken: %v", got)
			}
		})
	}
}
