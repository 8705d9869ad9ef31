package balancer

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/pki"
)

// backends starts n of them, on 127.0.1.1 and up.
func backends(t testing.TB, ca pki.Pair, n int) (out []*server, byAddr map[string]*server) {
	t.Helper()
	byAddr = map[string]*server{}
	for i := range n {
		s := serve(t, ca, net.JoinHostPort(net.IPv4(127, 0, 1, byte(i+1)).String(), "0"))
		out = append(out, s)
		byAddr[s.addr] = s
	}
	return out, byAddr
}

// left waits until new connections no longer reach s.
func left(t *testing.T, b *Balancer, ca pki.Pair, s *server) time.Duration {
	t.Helper()
	began := time.Now()
	for good := 0; good < 6; {
		got, err := who(b, ca, 300*time.Millisecond)
		if good++; err != nil || got == s.addr {
			good = 0
		}
		if time.Since(began) > leftWithin {
			t.Fatalf("new connections reach %s after %v", s.addr, leftWithin)
		}
	}
	return time.Since(began)
}

func TestFrozenBackendIsLeftAndItsConnectionsClosed(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	servers, byAddr := backends(t, ca, 3)
	b := start(t, Config{}, ca, servers...)
	watches := openWatches(t, b, ca, 3)
	victim := servers[0].addr
	began := time.Now()
	byAddr[victim].frozen.Store(true)
	waitFor(t, leftWithin, "the watch on the frozen server is closed", func() bool { return !watches[victim].isOpen() })
	t.Logf("closed after %v", time.Since(began))
	left(t, b, ca, byAddr[victim])
	if d := time.Since(began); d > leftWithin {
		t.Errorf("left after %v", d)
	}
	watches[servers[1].addr].alive(t)
	watches[servers[2].addr].alive(t)

	byAddr[victim].frozen.Store(false)
	waitFor(t, leftWithin, "it is used again", func() bool { got, _ := who(b, ca, time.Second); return got == victim })
	watches[servers[1].addr].alive(t)
	watches[servers[2].addr].alive(t)
}

func TestKilledBackendIsLeftAtOnce(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	servers, _ := backends(t, ca, 2)
	b := start(t, Config{}, ca, servers...)
	servers[0].stop()
	for range 10 { // not one client is refused
		if got, err := who(b, ca, time.Second); got != servers[1].addr {
			t.Errorf("reached %q, %v", got, err)
		}
	}
}

func TestNotReady(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  bool
	}{{"API server: its connections stay", false}, {"etcd: its connections are closed", true}} {
		t.Run(c.name, func(t *testing.T) {
			noLeaks(t)
			ca := newCA(t)
			servers, _ := backends(t, ca, 2)
			b := start(t, Config{CutUnready: c.cut}, ca, servers...)
			watches := openWatches(t, b, ca, 2)
			began := time.Now()
			servers[0].status.Store(500)
			if c.cut {
				waitFor(t, leftWithin, "the watch is closed", func() bool { return !watches[servers[0].addr].isOpen() })
				t.Logf("closed after %v", time.Since(began))
			} else {
				left(t, b, ca, servers[0])
				t.Logf("left within %v", time.Since(began))
				time.Sleep(2*leftWithin - time.Since(began))
				watches[servers[0].addr].alive(t)
			}
			watches[servers[1].addr].alive(t)
		})
	}
}

// TestNobodyIsReady: nothing is closed, and all are tried in turn.
func TestNobodyIsReady(t *testing.T) {
	ca := newCA(t)
	servers, _ := backends(t, ca, 2)
	b := start(t, Config{CutUnready: true}, ca, servers...)
	watches := openWatches(t, b, ca, 2)
	for _, s := range servers {
		s.status.Store(500)
	}
	waitFor(t, leftWithin, "nobody is ready", func() bool { return b.count(Unready) == 2 })
	var reached []string
	for range 4 {
		got, err := who(b, ca, time.Second)
		if err != nil {
			t.Error(err)
		}
		reached = append(reached, got)
	}
	if reached[0] == reached[1] || reached[0] != reached[2] || reached[1] != reached[3] {
		t.Errorf("reached %v", reached)
	}
	time.Sleep(patience + grace)
	for _, w := range watches {
		w.alive(t)
	}
	servers[0].stop()
	for range 4 { // dead comes after not ready
		if got, err := who(b, ca, time.Second); got != servers[1].addr {
			t.Errorf("reached %q, %v", got, err)
		}
	}
	servers[1].stop()
	began := time.Now()
	if _, err := who(b, ca, 5*time.Second); err == nil || time.Since(began) > 4*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// TestListsChange: adding and removing backends closes nothing.
func TestListsChange(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	servers, byAddr := backends(t, ca, 4)
	b := start(t, Config{}, ca, servers[:2]...)
	watches := openWatches(t, b, ca, 2)

	b.Set(addrs(servers...))
	waitFor(t, leftWithin, "four are ready", func() bool { return b.count(Ready) == 4 })
	b.Set(nil)
	b.Set(addrs(servers[1:]...))
	for range 6 {
		if got, err := who(b, ca, time.Second); got == servers[0].addr || err != nil {
			t.Errorf("reached %q, %v", got, err)
		}
	}
	servers[2].stop()
	time.Sleep(leftWithin)
	watches[servers[0].addr].alive(t) // no backend any longer, yet alive
	watches[servers[1].addr].alive(t)

	byAddr[servers[0].addr].frozen.Store(true)
	waitFor(t, leftWithin, "the watch on what is neither listed nor alive is closed", func() bool { return !watches[servers[0].addr].isOpen() })
	waitFor(t, leftWithin, "it is forgotten", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.backends) == 3 })
	watches[servers[1].addr].alive(t)
}

