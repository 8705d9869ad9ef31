package bootstrap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/pki"
)

// seenCluster is what first boot gives the machines of a test.
type seenCluster struct {
	*testing.T
	operator
	net     string // of loopback addresses that nobody else uses
	ca      pki.Pair
	etcdCA  pki.Pair
	joinKey []byte
}

// seenMachine is an agent without the parts that change a machine.
type seenMachine struct {
	*Agent
	dir string
}

func newSeenCluster(t *testing.T) *seenCluster {
	c := &seenCluster{T: t, operator: newOperator(), net: fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(255)), joinKey: []byte("join key")}
	var err error
	if c.ca, err = pki.NewCA("cluster", "kimage", "ECDSA-P256", time.Now()); err != nil {
		t.Fatal(err)
	}
	if c.etcdCA, err = pki.NewCA("etcd", "kimage", "ECDSA-P256", time.Now()); err != nil {
		t.Fatal(err)
	}
	c.peers = nodeconf.Peers{Nodes: []nodeconf.Peer{{Name: "m1", Roles: []string{"master"}, Addresses: []string{c.net + "1"}}, {Name: "w1", Roles: []string{"worker"}}, {Name: "w2", Roles: []string{"worker"}}},
		Pools: []nodeconf.Peer{{Name: "crowd", Roles: []string{"worker"}, Size: 1}}}
	return c
}

// machine writes what first boot would, with the roster of that serial.
func (c *seenCluster) machine(name, pool, role string, serial int, ca pki.Pair) *seenMachine {
	c.Helper()
	m := &seenMachine{dir: c.TempDir()}
	files := map[string][]byte{"ca.crt": ca.Cert}
	switch {
	case role == "etcd":
		leaf, err := c.etcdCA.Issue(pki.Request{CommonName: "kimage-agent:" + name, Client: true}, "ECDSA-P256", time.Now())
		if err != nil {
			c.Fatal(err)
		}
		files["etcd-agent.crt"], files["etcd-agent.key"] = leaf.Cert, leaf.Key
	case pool != "":
		files["token"] = []byte(nodeconf.Token(c.joinKey, true, pool) + "\n")
	default:
		files["token"] = []byte(nodeconf.Token(c.joinKey, false, name) + "\n")
	}
	conf := nodeconf.Config{Cluster: c.cluster, Node: nodeconf.Node{Name: name, Pool: pool, Roles: []string{role}}}
	if role == "master" {
		files["ca.key"], files["etcd-ca.crt"], files["join.key"] = ca.Key, c.etcdCA.Cert, append(c.joinKey, '\n')
		conf.Node.Addresses = []string{c.net + "1"}
	}
	for file, data := range files {
		if err := os.WriteFile(filepath.Join(m.dir, file), data, 0o600); err != nil {
			c.Fatal(err)
		}
	}
	logf := func(format string, args ...any) { c.Logf(name+": "+format, args...) }
	rosters := newRosters(c.cluster, logf)
	rosters.files = []string{filepath.Join(m.dir, "told.json"), filepath.Join(m.dir, "state", "kept.json")}
	rosters.mayWrite = func() error { return nil }
	writeJSON(c.T, rosters.files[0], c.roster(c.T, serial, nodeconf.Master{Name: "m1", Address: c.net + "1"}))
	m.Agent = &Agent{conf: conf, name: name, image: Manifest{ImageID: "0123456789ab"}, logf: logf, rosters: rosters, shows: make(chan struct{}, 1),
		phase: &phases{node: name, logf: logf, now: time.Now, file: filepath.Join(m.dir, "phase.json")}}
	return m
}

// has is the roster that a master is known to have.
func (m *seenMachine) has(master string) (digest string) {
	m.agreed.Range(func(to, d any) bool {
		if to.(nodeconf.Master).Name == master {
			digest = d.(string)
		}
		return true
	})
	return digest
}

func (m *seenMachine) tell(t *testing.T) {
	t.Helper()
	client, err := m.reportClient(filepath.Join(m.dir, "token"), m.dir)
	if err != nil {
		t.Fatal(err)
	}
	m.reportAll(t.Context(), client)
}

