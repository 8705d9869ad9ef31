package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// maxAnswerBytes is more than any answer to a probe has; a longer one ends the
// connection, not the balancer's memory.
const maxAnswerBytes = 64 << 10

// prober asks one backend whether it is ready. It keeps its connection: a TLS
// handshake per second and node would be most of what a master does.
type prober struct {
	addr string // HOST:PORT; the certificate must carry HOST
	path string
	tls  func() *tls.Config
	kept *line // nil: none is open
}

// line is a connection to a backend and the answers that come on it.
type line struct {
	*tls.Conn
	r     *bufio.Reader
	alarm *timer // ends what is waited for
}

func newLine(conn *tls.Conn) *line {
	longAgo := time.Unix(1, 0)
	return &line{conn, bufio.NewReader(conn), newTimer(func() { conn.SetDeadline(longAgo) })}
}

func (l *line) close() {
	l.alarm.close()
	l.Close()
}

// probe takes at most timeout. The connection that is kept has half of that for
// itself; after that a second one finds out whether the backend still speaks TLS,
// and an answer on either counts. The string is empty or ": " and why the backend is
// not ready.
func (p *prober) probe(ctx context.Context, timeout time.Duration) (Health, string) {
	began := time.Now()
	deadline := began.Add(timeout)
	kept := p.kept
	if kept != nil {
		h, why, err := p.ask(kept, began.Add(timeout/2))
		if err == nil {
			return h, why
		}
		if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
			kept.close() // the backend ended it, as it may at any time
			kept = nil
		} else {
			defer kept.close()
		}
	}
	p.kept = nil
	fresh, h, err := p.connect(ctx, deadline)
	if err != nil {
		if kept != nil {
			if h, why, late := kept.await(time.Now().Add(time.Millisecond)); late == nil {
				return h, why
			}
		}
		return h, ": " + err.Error()
	}
	h, why, err := p.ask(fresh, deadline)
	if err == nil {
		p.kept = fresh
		return h, why
	}
	fresh.close()
	if kept != nil {
		if h, why, late := kept.await(time.Now().Add(time.Millisecond)); late == nil {
			return h, why
		}
	}
	return Unready, fmt.Sprintf(": no answer to GET %s: %v", p.path, err)
}

func (p *prober) connect(ctx context.Context, deadline time.Time) (*line, Health, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return nil, Dead, err
	}
	config := p.tls().Clone()
	config.ServerName, _, _ = net.SplitHostPort(p.addr)
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		h := Dead
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			h = Late
		}
		return nil, h, fmt.Errorf("TLS with %s: %w", p.addr, err)
	}
	return newLine(conn), Unknown, nil
}

// ask sends the question and awaits its answer.
func (p *prober) ask(l *line, deadline time.Time) (Health, string, error) {
	l.alarm.reset(time.Until(deadline))
	if _, err := io.WriteString(l, "GET "+p.path+" HTTP/1.1\r\nHost: "+p.addr+"\r\nUser-Agent: kimage-balancer\r\n\r\n"); err != nil {
		return Unknown, "", err
	}
	return l.read()
}

// await reads the answer to a question that was asked before, and not answered
// in time.
func (l *line) await(deadline time.Time) (Health, string, error) {
	if err := l.SetDeadline(time.Time{}); err != nil {
		return Unknown, "", err
	}
	l.alarm.reset(time.Until(deadline))
	return l.read()
}

// read reads an answer. After a timeout before its first byte it can be called
// again.
func (l *line) read() (Health, string, error) {
	defer l.alarm.stop()
	if _, err := l.r.Peek(1); err != nil {
		return Unknown, "", err
	}
	resp, err := http.ReadResponse(l.r, nil)
	if err != nil {
		return Unknown, "", err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return Unknown, "", err
	}
	if resp.Close || len(body) == maxAnswerBytes {
		l.Close() // the next question finds it closed and dials again
	}
	if resp.StatusCode == http.StatusOK {
		return Ready, "", nil
	}
	return Unready, ": " + resp.Status + failedChecks(body), nil
}

// failedChecks are the lines of an answer that name what failed, as both the
// API server and etcd mark them.
func failedChecks(body []byte) string {
	var out []string
	for line := range strings.Lines(string(body)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "[-]") && len(out) < 3 {
			out = append(out, line[:min(len(line), 120)])
		}
	}
	if len(out) == 0 {
		return ""
	}
	return ": " + strings.Join(out, ", ")
}

func (p *prober) close() {
	if p.kept != nil {
		p.kept.close()
	}
}
