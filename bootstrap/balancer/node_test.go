package balancer

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/pki"
)

const uid = "0b6e"

// machine is a node's directories, and its operator's roster key.
type machine struct {
	conf, state string
	key         ed25519.PrivateKey
}

func newMachine(t *testing.T, ca pki.Pair, roles ...string) machine {
	t.Helper()
	dir := t.TempDir()
	m := machine{filepath.Join(dir, "etc"), filepath.Join(dir, "state"), ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	config := nodeconf.Config{APIVersion: nodeconf.APIVersion, Kind: nodeconf.Kind,
		Cluster: nodeconf.Cluster{Name: "demo", UID: uid, RosterKey: base64.StdEncoding.EncodeToString(m.key.Public().(ed25519.PublicKey))},
		Node:    nodeconf.Node{Name: "m2", Roles: roles}}
	data, err := config.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, filepath.Join(m.conf, "node.json"), data)
	client := issue(t, ca, pki.Request{CommonName: "kube-apiserver-etcd-client", Client: true})
	for name, data := range map[string][]byte{"ca.crt": ca.Cert, "etcd-ca.crt": ca.Cert, "apiserver-etcd-client.crt": client.Cert, "apiserver-etcd-client.key": client.Key} {
		m.write(t, filepath.Join(m.conf, "pki", name), data)
	}
	return m
}

func (m machine) write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// roster writes one whose masters and members are m1, m2 ... at addresses.
func (m machine) roster(t *testing.T, dir string, serial int, key ed25519.PrivateKey, addresses ...string) {
	t.Helper()
	r := nodeconf.Roster{ClusterUID: uid, Generation: 1, Serial: serial, Founding: []string{"m1"}}
	for i, a := range addresses {
		name := "m" + string(rune('1'+i))
		r.Masters = append(r.Masters, nodeconf.Master{Name: name, Address: a})
		r.Members = append(r.Members, nodeconf.Member{Name: name, PeerURL: "https://" + net.JoinHostPort(a, "2380")})
	}
	s, err := r.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, filepath.Join(dir, "roster.json"), data)
}

