package balancer

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	for _, c := range []struct {
		name  string
		set   func(s *server)
		trust *tls.Config
		asked int // probes before set
		want  Health
		why   string
	}{
		{"ready", func(*server) {}, trust(ca), 0, Ready, ""},
		{"not ready", func(s *server) { s.status.Store(500) }, trust(ca), 0, Unready, ": 500 Internal Server Error: [-]etcd failed: reason withheld"},
		{"anonymous is refused", func(s *server) { s.status.Store(401) }, trust(ca), 0, Unready, ": 401"},
		{"stops", func(s *server) { s.stop() }, trust(ca), 1, Dead, "connection refused"},
		{"falls silent", func(s *server) { s.frozen.Store(true) }, trust(ca), 1, Late, "TLS with"},
		{"is silent", func(s *server) { s.frozen.Store(true) }, trust(ca), 0, Late, "TLS with"},
		{"speaks TLS, answers nothing", func(s *server) { s.delay.Store(int64(time.Minute)) }, trust(ca), 1, Unready, "no answer to GET /readyz"},
		{"takes its time on the kept connection", func(s *server) { s.delay.Store(int64(timeout * 3 / 4)) }, trust(ca), 1, Ready, ""},
		{"another authority's", func(*server) {}, trust(other), 0, Dead, "unknown authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, ca, "127.0.1.1:0")
			p := &prober{addr: s.addr, path: "/readyz", tls: func() *tls.Config { return c.trust }}
			defer p.close()
			for range c.asked {
				if h, why := p.probe(context.Background(), timeout); h != Ready {
					t.Fatal(h, why)
				}
			}
			c.set(s)
			began := time.Now()
			got, why := p.probe(context.Background(), timeout)
			if got != c.want || !strings.Contains(why, c.why) {
				t.Errorf("got %v %q, want %v %q", got, why, c.want, c.why)
			}
			if took := time.Since(began); took > timeout+late {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestProbesShareOneConnection(t *testing.T) {
	ca := newCA(t)
	s := serve(t, ca, "127.0.1.1:0")
	config := trust(ca)
	p := &prober{addr: s.addr, path: "/readyz", tls: func() *tls.Config { return config }}
	defer p.close()
	for i := range 20 {
		s.status.Store(200 + int32(i%2)*300)
		p.probe(context.Background(), timeout)
	}
	if n := s.accepted.Load(); n != 1 {
		t.Errorf("20 probes took %d connections", n)
	}
}

// TestServerNameIsTheAddress: a certificate of another master is not this one's.
func TestServerNameIsTheAddress(t *testing.T) {
	ca := newCA(t)
	s := serve(t, ca, "127.0.1.1:0")
	config := trust(ca)
	l, err := net.Listen("tcp", "127.0.1.2:0")
	if err != nil {
		t.Fatal(err)
	}
	startRelay(t, l, s.addr, nil)
	p := &prober{addr: l.Addr().String(), path: "/readyz", tls: func() *tls.Config { return config }}
	defer p.close()
	if h, why := p.probe(context.Background(), timeout); h != Dead || !strings.Contains(why, "not 127.0.1.2") {
		t.Errorf("got %v %q", h, why)
	}
}
