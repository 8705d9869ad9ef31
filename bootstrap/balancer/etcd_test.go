package balancer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/gobuild"
	"github.com/kimage-project/kimage/pkg/pki"
)

const etcdVersion = "3.7.3"

// etcdProgram is etcd as the payload has it. Any bake from sources leaves one
// in the cache; without it the test is skipped, in CI it is built.
func etcdProgram(t *testing.T) string {
	t.Helper()
	store, err := cache.Open("", t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(store.Root, "entries/program/*/etcd"))
	for _, f := range found {
		if out, err := exec.Command(f, "--version").Output(); err == nil && strings.Contains(string(out), "etcd Version: "+etcdVersion+"\n") {
			return f
		}
	}
	if os.Getenv("CI") == "" {
		t.Skip("no etcd " + etcdVersion + " in the cache: kimage build --components source puts it there; CI=1 builds it")
	}
	build := gobuild.Build{Module: "go.etcd.io/etcd/server/v3", Version: "v" + etcdVersion, Package: "go.etcd.io/etcd/server/v3", Arch: runtime.GOARCH}
	entry, _, err := store.Dir(t.Context(), "program", cache.Key("etcd of the balancer's tests", etcdVersion, runtime.GOARCH),
		func(ctx context.Context, dir string) error {
			return build.Run(ctx, t.TempDir(), filepath.Join(dir, "etcd"), nil)
		})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(entry, "etcd")
}

// member is one etcd process. Its peers reach it through a relay.
type member struct {
	name, id, client, peer string
	args                   []string
	relay                  *relay
	cmd                    *exec.Cmd
}

// etcdCluster is real etcd on loopback addresses.
type etcdCluster struct {
	t       *testing.T
	program string
	dir     string
	ca      pki.Pair
	tls     *tls.Config
	members map[string]*member
}

func newEtcd(t *testing.T, names ...string) *etcdCluster {
	t.Helper()
	c := &etcdCluster{t: t, program: etcdProgram(t), dir: t.TempDir(), ca: newCA(t), members: map[string]*member{}}
	c.tls = trust(c.ca)
	pair := issue(t, c.ca, pki.Request{CommonName: "kube-apiserver-etcd-client", Client: true})
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	c.tls.Certificates = []tls.Certificate{cert}
	os.WriteFile(filepath.Join(c.dir, "ca.crt"), c.ca.Cert, 0o600)
	var initial []string
	for _, n := range names {
		initial = append(initial, n+"="+c.prepare(n).peer)
	}
	for _, n := range names {
		c.start(n, "new", initial)
	}
	for _, n := range names {
		waitFor(t, 20*time.Second, n+" serves", func() bool {
			var s struct {
				Header struct {
					MemberID string `json:"member_id"`
				}
			}
			err := c.post(c.members[n].client, "/v3/kv/range", `{"key":"YQ=="}`, &s)
			id, _ := strconv.ParseUint(s.Header.MemberID, 10, 64)
			c.members[n].id = strconv.FormatUint(id, 16)
			return err == nil
		})
	}
	return c
}