// TestReports has every kind of machine report to a master, and asks the
// master as a person would.
func TestReports(t *testing.T) {
	c := newSeenCluster(t)
	m1 := c.machine("m1", "", "master", 3, c.ca)
	m1.store = m1.newStore()
	socket := filepath.Join(m1.dir, "run", "cluster.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m1.hearReports(ctx, m1.dir, socket) }()
	defer func() { cancel(); <-ended }()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := askCluster(t.Context(), socket); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	// Nothing tells when the other port is open: whoever is refused comes again.
	hear := func(m *seenMachine, name string) report.Machine {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			m.tell(t)
			all, err := askCluster(t.Context(), socket)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range all.Machines {
				if x.Name == name && (x.Heard != nil || time.Now().After(end)) {
					return x
				}
			}
		}
	}
	w1 := c.machine("w1", "", "worker", 2, c.ca)
	w1.phase.set(partKube, PhaseJoin, "an API server answers")
	w1.phase.because("disk full")
	if x := hear(w1, "w1"); x.Report == nil || x.Report.Phase != PhaseJoin || x.Report.Why != "disk full; an API server answers" || x.Report.ImageID != "0123456789ab" || x.Silent {
		t.Errorf("got %+v", x)
	}
	if w1.rosters.highest().Serial != 3 || !exists(w1.rosters.files[1]) {
		t.Error("a worker did not get the master's newer roster")
	}
	e1 := c.machine("e1", "", "etcd", 4, c.ca)
	if x := hear(e1, "e1"); x.Report == nil || x.Pool != "" {
		t.Errorf("got %+v", x)
	}
	if m1.rosters.highest().Serial != 4 {
		t.Error("a master did not get an etcd member's newer roster")
	}
	w1.tell(t)
	if w1.rosters.highest().Serial != 4 {
		t.Error("the master did not pass the roster on")
	}
	if w1.tell(t); w1.has("m1") != w1.rosters.highest().Signed.Digest() {
		t.Error("the roster would be sent again and again to a master that has it")
	}
	// A machine whose name is new to the masters brings the roster that lists it.
	c.peers.Nodes = append(slices.Clone(c.peers.Nodes), nodeconf.Peer{Name: "w3", Roles: []string{"worker"}})
	w3 := c.machine("w3", "", "worker", 5, c.ca)
	if x := hear(w3, "w3"); x.Report == nil || !m1.rosters.highest().Peers.Has(false, "w3") {
		t.Errorf("got %+v", x)
	}
	// With the certificate of another cluster's CA nobody is heard, and says why.
	other, err := pki.NewCA("other", "kimage", "ECDSA-P256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w2 := c.machine("w2", "", "worker", 2, other)
	w2.tell(t)
	if got := strings.Join(w2.seen.refusals(), ""); !strings.HasPrefix(got, "m1: its certificate is of another cluster's authority") {
		t.Errorf("got %q", got)
	}
	all, err := askCluster(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	var never []string
	for _, x := range all.Machines {
		if x.Heard == nil {
			never = append(never, x.Name)
		}
	}
	if strings.Join(never, " ") != "m1 w2" || all.OK || len(all.Pools) != 1 || all.Pools[0].Heard != 0 {
		t.Errorf("never heard of: %v, and %+v", never, all)
	}
	// When all are well, the cluster is.
	m1.phase.set(partKube, PhaseReady, "")
	w2 = c.machine("w2", "", "worker", 2, c.ca)
	p1 := c.machine("crowd-0123456789", "crowd", "worker", 2, c.ca)
	e1.phase.set(partEtcd, PhaseReady, "")
	w1.phase.because("")
	for _, m := range []*seenMachine{m1, w1, w2, w3, p1, e1} {
		m.phase.set(partKube, PhaseReady, "")
		m.tell(t)
	}
	if all, err := askCluster(t.Context(), socket); err != nil || !all.OK || len(all.Machines) != 6 {
		t.Errorf("got %+v, %v", all, err)
	}
}

// TestClockOf: an etcd member's answer tells its clock, whatever it is.
func TestClockOf(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	transport := func(now time.Time) *http.Transport {
		return &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Time: func() time.Time { return now }}}
	}
	if c := clockOf(t.Context(), "e1", server.URL, transport(time.Now())); c == nil || c.Ahead.Round(time.Minute) != time.Hour || c.Unknown {
		t.Errorf("got %+v", c)
	}
	if c := clockOf(t.Context(), "e1", server.URL, transport(time.Now().AddDate(200, 0, 0))); c == nil || !c.Unknown {
		t.Errorf("got %+v", c)
	}
	url := server.URL
	server.Close()
	if c := clockOf(t.Context(), "e1", url, transport(time.Now())); c != nil {
		t.Errorf("got %+v", c)
	}
}
