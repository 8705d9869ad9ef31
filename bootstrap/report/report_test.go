package report

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/pki"
)

const uid = "uid-1"

var joinKey = []byte("the join key of a test")

// fixture is a master's agent that really listens, and the authorities.
type fixture struct {
	*testing.T
	ca, etcdCA pki.Pair
	store      *Store
	port       int
	offered    []nodeconf.SignedRoster
	roster     SignedAndOpen
}

func authority(t *testing.T, name string) pki.Pair {
	t.Helper()
	ca, err := pki.NewCA(name, "kimage", "ECDSA-P256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func signed(t *testing.T, serial int) SignedAndOpen {
	t.Helper()
	r := nodeconf.Roster{ClusterUID: uid, Generation: 1, Serial: serial, Founding: []string{"e1"}, Members: []nodeconf.Member{{Name: "e1", PeerURL: "https://127.0.0.2:2380"}},
		Masters: []nodeconf.Master{{Name: "m1", Address: "127.0.0.1"}},
		Peers: nodeconf.Peers{Nodes: []nodeconf.Peer{{Name: "m1", Roles: []string{"master"}, Addresses: []string{"127.0.0.1"}}, {Name: "w1", Roles: []string{"worker"}}},
			Pools: []nodeconf.Peer{{Name: "crowd", Roles: []string{"worker"}, Size: 2}}}}
	s, err := r.Sign(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return SignedAndOpen{s, r}
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{T: t, ca: authority(t, "cluster"), etcdCA: authority(t, "etcd"), roster: signed(t, 2)}
	f.store = &Store{Known: func() []Known { return KnownMachines(f.roster.Roster) }, Now: time.Now, Ready: "ready"}
	f.port = f.serve(f.ca, "m1")
	return f
}

// serve runs a master's side and returns its port.
func (f *fixture) serve(ca pki.Pair, name string) int {
	s, err := NewServer(ServerConfig{Name: name, Addresses: []string{"127.0.0.1"}, ClusterUID: uid, CA: ca, EtcdCA: f.etcdCA.Cert, JoinKey: joinKey, Store: f.store,
		Roster: func() SignedAndOpen { return f.roster }, Offer: func(s nodeconf.SignedRoster, _ string) { f.offered = append(f.offered, s) }, Now: time.Now, Logf: f.Logf})
	if err != nil {
		f.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, ln) }()
	f.Cleanup(func() { cancel(); <-ended })
	return ln.Addr().(*net.TCPAddr).Port
}

func (f *fixture) client(id Identity) *Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(f.ca.Cert)
	return &Client{Identity: id, CA: pool, Now: time.Now, Port: f.port}
}