func TestConnectionsAreSpread(t *testing.T) {
	ca := newCA(t)
	servers, _ := backends(t, ca, 3)
	b := start(t, Config{}, ca, servers...)
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	for range 12 { // at once
		wg.Go(func() {
			w := openWatch(t, b, ca)
			mu.Lock()
			defer mu.Unlock()
			got[w.server]++
		})
	}
	wg.Wait()
	for _, s := range servers {
		if got[s.addr] != 4 {
			t.Errorf("%s has %d of 12 connections", s.addr, got[s.addr])
		}
	}
}

func TestOwnFirst(t *testing.T) {
	ca := newCA(t)
	servers, _ := backends(t, ca, 3)
	b := start(t, Config{First: servers[1].addr}, ca, servers...)
	for range 5 {
		if w := openWatch(t, b, ca); w.server != servers[1].addr {
			t.Errorf("reached %s", w.server)
		}
	}
	servers[1].status.Store(503)
	left(t, b, ca, servers[1])
}

// TestStandby: who is not used is seldom asked, and is there at once when it is needed.
func TestStandby(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	servers, _ := backends(t, ca, 3)
	own, other := servers[0], servers[1]
	b := start(t, Config{First: own.addr, CutUnready: true}, ca, servers...)
	w := openWatch(t, b, ca)
	time.Sleep(interval) // those asked already
	before := []int32{own.asked.Load(), other.asked.Load()}
	time.Sleep(5 * interval)
	if n := own.asked.Load() - before[0]; n < 4 {
		t.Errorf("the one that is used was asked %d times", n)
	}
	if n := other.asked.Load() - before[1]; n > 1 {
		t.Errorf("one that is not used was asked %d times", n)
	}
	began := time.Now()
	own.frozen.Store(true)
	waitFor(t, leftWithin, "the watch is closed", func() bool { return !w.isOpen() })
	t.Logf("closed after %v", time.Since(began))
	left(t, b, ca, own)
	// Who stands by may be frozen as well, unnoticed: then the connection is closed.
	own.frozen.Store(false)
	waitFor(t, leftWithin, "it is used again", func() bool { got, _ := who(b, ca, time.Second); return got == own.addr })
	b.quiet()
	other.frozen.Store(true)
	servers[2].frozen.Store(true)
	own.stop()
	servers[2].frozen.Store(false)
	waitFor(t, leftWithin+time.Second, "the only one that is left is reached", func() bool { got, _ := who(b, ca, time.Second); return got == servers[2].addr })
}

// TestHangs: an API server whose etcd hangs speaks TLS, and does not say whether it is ready.
func TestHangs(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	servers, _ := backends(t, ca, 2)
	b := start(t, Config{}, ca, servers...)
	watches := openWatches(t, b, ca, 2)
	asked := servers[0].asked.Load()
	waitFor(t, leftWithin, "it is asked", func() bool { return servers[0].asked.Load() > asked })
	b.quiet()
	began := time.Now()
	servers[0].delay.Store(int64(time.Minute))
	left(t, b, ca, servers[0])
	t.Logf("left within %v", time.Since(began))
	watches[servers[0].addr].alive(t)
}

// TestHalfClose: each side may finish while the other still speaks.
func TestHalfClose(t *testing.T) {
	noLeaks(t)
	l, err := net.Listen("tcp", "127.0.1.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				all, _ := io.ReadAll(c) // to the client's end
				if strings.HasPrefix(string(all), "hello") {
					c.Write([]byte(strings.ToUpper(string(all))))
				}
				c.Close()
			}()
		}
	}()
	b, err := New(Config{Listen: "127.0.0.1:0", TLS: func() *tls.Config { return &tls.Config{} }})
	if err != nil {
		t.Fatal(err)
	}
	go b.Run(t.Context())
	b.Set([]string{l.Addr().String()}) // speaks no TLS: dead, and tried for want of another
	c, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("hello"))
	c.(*net.TCPConn).CloseWrite()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if got, err := io.ReadAll(c); string(got) != "HELLO" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestEndClosesEverything: connections, probes, goroutines.
func TestEndClosesEverything(t *testing.T) {
	noLeaks(t)
	ca := newCA(t)
	servers, _ := backends(t, ca, 3)
	b := start(t, Config{}, ca, servers...)
	for range 30 {
		openWatch(t, b, ca)
	}
	for range 50 {
		if _, err := who(b, ca, time.Second); err != nil {
			t.Error(err)
		}
	}
}

// exhausted is a listener without file descriptors, twice.
type exhausted struct {
	net.Listener
	errs []error
}

func (e *exhausted) Accept() (net.Conn, error) {
	err := e.errs[0]
	e.errs = e.errs[1:]
	return nil, err
}
func (e *exhausted) Addr() net.Addr { return &net.TCPAddr{} }

func TestShortageOfFileDescriptorsPasses(t *testing.T) {
	closed := errors.New("closed")
	e := &exhausted{errs: []error{&net.OpError{Op: "accept", Err: syscall.EMFILE}, syscall.ENFILE, closed}}
	if _, err := (listener{e, t.Logf}).Accept(); err != closed {
		t.Errorf("got %v", err)
	}
	if left := slices.Clone(e.errs); len(left) != 0 {
		t.Errorf("not asked: %v", left)
	}
}
