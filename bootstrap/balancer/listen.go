package balancer

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// listener is a net.Listener that outlives a shortage of file descriptors or
// memory: tcpproxy ends at the first error, and every connection with it.
type listener struct {
	net.Listener
	logf func(string, ...any)
}

func listen(addr string, logf func(string, ...any)) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	l, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	return listener{l, logf}, nil
}

// Accept waits for a shortage to end, and passes other errors on.
func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err == nil || !passing(err) {
			return c, err
		}
		l.logf("accepting on %s: %v", l.Addr(), err)
		time.Sleep(retry)
	}
}

func passing(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