// etcdCert is the certificate by which an agent is etcd's client.
func (f *fixture) etcdCert(ca pki.Pair, commonName string) *tls.Certificate {
	leaf, err := ca.Issue(pki.Request{CommonName: commonName, Client: true}, "ECDSA-P256", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	cert, err := tls.X509KeyPair(leaf.Cert, leaf.Key)
	if err != nil {
		f.Fatal(err)
	}
	return &cert
}

func node(name string) Identity {
	return Identity{Name: name, Token: nodeconf.Token(joinKey, false, name)}
}

func pooled(name string) Identity {
	return Identity{Name: name, Pool: "crowd", Token: nodeconf.Token(joinKey, true, "crowd")}
}

var master = nodeconf.Master{Name: "m1", Address: "127.0.0.1"}

func TestSend(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		name string
		as   Identity
		says string // the report's name; empty: its own
		uid  string
		now  func() time.Time
		want string // in the error; empty: it is heard
	}{
		{name: "a worker", as: node("w1")},
		{name: "a machine of a pool", as: pooled("crowd-0123456789")},
		{name: "an etcd member", as: Identity{Name: "e1", Cert: f.etcdCert(f.etcdCA, "kimage-agent:e1")}},
		{name: "a name that is not in the roster", as: node("w2"), want: "not in the newest list of machines"},
		{name: "another one's name", as: node("w1"), says: "m1", want: `"m1" is not w1`},
		{name: "another pool's name", as: pooled("crowd-0123456789"), says: "w1", want: "no machine of the pool"},
		{name: "a pool's token for a node", as: Identity{Name: "w1", Token: nodeconf.Token(joinKey, true, "w1")}, want: "does not know this machine's token"},
		{name: "another join key", as: Identity{Name: "w1", Token: nodeconf.Token([]byte("other"), false, "w1")}, want: "does not know this machine's token"},
		{name: "no proof", as: Identity{Name: "w1"}, want: "does not know this machine's token"},
		{name: "an API server's certificate", as: Identity{Name: "e1", Cert: f.etcdCert(f.etcdCA, "kube-apiserver-etcd-client")}, want: "no agent's"},
		{name: "another authority's certificate", as: Identity{Name: "e1", Cert: f.etcdCert(authority(t, "x"), "kimage-agent:e1")}, want: "remote error"},
		{name: "another cluster", as: node("w1"), uid: "uid-2", want: "this is cluster uid-1"},
		{name: "a clock far ahead", as: node("w1"), now: func() time.Time { return time.Now().AddDate(30, 0, 0) }, want: "expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := f.client(c.as)
			if c.now != nil {
				client.Now = c.now
			}
			m := Message{ClusterUID: uid, Report: Report{Name: c.as.Name, Phase: "waiting", Why: c.name, Time: client.Now()}}
			if c.says != "" {
				m.Report.Name = c.says
			}
			if c.uid != "" {
				m.ClusterUID = c.uid
			}
			_, _, err := client.Send(t.Context(), master, m)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			machines, _, _ := f.store.List()
			for _, m := range machines {
				if heard := m.Report != nil && m.Report.Why == c.name; heard != (c.want == "" && m.Name == c.as.Name) {
					t.Errorf("%s: heard: %t", m.Name, heard)
				}
			}
		})
	}
}

// TestOperator: who has the join key may ask what a master heard, and send nothing;
// machines may send, and not ask.
func TestOperator(t *testing.T) {
	f := newFixture(t)
	f.store.Master = "m1"
	operator := Identity{Operator: true, Token: nodeconf.OperatorToken(joinKey)}
	if _, _, err := f.client(node("w1")).Send(t.Context(), master, Message{ClusterUID: uid, Report: Report{Name: "w1", Phase: "waiting"}}); err != nil {
		t.Fatal(err)
	}
	c, err := f.client(operator).Cluster(t.Context(), master)
	if err != nil || c.Master != "m1" || c.OK || len(c.Machines) != 3 || c.Machines[2].Report == nil || c.Machines[2].Report.Phase != "waiting" {
		t.Fatalf("the operator gets %+v, %v", c, err)
	}
	for name, as := range map[string]Identity{
		"a machine":                          node("w1"),
		"another cluster's operator":         {Operator: true, Token: nodeconf.OperatorToken([]byte("other"))},
		"a machine that calls itself one":    {Operator: true, Token: nodeconf.Token(joinKey, false, "operator")},
		"an etcd member, by its certificate": {Name: "e1", Cert: f.etcdCert(f.etcdCA, "kimage-agent:e1")},
		"nobody":                             {},
	} {
		if _, err := f.client(as).Cluster(t.Context(), master); err == nil {
			t.Errorf("%s is told about all machines", name)
		} else if _, ok := errors.AsType[*Refused](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := f.client(operator).Send(t.Context(), master, Message{ClusterUID: uid, Report: Report{Name: "w1"}}); err == nil || !strings.Contains(err.Error(), "no machine") {
		t.Errorf("the operator's report: %v", err)
	}
}

// TestFalseMaster: a machine proves nothing to who is not the master it means.
func TestFalseMaster(t *testing.T) {
	f := newFixture(t)
	c := f.client(node("w1"))
	m := Message{ClusterUID: uid, Report: Report{Name: "w1"}}
	other := f.serve(authority(t, "others"), "m1")
	for name, x := range map[string]struct {
		port int
		to   nodeconf.Master
		want string
	}{
		"another authority":         {other, master, "unknown authority"},
		"another master":            {f.port, nodeconf.Master{Name: "m2", Address: "127.0.0.1"}, "two machines have one address"},
		"a certificate for another": {f.port, nodeconf.Master{Name: "m1", Address: "127.0.0.3"}, "connection refused"},
	} {
		c.Port = x.port
		if _, _, err := c.Send(t.Context(), x.to, m); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: got %v, want %q", name, err, x.want)
		}
	}
	// A kubelet's serving certificate is of the same authority.
	leaf, err := f.ca.Issue(pki.Request{CommonName: "system:node:m1", Organization: []string{"system:nodes"}, Names: []string{"127.0.0.1"}, Server: true}, "ECDSA-P256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(leaf.Cert, leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan int, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		n, _ := conn.Read(make([]byte, 1))
		got <- n
	}()
	c.Port = ln.Addr().(*net.TCPAddr).Port
	if _, _, err := c.Send(t.Context(), master, m); err == nil || !strings.Contains(err.Error(), `is "system:node:m1"`) {
		t.Errorf("got %v", err)
	}
	if n := <-got; n > 0 {
		t.Error("a kubelet was told something")
	}
}

// TestProofIsOfOneConnection: what a machine showed on one connection, even to
// somebody who has the token's proof in hand, is worth nothing on another.
func TestProofIsOfOneConnection(t *testing.T) {
	f := newFixture(t)
	c := f.client(node("w1"))
	m := Message{ClusterUID: uid, Report: Report{Name: "w1", Phase: "ready"}}
	heard, err := c.dial(t.Context(), master)
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	req, err := c.request(heard, master, http.MethodPost, path, body)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.dial(t.Context(), master)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := req.Write(again); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(again), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %s", resp.Status)
	}
}

