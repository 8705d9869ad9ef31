package balancer

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/inetaf/tcpproxy"
)

// dialTimeout is how long one backend may take to accept a connection before
// the next is tried.
const dialTimeout = time.Second

// keepAlive finds a backend's machine gone within half a minute where no other
// backend is ready, and so nothing else ends a connection.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// flow is one client's connection and the backend's that carries it.
type flow struct {
	client net.Conn
	mu     sync.Mutex
	server *net.TCPConn // nil: still being dialled
	ended  bool
}

// cut ends both connections at once. One still being dialled is left alone: it
// may yet fail and try another backend.
func (f *flow) cut() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server == nil || f.ended {
		return false
	}
	f.end()
	return true
}

// stop is cut that does not wait for the dialling.
func (f *flow) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end()
}

func (f *flow) end() {
	f.ended = true
	f.client.Close()
	if f.server != nil {
		f.server.SetLinger(0) // nobody is there to acknowledge what is unsent
		f.server.Close()
	}
}

// attach completes f, unless it was stopped.
func (f *flow) attach(server *net.TCPConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.server = server
	if f.ended {
		server.Close()
	}
	return !f.ended
}

// HandleConn implements tcpproxy.Target: it carries one client's connection to
// its end. Every backend is tried at most once.
func (b *Balancer) HandleConn(client net.Conn) {
	defer client.Close()
	f := &flow{client: client}
	if !b.enter(f) {
		return
	}
	defer b.leave(f)
	var tried []*backend
	for {
		be := b.place(f, tried)
		if be == nil {
			return
		}
		server, err := b.dial(be.addr)
		if err == nil {
			if f.attach(server) {
				carry(client, server)
			}
			b.unplace(f, be)
			return
		}
		b.unplace(f, be)
		if b.ctx.Err() != nil {
			return
		}
		be.probeNow()
		tried = append(tried, be)
	}
}

func (b *Balancer) dial(addr string) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}
	conn, err := d.DialContext(b.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.New("BUG: not a TCP connection")
	}
	return tcp, nil
}

// carry copies both ways, passing on half-closes, until both have ended.
func carry(client net.Conn, server *net.TCPConn) {
	p := tcpproxy.DialProxy{
		DialTimeout: -1, KeepAlivePeriod: -1, // both are set already
		DialContext: func(context.Context, string, string) (net.Conn, error) { return server, nil },
	}
	p.HandleConn(client)
}

// place chooses the next backend for f and counts f there from now on, so
// that a burst is spread as well.
func (b *Balancer) place(f *flow, tried []*backend) *backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	candidates := order(b.states(), b.turn)
	b.turn++
	for _, i := range candidates {
		if be := b.backends[i]; !slices.Contains(tried, be) {
			if len(be.flows) == 0 {
				be.probeNow() // it may have stood by
			}
			be.flows[f] = struct{}{}
			return be
		}
	}
	return nil
}

func (b *Balancer) unplace(f *flow, be *backend) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(be.flows, f)
}

// enter registers a client's connection, unless the balancer is closed.
func (b *Balancer) enter(f *flow) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.clients[f] = struct{}{}
	b.running.Add(1)
	return true
}

func (b *Balancer) leave(f *flow) {
	b.mu.Lock()
	delete(b.clients, f)
	b.mu.Unlock()
	b.running.Done()
}
