package balancer

import (
	"bufio"
	"bytes"
	"net"
	"sync"
	"testing"

	"github.com/inetaf/tcpproxy"
)

// relay passes connections on, until it is told to cut those of one sender.
type relay struct {
	to  string
	who func(head []byte) string // names the sender; nil: nobody is cut off
	mu  sync.Mutex
	cut map[string]bool // senders; "" is everybody
	all map[net.Conn]string
}

func startRelay(t testing.TB, l net.Listener, to string, who func([]byte) string) *relay {
	t.Helper()
	r := &relay{to: to, who: who, cut: map[string]bool{}, all: map[net.Conn]string{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(c)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return r
}

func (r *relay) pass(c net.Conn) {
	from := ""
	if r.who != nil {
		b := bufio.NewReader(c)
		for n := 1; ; n = b.Buffered() + 1 {
			if _, err := b.Peek(n); err != nil {
				c.Close()
				return
			}
			head, _ := b.Peek(b.Buffered())
			if bytes.Contains(head, []byte("\r\n\r\n")) {
				from = r.who(head)
				c = &tcpproxy.Conn{Conn: c, Peeked: head}
				break
			}
		}
	}
	r.mu.Lock()
	cut := r.cut[from] || r.cut[""]
	r.all[c] = from
	r.mu.Unlock()
	if cut {
		c.Close()
	} else {
		to := tcpproxy.To(r.to)
		to.OnDialError = func(src net.Conn, _ error) { src.Close() }
		to.HandleConn(c)
	}
	r.mu.Lock()
	delete(r.all, c)
	r.mu.Unlock()
}

// cutOff ends and refuses what a sender sends; "" is everybody.
func (r *relay) cutOff(from string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut[from] = true
	for c, f := range r.all {
		if f == from || from == "" {
			c.Close()
		}
	}
}

func (r *relay) heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.cut)
}
