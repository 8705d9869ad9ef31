package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/pki"
)

// TestWhy provokes each failure with a real listener.
func TestWhy(t *testing.T) {
	now := time.Now()
	ca, err := pki.NewCA("ours", "kimage", "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewCA("theirs", "kimage", "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(pki.Request{CommonName: "a", Names: []string{"127.0.0.1"}, Server: true}, "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(leaf.Cert, leaf.Key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	defer server.Close()
	picky := httptest.NewUnstartedServer(http.NotFoundHandler())
	picky.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}
	picky.StartTLS()
	defer picky.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, c := range []struct {
		name, addr, server string
		ca                 []byte
		now                time.Time
		want               string
		badTime            bool
	}{
		{name: "clock ahead", addr: server.Listener.Addr().String(), ca: ca.Cert, now: now.AddDate(30, 0, 0), want: "set the clock that is wrong", badTime: true},
		{name: "clock behind", addr: server.Listener.Addr().String(), ca: ca.Cert, now: time.Unix(0, 0), want: "this machine's clock says 1970-01-01", badTime: true},
		{name: "certificate of another CA", addr: server.Listener.Addr().String(), ca: other.Cert, now: now, want: "another cluster's authority"},
		{name: "another address", addr: server.Listener.Addr().String(), server: "10.0.0.1", ca: ca.Cert, now: now, want: "names another address"},
		{name: "refuses", addr: picky.Listener.Addr().String(), ca: ca.Cert, now: now, want: "refuses this machine's certificate"},
		{name: "nothing listens", addr: closed.Addr().String(), ca: ca.Cert, now: now, want: "connection refused"},
		{name: "says nothing", addr: silent.Addr().String(), ca: ca.Cert, now: now, want: "no answer"},
		{name: "no route", addr: "255.255.255.255:1", ca: ca.Cert, now: now, want: "no route to it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(c.ca)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: c.server, Time: func() time.Time { return c.now }}}
			conn, err := d.DialContext(ctx, "tcp", c.addr)
			if err == nil {
				// TLS 1.3: a client learns with its first read that its certificate is refused.
				_, err = conn.Read(make([]byte, 1))
				conn.Close()
			}
			if err == nil {
				t.Fatal("it connects")
			}
			if got := Why(err, c.now); !strings.Contains(got, c.want) || BadTime(err) != c.badTime {
				t.Errorf("got %q (of %v), want %q", got, err, c.want)
			}
		})
	}
}

func TestJudgeClocks(t *testing.T) {
	near := func(name string) Clock { return Clock{Name: name, Ahead: 3 * time.Second} }
	far := func(name string) Clock { return Clock{Name: name, Ahead: -3 * time.Hour} }
	for _, c := range []struct {
		name   string
		others []Clock
		want   string
		stop   bool
	}{
		{name: "alone"},
		{name: "all agree", others: []Clock{near("b"), near("c")}},
		{name: "at the limit", others: []Clock{{Name: "b", Ahead: ClockLimit}}},
		{name: "two machines differ", others: []Clock{far("b")}, want: "the clock of b is 3h0m0s behind this machine's: set the one of the two", stop: true},
		{name: "one other is wrong", others: []Clock{far("b"), near("c")}, want: "the clock of b is 3h0m0s behind this machine's: set it there"},
		{name: "this one is wrong", others: []Clock{far("c"), far("b")}, want: "this machine's clock is wrong: that of b, c", stop: true},
		{name: "this one is wrong by years", others: []Clock{{Name: "b", Unknown: true}, {Name: "c", Unknown: true}}, want: "this machine's clock is wrong", stop: true},
		{name: "two against two", others: []Clock{far("b"), near("c"), far("d")}, want: "differs from b, d", stop: true},
		{name: "two of five are wrong", others: []Clock{far("b"), near("c"), far("d"), near("e")}, want: "the clock of b, d is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			why, stop := JudgeClocks(c.others)
			if stop != c.stop || !strings.Contains(why, c.want) || c.want == "" && why != "" {
				t.Errorf("got %q, %t", why, stop)
			}
		})
	}
}