func TestRosterTravelsBothWays(t *testing.T) {
	f := newFixture(t)
	c := f.client(node("w1"))
	for _, x := range []struct {
		name string
		mine int
		want bool // an answer carries the master's
	}{{"the same", 2, false}, {"an older one", 1, true}, {"a newer one", 3, true}} {
		mine := signed(t, x.mine)
		f.offered = nil
		a, _, err := c.Send(t.Context(), master, Message{ClusterUID: uid, Report: Report{Name: "w1"}, Digest: mine.Signed.Digest(), Roster: &mine.Signed})
		if err != nil {
			t.Fatal(err)
		}
		if b, _, err := c.Send(t.Context(), master, Message{ClusterUID: uid, Report: Report{Name: "w1"}, Digest: mine.Signed.Digest()}); err != nil || (b.Roster == nil) != (a.Roster == nil) {
			t.Errorf("%s: told its digest alone, the master answers %v, %v", x.name, b.Roster, err)
		}
		if len(f.offered) != 1 || f.offered[0].Digest() != mine.Signed.Digest() {
			t.Errorf("%s: the master was offered %d rosters", x.name, len(f.offered))
		}
		if x.want != (a.Roster != nil) || a.Roster != nil && a.Roster.Digest() != f.roster.Signed.Digest() {
			t.Errorf("%s: the answer carries %v", x.name, a.Roster)
		}
	}
}

// TestClock: the answer tells how far the clocks are apart.
func TestClock(t *testing.T) {
	f := newFixture(t)
	c := f.client(node("w1"))
	c.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	_, ahead, err := c.Send(t.Context(), master, Message{ClusterUID: uid, Report: Report{Name: "w1", Time: c.Now()}})
	if err != nil || ahead.Round(time.Minute) != time.Hour {
		t.Errorf("got %s, %v", ahead, err)
	}
	machines, _, _ := f.store.List()
	for _, m := range machines {
		if m.Name == "w1" && (m.ClockAheadSeconds > -3590 || m.ClockAheadSeconds < -3610) {
			t.Errorf("the master thinks it is ahead by %d s", m.ClockAheadSeconds)
		}
	}
}

// TestStrangersAreBounded: who connects and says nothing does not keep others out for long.
func TestStrangersAreBounded(t *testing.T) {
	f := newFixture(t)
	for range maxConnections + 20 {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	started := time.Now()
	if _, _, err := f.client(node("w1")).Send(ctx, master, Message{ClusterUID: uid, Report: Report{Name: "w1"}}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took < 5*time.Second {
		t.Errorf("it was heard after %s: nothing was bounded", took)
	}
}