// prepare makes addresses, certificate and relay of a member, on 127.0.2.N.
func (c *etcdCluster) prepare(name string) *member {
	t := c.t
	t.Helper()
	ip := net.IPv4(127, 0, 2, byte(len(c.members)+1)).String()
	free := func() string {
		l, err := net.Listen("tcp", ip+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	m := &member{name: name, client: free(), peer: "http://" + l.Addr().String()}
	real := free()
	m.relay = startRelay(t, l, real, func(head []byte) string { // rafthttp names the sender
		_, after, _ := bytes.Cut(head, []byte("X-Server-From: "))
		id, _, _ := bytes.Cut(after, []byte("\r\n"))
		return string(id)
	})
	// Client: etcd's JSON gateway, which these tests speak, calls etcd with it.
	pair := issue(t, c.ca, pki.Request{CommonName: name, Names: []string{ip, "127.0.0.1"}, Server: true, Client: true})
	file := filepath.Join(c.dir, name)
	os.WriteFile(file+".crt", pair.Cert, 0o600)
	os.WriteFile(file+".key", pair.Key, 0o600)
	m.args = []string{"--name", name, "--data-dir", file + ".etcd",
		"--listen-client-urls", "https://" + m.client, "--advertise-client-urls", "https://" + m.client,
		"--listen-peer-urls", "http://" + real, "--initial-advertise-peer-urls", m.peer,
		"--cert-file", file + ".crt", "--key-file", file + ".key", "--client-cert-auth", "--trusted-ca-file", filepath.Join(c.dir, "ca.crt"),
		"--initial-cluster-token", t.Name(), "--log-outputs", file + ".log", "--unsafe-no-fsync"}
	c.members[name] = m
	return m
}

func (c *etcdCluster) start(name, state string, initial []string) {
	c.t.Helper()
	m := c.members[name]
	m.cmd = exec.Command(c.program, append(m.args, "--initial-cluster-state", state, "--initial-cluster", strings.Join(initial, ","))...)
	if err := m.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	cmd := m.cmd
	c.t.Cleanup(func() {
		cmd.Process.Kill() // also what is stopped
		cmd.Wait()
		if c.t.Failed() {
			log, _ := os.ReadFile(filepath.Join(c.dir, name+".log"))
			c.t.Logf("%s: %s", name, log[max(0, len(log)-1500):])
		}
	})
}

func (c *etcdCluster) signal(name string, s os.Signal) {
	c.t.Helper()
	if err := c.members[name].cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// cutOff takes a member away from its peers, not from its clients.
func (c *etcdCluster) cutOff(name string) {
	for n, m := range c.members {
		if n == name {
			m.relay.cutOff("")
		} else {
			m.relay.cutOff(c.members[name].id)
		}
	}
}

func (c *etcdCluster) heal() {
	for _, m := range c.members {
		m.relay.heal()
	}
}

// post asks etcd's JSON gateway at addr over a new connection.
func (c *etcdCluster) post(addr, path, body string, to any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "POST", "https://"+addr+path, strings.NewReader(body))
	tr := &http.Transport{TLSClientConfig: c.tls, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		return fmt.Errorf("%s %s: %v", resp.Status, data, err)
	}
	return json.Unmarshal(data, to)
}

// leader is the name of the member that leads.
func (c *etcdCluster) leader() string {
	for _, m := range c.members {
		var s struct{ Leader string }
		if c.post(m.client, "/v3/maintenance/status", "{}", &s) != nil {
			continue
		}
		id, _ := strconv.ParseUint(s.Leader, 10, 64)
		for n, o := range c.members {
			if o.id == strconv.FormatUint(id, 16) {
				return n
			}
		}
	}
	c.t.Fatal("no leader")
	return ""
}

// balance starts a balancer over all members, and a watch on each.
func (c *etcdCluster) balance() (*Balancer, map[string]*etcdWatch) {
	t := c.t
	t.Helper()
	b, err := New(Config{Listen: "127.0.0.1:0", Path: etcdPath, TLS: func() *tls.Config { return c.tls }, CutUnready: true, Logf: logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	b.quiet()
	ended := make(chan error)
	go func() { ended <- b.Run(t.Context()) }()
	t.Cleanup(func() { <-ended })
	var addrs []string
	for _, m := range c.members {
		addrs = append(addrs, m.client)
	}
	b.Set(addrs)
	waitFor(t, 5*time.Second, "all members are ready", func() bool { return b.count(Ready) == len(addrs) })
	watches := map[string]*etcdWatch{}
	for range addrs {
		w := c.watch(b)
		watches[w.member] = w
	}
	if len(watches) != len(addrs) {
		t.Fatalf("%d watches are on %d members", len(addrs), len(watches))
	}
	return b, watches
}

// etcdWatch is a watch of key "a" through the balancer.
type etcdWatch struct {
	member string
	events atomic.Int64
	ended  chan struct{}
}

func (c *etcdCluster) watch(b *Balancer) *etcdWatch {
	t := c.t
	t.Helper()
	tr := &http.Transport{TLSClientConfig: c.tls}
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+b.Addr()+"/v3/watch", strings.NewReader(`{"create_request":{"key":"YQ=="}}`))
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(resp.Body)
	line, err := r.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var created struct {
		Result struct {
			Header struct {
				MemberID string `json:"member_id"`
			}
		}
	}
	if err := json.Unmarshal(line, &created); err != nil {
		t.Fatal(err)
	}
	id, _ := strconv.ParseUint(created.Result.Header.MemberID, 10, 64)
	w := &etcdWatch{ended: make(chan struct{})}
	for n, m := range c.members {
		if m.id == strconv.FormatUint(id, 16) {
			w.member = n
		}
	}
	go func() {
		defer close(w.ended)
		defer resp.Body.Close()
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			if bytes.Contains(line, []byte(`"events"`)) {
				w.events.Add(1)
			}
		}
	}()
	return w
}

func (w *etcdWatch) isOpen() bool {
	select {
	case <-w.ended:
		return false
	default:
		return true
	}
}

// put writes key "a" over a new connection through the balancer.
func (c *etcdCluster) put(b *Balancer) error {
	value := base64.StdEncoding.EncodeToString([]byte(time.Now().String()))
	var answer struct{}
	return c.post(b.Addr(), "/v3/kv/put", `{"key":"YQ==","value":"`+value+`"}`, &answer)
}

// serves waits until writes succeed, six in a row, and checks that the watches
// named see one more.
func (c *etcdCluster) serves(b *Balancer, within time.Duration, watches ...*etcdWatch) time.Duration {
	t := c.t
	t.Helper()
	began := time.Now()
	var took time.Duration
	for good := 0; good < 6; good++ {
		if err := c.put(b); err != nil {
			good, took = -1, 0
			if time.Since(began) > within {
				t.Fatalf("not within %v: six writes over new connections: %v", within, err)
			}
		} else if took == 0 {
			took = time.Since(began)
		}
	}
	var before []int64
	for _, w := range watches {
		before = append(before, w.events.Load())
	}
	if err := c.put(b); err != nil {
		t.Error(err)
	}
	for i, w := range watches {
		waitFor(t, 3*time.Second, "the watch on "+w.member+" sees a write", func() bool { return w.events.Load() > before[i] })
		if !w.isOpen() {
			t.Errorf("the watch on %s was cut", w.member)
		}
	}
	return took
}

// split says which member leads and which two do not.
func (c *etcdCluster) split() (leader string, followers []string) {
	leader = c.leader()
	for n := range c.members {
		if n != leader {
			followers = append(followers, n)
		}
	}
	return leader, followers
}

// TestRealFollower: a follower that is stopped, cut off or killed is left and
// its watches closed within two seconds; those on the others stay.
func TestRealFollower(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, "a", "b", "c")
	b, watches := c.balance()
	leader, followers := c.split()
	victim := followers[0]
	stay := []*etcdWatch{watches[leader], watches[followers[1]]}
	for _, fault := range []struct {
		name            string
		strike, recover func()
	}{
		{"SIGSTOP", func() { c.signal(victim, syscall.SIGSTOP) }, func() { c.signal(victim, syscall.SIGCONT) }},
		{"cut off from its peers", func() { c.cutOff(victim) }, c.heal},
		{"kill -9", func() { c.signal(victim, syscall.SIGKILL) }, nil},
	} {
		b.quiet()
		began := time.Now()
		fault.strike()
		waitFor(t, leftWithin, fault.name+": the watch is closed", func() bool { return !watches[victim].isOpen() })
		closed := time.Since(began)
		// A dying process may lose its connections before its listener: until a
		// probe has failed, a new one can still be sent there.
		waitFor(t, leftWithin-time.Since(began), fault.name+": it gets no connection", func() bool { return b.count(Ready) == 2 })
		c.serves(b, 0, stay...)
		t.Logf("%s: left and closed after %v", fault.name, closed)
		if fault.recover == nil {
			break
		}
		fault.recover()
		waitFor(t, 10*time.Second, fault.name+": it is ready again", func() bool { return b.count(Ready) == 3 })
		c.serves(b, 0, stay...)
		waitFor(t, leftWithin, "the writes' connections are over", func() bool { return b.connections() == 2 })
		if watches[victim] = c.watch(b); watches[victim].member != victim {
			t.Fatalf("the one with the fewest connections was not chosen, but %s", watches[victim].member)
		}
	}
}

// TestRealLeader: losing the leader cuts no watch on those who elect the next,
// although for a moment none of them serves.
func TestRealLeader(t *testing.T) {
	for _, fault := range []struct {
		name   string
		strike func(c *etcdCluster, name string)
	}{
		{"kill -9", func(c *etcdCluster, name string) { c.signal(name, syscall.SIGKILL) }},
		{"cut off from its peers", func(c *etcdCluster, name string) { c.cutOff(name) }},
		{"SIGSTOP", func(c *etcdCluster, name string) { c.signal(name, syscall.SIGSTOP) }},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			c := newEtcd(t, "a", "b", "c")
			b, watches := c.balance()
			leader, followers := c.split()
			began := time.Now()
			fault.strike(c, leader)
			stay := []*etcdWatch{watches[followers[0]], watches[followers[1]]}
			served := c.serves(b, 8*time.Second, stay...)
			waitFor(t, 5*time.Second, "the watch on the old leader is closed", func() bool { return !watches[leader].isOpen() })
			t.Logf("writes over new connections after %v, the old leader's watch closed after %v", served, time.Since(began))
			time.Sleep(grace + patience)
			c.serves(b, 0, stay...)
		})
	}
}

// TestRealLearner: a member that may not vote is not used before it may.
func TestRealLearner(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, "a")
	b, watches := c.balance()
	d := c.prepare("d")
	var added struct{ Member struct{ ID string } }
	if err := c.post(c.members["a"].client, "/v3/cluster/member/add", `{"peerURLs":["`+d.peer+`"],"isLearner":true}`, &added); err != nil {
		t.Fatal(err)
	}
	c.start("d", "existing", []string{"a=" + c.members["a"].peer, "d=" + d.peer})
	b.Set([]string{c.members["a"].client, d.client})
	waitFor(t, 15*time.Second, "the learner speaks", func() bool { return b.count(Unready) == 1 })
	if b.count(Ready) != 1 {
		t.Error("the voter is not ready")
	}
	c.serves(b, 0, watches["a"])
	waitFor(t, 10*time.Second, "it is promoted", func() bool {
		var answer struct{}
		return c.post(c.members["a"].client, "/v3/cluster/member/promote", `{"ID":"`+added.Member.ID+`"}`, &answer) == nil
	})
	waitFor(t, leftWithin, "it is used", func() bool { return b.count(Ready) == 2 })
	c.serves(b, 0, watches["a"])
}
