package local

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// api leads connections to one of the API servers that is ready. qemu accepts for a
// machine that is off as well, so a server is asked before it gets one: by the way,
// not all the time, because an answer costs an emulated processor much.
type api struct {
	ln      net.Listener
	servers func() []int // ports of 127.0.0.1
	client  *http.Client

	mu    sync.Mutex
	good  int // the last one that was ready
	until time.Time
}

// patience is for one answer, which an emulated machine with others beside it may take
// long to give.
const patience = 30 * time.Second

// goodFor is how long a server that was ready is not asked again.
const goodFor = 5 * time.Second

func newAPI(ln net.Listener, servers func() []int) *api {
	a := &api{ln: ln, servers: servers, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}} // the client verifies for itself; this only chooses
	go a.accept()
	return a
}

func (a *api) Close() error { return a.ln.Close() }

func (a *api) accept() {
	for {
		conn, err := a.ln.Accept()
		if err != nil {
			return
		}
		go a.lead(conn)
	}
}

func (a *api) lead(conn net.Conn) {
	defer conn.Close()
	port := a.choose()
	if port == 0 {
		return
	}
	to, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return
	}
	defer to.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{conn, to}, {to, conn}} {
		go func() { io.Copy(way[0], way[1]); done <- struct{}{} }()
	}
	<-done
}

// choose returns the server of last time for a while, then the one that is the first
// to say that it is ready; 0: none does. Who comes meanwhile waits for the same answer.
func (a *api) choose() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	servers := a.servers()
	if slices.Contains(servers, a.good) && time.Now().Before(a.until) {
		return a.good
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answers := make(chan int, len(servers))
	for _, port := range servers {
		go func() {
			if !a.ready(ctx, port) {
				port = 0
			}
			answers <- port
		}()
	}
	for range servers {
		if port := <-answers; port != 0 {
			a.good, a.until = port, time.Now().Add(goodFor)
			return port
		}
	}
	return 0
}

func (a *api) ready(ctx context.Context, port int) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(port))+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	// Who may ask nothing without credentials is ready too.
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden
}
