// Package balancer lets a node reach the API servers and etcd through
// addresses that never change: 127.0.0.1:7445 over all masters, and on masters
// 127.0.0.1:7446 over the voting members of etcd.
//
// It balances TCP connections and looks into none. What it knows of a backend
// comes from its own probes, GET /readyz over TLS: a new connection goes to the
// ready backend that has the fewest, and one that is dead, or not ready, gets
// none within two seconds. Its connections are closed as well when it is dead,
// since clients notice only after most of a minute - but only while another
// backend is ready to take them. One that may only be slow has longer, up to ten
// seconds, where handshakes were slow lately. Nothing else closes a connection:
// not a new list of backends, and not the death of another one.
//
// It does not find out who the backends are (see node.go for the files it goes
// by), and it does not retry a request: that is the client's to do.
package balancer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/inetaf/tcpproxy"
)

// Config is one balanced address.
type Config struct {
	Listen     string             // HOST:PORT; port 0: the system chooses, see Addr
	Path       string             // what is asked of a backend; empty: /readyz
	TLS        func() *tls.Config // how backends are asked; the server name is the backend's host
	First      string             // the backend that is used whenever it is ready; empty: none
	Seed       string             // decides among equals: nodes differ, one node does not change its mind
	CutUnready bool               // close the connections of a backend that is not ready, too
	Logf       func(string, ...any)
}

// Balancer is one listening address and its backends.
type Balancer struct {
	config   Config
	logf     func(string, ...any)
	listener net.Listener
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	running  sync.WaitGroup // probes and connections

	mu       sync.Mutex
	backends []*backend // in the order of preference among equals
	clients  map[*flow]struct{}
	turn     int
	pace     pace
	lately   lately
	peak     peak
	closed   bool
}

// New listens. Connections wait until Run.
func New(c Config) (*Balancer, error) {
	if c.TLS == nil {
		return nil, errors.New("BUG: a balancer without TLS")
	}
	if c.Path == "" {
		c.Path = "/readyz"
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	b := &Balancer{config: c, clients: map[*flow]struct{}{}, pace: maxPace, peak: maxPeak}
	b.logf = func(format string, args ...any) { c.Logf("%s: "+format, append([]any{c.Listen}, args...)...) }
	var err error
	if b.listener, err = listen(c.Listen, b.logf); err != nil {
		return nil, err
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Addr is the address that clients use.
func (b *Balancer) Addr() string { return b.listener.Addr().String() }

// Set replaces the list of backends, HOST:PORT. What stays keeps its
// connections and what is known of it; what goes keeps its connections while
// it is ready, and gets no new one. An empty list is not taken: it is never
// the truth about a cluster.
func (b *Balancer) Set(addrs []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(addrs) == 0 || b.closed {
		return
	}
	for _, be := range b.backends {
		if listed := slices.Contains(addrs, be.addr); listed != be.state.listed {
			be.state.listed = listed
			be.probeNow()
			b.logf("%s: listed: %t", be.addr, listed)
		}
	}
	for _, a := range addrs {
		if slices.ContainsFunc(b.backends, func(be *backend) bool { return be.addr == a }) {
			continue
		}
		be := &backend{addr: a, kick: make(chan struct{}, 1), flows: map[*flow]struct{}{}}
		be.state = state{listed: true, first: a == b.config.First}
		b.backends = append(b.backends, be)
		b.running.Add(1)
		go b.watch(b.ctx, be)
	}
	slices.SortFunc(b.backends, func(x, y *backend) int { return cmp.Compare(rank(b.config.Seed, x.addr), rank(b.config.Seed, y.addr)) })
}

// rank orders backends differently on every node, so that not all of them
// begin with the same master.
func rank(seed, addr string) string {
	sum := sha256.Sum256([]byte(seed + "\n" + addr))
	return string(sum[:])
}

// Run serves until ctx ends or the listener fails, and closes everything.
func (b *Balancer) Run(ctx context.Context) error {
	defer b.close()
	p := tcpproxy.Proxy{ListenFunc: func(string, string) (net.Listener, error) { return b.listener, nil }}
	p.AddRoute(b.config.Listen, b)
	if err := p.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	err := p.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serving %s: %w", b.config.Listen, err)
}

// close ends what is left and waits for it.
func (b *Balancer) close() {
	b.listener.Close()
	b.mu.Lock()
	b.closed = true
	b.cancel()
	for f := range b.clients {
		f.stop()
	}
	b.mu.Unlock()
	b.running.Wait()
}

// states is what order and givenUp go by; b.mu is held.
func (b *Balancer) states() []state {
	out := make([]state, len(b.backends))
	for i, be := range b.backends {
		out[i] = be.state
		out[i].conns = len(be.flows)
	}
	return out
}

// forget drops a backend; b.mu is held.
func (b *Balancer) forget(be *backend) {
	b.backends = slices.DeleteFunc(b.backends, func(o *backend) bool { return o == be })
}
