package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/pki"
)

const leftWithin = 2 * time.Second

func newCA(t testing.TB) pki.Pair {
	t.Helper()
	ca, err := pki.NewCA("test", "kimage", "ECDSA-P256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t testing.TB, ca pki.Pair, r pki.Request) pki.Pair {
	t.Helper()
	p, err := ca.Issue(r, "ECDSA-P256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func trust(ca pki.Pair) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.Cert)
	return &tls.Config{RootCAs: pool}
}

// server is a backend: /readyz answers status, /watch sends a line every 20 ms
// for ever, / says the server's name.
type server struct {
	addr     string
	status   atomic.Int32
	delay    atomic.Int64 // of /readyz, ns
	frozen   atomic.Bool  // no handshake ends and no request is answered
	accepted atomic.Int32
	asked    atomic.Int32 // questions to /readyz
	http     *http.Server
	done     chan struct{} // closed at the end: frees what is frozen
}

// serve starts a backend on host, an address of 127.0.0.0/8; port 0 is chosen.
func serve(t testing.TB, ca pki.Pair, addr string) *server {
	t.Helper()
	host, _, _ := net.SplitHostPort(addr)
	pair := issue(t, ca, pki.Request{CommonName: host, Names: []string{host, "127.0.0.1"}, Server: true})
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String(), done: make(chan struct{})}
	s.status.Store(200)
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.freeze()
		select {
		case <-s.done:
		case <-time.After(time.Duration(s.delay.Load())):
		}
		w.WriteHeader(int(s.status.Load()))
		if s.status.Load() != 200 {
			fmt.Fprint(w, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n")
		}
	})
	mux.HandleFunc("/watch", func(w http.ResponseWriter, r *http.Request) {
		for {
			s.freeze()
			if _, err := fmt.Fprintln(w, s.addr); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.freeze(); fmt.Fprint(w, s.addr) })
	s.http = &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, st http.ConnState) {
			if st == http.StateNew {
				s.accepted.Add(1)
			}
		},
		TLSConfig: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { s.freeze(); return &cert, nil }}}
	go s.http.ServeTLS(l, "", "")
	t.Cleanup(s.stop)
	return s
}

func (s *server) freeze() {
	for s.frozen.Load() {
		select {
		case <-s.done:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *server) stop() {
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	s.http.Close()
}

// start runs a balancer over the servers and waits until all are ready.
func start(t testing.TB, c Config, ca pki.Pair, servers ...*server) *Balancer {
	t.Helper()
	config := trust(ca)
	c.Listen, c.TLS, c.Logf = "127.0.0.1:0", func() *tls.Config { return config }, logger(t)
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	b.quiet()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	b.Set(addrs(servers...))
	waitFor(t, 5*time.Second, "all backends are ready", func() bool { return b.count(Ready) == len(servers) })
	return b
}

// quiet is after some minutes with quick answers.
func (b *Balancer) quiet() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pace, b.peak = 0, 0
}

// logger is t.Logf with the time since the test began.
func logger(t testing.TB) func(string, ...any) {
	began := time.Now()
	return func(f string, a ...any) {
		t.Logf("%6.3f "+f, append([]any{time.Since(began).Seconds()}, a...)...)
	}
}

func addrs(servers ...*server) (out []string) {
	for _, s := range servers {
		out = append(out, s.addr)
	}
	return out
}

func (b *Balancer) count(h Health) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, be := range b.backends {
		if be.state.health == h && be.state.listed {
			n++
		}
	}
	return n
}

func (b *Balancer) connections() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, be := range b.backends {
		n += len(be.flows)
	}
	return n
}

func waitFor(t testing.TB, d time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > d {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

func client(ca pki.Pair) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: trust(ca), DisableKeepAlives: true}, Timeout: 10 * time.Second}
}

// who asks for the name of the server that a new connection reaches.
func who(b *Balancer, ca pki.Pair, patience time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+b.Addr()+"/", nil)
	resp, err := client(ca).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// watch is a long-lived connection through a balancer.
type watch struct {
	server string // whose it is
	lines  atomic.Int64
	ended  chan struct{}
	close  func()
}

func openWatch(t testing.TB, b *Balancer, ca pki.Pair) *watch {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: trust(ca)}
	resp, err := (&http.Client{Transport: tr}).Get("https://" + b.Addr() + "/watch")
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(resp.Body)
	first, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	w := &watch{server: strings.TrimSpace(first), ended: make(chan struct{}), close: func() { resp.Body.Close(); tr.CloseIdleConnections() }}
	go func() {
		defer close(w.ended)
		for {
			if _, err := r.ReadString('\n'); err != nil {
				return
			}
			w.lines.Add(1)
		}
	}()
	t.Cleanup(w.close)
	return w
}

// openWatches opens one on every server, by the server's address.
func openWatches(t testing.TB, b *Balancer, ca pki.Pair, n int) map[string]*watch {
	t.Helper()
	out := map[string]*watch{}
	for range n {
		w := openWatch(t, b, ca)
		out[w.server] = w
	}
	if len(out) != n {
		t.Fatalf("%d connections reached %d of %d servers", n, len(out), n)
	}
	return out
}

func (w *watch) isOpen() bool {
	select {
	case <-w.ended:
		return false
	default:
		return true
	}
}

// alive fails the test unless the watch is open and lines come.
func (w *watch) alive(t testing.TB) {
	t.Helper()
	before := w.lines.Load()
	waitFor(t, 5*time.Second, "a line from "+w.server, func() bool { return w.lines.Load() > before })
	if !w.isOpen() {
		t.Errorf("the watch on %s was cut", w.server)
	}
}

// noLeaks fails the test if goroutines are left when everything is over. Call
// it first.
func noLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for began := time.Now(); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > 5*time.Second {
				stacks := make([]byte, 1<<16)
				t.Errorf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
				return
			}
		}
	})
}