func (m machine) start(t *testing.T) *Node {
	t.Helper()
	n, err := NewNode(NodeConfig{Conf: m.conf, State: m.state, APIListen: "127.0.0.1:0", EtcdListen: "127.0.0.1:0", Logf: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	if n == nil {
		return nil
	}
	ended := make(chan error)
	go func() { ended <- n.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return n
}

func (b *Balancer) listed() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, be := range b.backends {
		if be.state.listed {
			out = append(out, be.addr)
		}
	}
	slices.Sort(out)
	return out
}

func lists(t *testing.T, b *Balancer, want ...string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		got := b.listed()
		if slices.Equal(got, want) {
			return
		}
		if time.Since(began) > pollEvery+time.Second {
			t.Fatalf("backends are %v, want %v", got, want)
		}
	}
}

// TestEtcdBackends: who left the roster votes until its place is taken.
func TestEtcdBackends(t *testing.T) {
	member := func(name, host string) nodeconf.Member {
		return nodeconf.Member{Name: name, PeerURL: "https://" + net.JoinHostPort(host, "2380")}
	}
	r := nodeconf.Roster{Members: []nodeconf.Member{member("d", "10.0.0.4"), member("e", "10.0.0.2")}, Left: []nodeconf.Member{member("a", "10.0.0.1"), member("b", "10.0.0.2")}}
	if got := etcdBackends(r); !slices.Equal(got, []string{"10.0.0.4:2379", "10.0.0.2:2379", "10.0.0.1:2379"}) {
		t.Errorf("got %v", got)
	}
}

func TestBackendsFollowTheFiles(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	m := newMachine(t, ca, "etcd", "master")
	m.roster(t, m.conf, 3, m.key, "127.0.3.1", "127.0.3.2")
	n := m.start(t)
	lists(t, n.api.Balancer, "127.0.3.1:6443", "127.0.3.2:6443")
	lists(t, n.etcd.Balancer, "127.0.3.1:2379", "127.0.3.2:2379")
	if got := n.etcd.config.First; got != "127.0.3.2:2379" {
		t.Errorf("first member is %q", got)
	}

	if err := WriteAPIServers(m.state, uid, []string{"127.0.3.4:6443", "127.0.3.2:6443", "127.0.3.4:6443"}); err != nil {
		t.Fatal(err)
	}
	lists(t, n.api.Balancer, "127.0.3.1:6443", "127.0.3.2:6443", "127.0.3.4:6443")

	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	m.roster(t, m.state, 9, stranger, "127.0.3.9") // forged
	m.write(t, filepath.Join(m.state, APIServersFile), []byte(`{"clusterUID":"other","addresses":["127.0.3.9:6443"]}`))
	lists(t, n.api.Balancer, "127.0.3.1:6443", "127.0.3.2:6443")

	m.roster(t, m.state, 4, m.key, "127.0.3.1", "127.0.3.2", "127.0.3.3")
	lists(t, n.etcd.Balancer, "127.0.3.1:2379", "127.0.3.2:2379", "127.0.3.3:2379")
	m.roster(t, m.state, 2, m.key, "127.0.3.8") // lower
	m.write(t, filepath.Join(m.conf, "pki", "ca.crt"), []byte("damaged"))
	time.Sleep(pollEvery + 200*time.Millisecond)
	lists(t, n.api.Balancer, "127.0.3.1:6443", "127.0.3.2:6443", "127.0.3.3:6443")
}

// TestAfterARestartTheStateCounts: the config may be years old.
func TestAfterARestartTheStateCounts(t *testing.T) {
	ca := newCA(t)
	m := newMachine(t, ca, "worker")
	m.roster(t, m.conf, 1, m.key, "127.0.3.1")
	m.roster(t, m.state, 7, m.key, "127.0.3.5")
	if err := WriteAPIServers(m.state, uid, []string{"127.0.3.6:6443"}); err != nil {
		t.Fatal(err)
	}
	n := m.start(t)
	lists(t, n.api.Balancer, "127.0.3.5:6443", "127.0.3.6:6443")
	if n.etcd != nil {
		t.Error("a worker balances etcd")
	}
}

func TestWhatStopsTheStart(t *testing.T) {
	ca := newCA(t)
	for _, c := range []struct {
		name, want string
		damage     func(m machine)
	}{
		{"no node.json", "no such file", func(m machine) { os.Remove(filepath.Join(m.conf, "node.json")) }},
		{"no roster", "no such file", func(m machine) { os.Remove(filepath.Join(m.conf, "roster.json")) }},
		{"another operator's roster", "not signed by this cluster's operator", func(m machine) {
			_, stranger, _ := ed25519.GenerateKey(nil)
			m.roster(t, m.conf, 1, stranger, "127.0.3.1")
		}},
		{"no authority", "no such file", func(m machine) { os.Remove(filepath.Join(m.conf, "pki", "ca.crt")) }},
		{"no certificate for etcd", "no such file", func(m machine) { os.Remove(filepath.Join(m.conf, "pki", "apiserver-etcd-client.key")) }},
	} {
		m := newMachine(t, ca, "master")
		m.roster(t, m.conf, 1, m.key, "127.0.3.1")
		c.damage(m)
		_, err := NewNode(NodeConfig{Conf: m.conf, State: m.state, APIListen: "127.0.0.1:0", EtcdListen: "127.0.0.1:0"})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestNothingToBalance(t *testing.T) {
	m := newMachine(t, newCA(t), "etcd")
	if n := m.start(t); n != nil {
		t.Error("a machine of etcd alone balances")
	}
}

func TestWriteAPIServers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	write := func(addrs ...string) error { return WriteAPIServers(dir, uid, addrs) }
	if err := write("10.0.0.2:6443", "10.0.0.1:6443"); err != nil {
		t.Fatal(err)
	}
	before := fingerprintOf(filepath.Join(dir, APIServersFile))
	for _, same := range [][]string{{"10.0.0.1:6443", "10.0.0.2:6443"}, nil} {
		if err := write(same...); err != nil {
			t.Error(err)
		}
	}
	if fingerprintOf(filepath.Join(dir, APIServersFile)) != before {
		t.Error("an unchanged or empty list was written")
	}
	if write("master:6443") == nil {
		t.Error("a name was taken for an address")
	}
	if err := write("[fd00::1]:6443"); err != nil {
		t.Error(err)
	}
	if got, err := readAPIServers(filepath.Join(dir, APIServersFile), uid); err != nil || !slices.Equal(got, []string{"[fd00::1]:6443"}) {
		t.Errorf("got %v, %v", got, err)
	}
}
