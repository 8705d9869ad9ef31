// Package lan is an Ethernet switch between virtual machines of this computer:
// a network of their own, which no interface of the computer is part of.
//
// A port is a Unix socket to which QEMU's -netdev stream connects. Each frame
// on it is preceded by its length, four bytes, the highest first. The switch
// learns which address is behind which port, as switches do; a frame for a
// machine that does not keep up is dropped. It gives no addresses unless it is
// told to (Serve), and leads nowhere.
package lan

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

const (
	headerBytes   = 14           // destination, source, type
	maxFrameBytes = 64<<10 + 128 // the largest that a virtual card sends, with headers
	queueFrames   = 4096         // per port
)

// Switch connects machines. Its methods may run at the same time.
type Switch struct {
	dir string
	mu  sync.Mutex
	// ports by name; learned are those behind which an address was last seen.
	ports   map[string]*port
	learned map[[6]byte]*port
	dhcp    *DHCP // nil: nobody answers
	closed  bool
	running sync.WaitGroup
}

type port struct {
	listener net.Listener
	queue    chan []byte
	conn     net.Conn // of the machine; nil: none is on
	down     bool     // the cable is out
}

// New makes a switch whose sockets lie in dir, which is made. The directory's
// path must be short: a socket's has at most 107 bytes.
func New(dir string) (*Switch, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &Switch{dir: dir, ports: map[string]*port{}, learned: map[[6]byte]*port{}}, nil
}

// Port opens a port and returns its socket. A machine may disconnect and
// connect again; one that connects takes the place of the one before.
func (s *Switch) Port(name string) (socket string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", errors.New("the switch is closed")
	}
	if s.ports[name] != nil {
		return "", fmt.Errorf("the switch has a port %s already", name)
	}
	socket = filepath.Join(s.dir, name)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return "", err
	}
	p := &port{listener: l, queue: make(chan []byte, queueFrames)}
	s.ports[name] = p
	s.running.Add(2)
	go s.accept(p)
	go s.send(p)
	return socket, nil
}

// Plug puts the cable of a port in, or pulls it: nothing passes, and the
// machine does not notice.
func (s *Switch) Plug(name string, in bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ports[name]
	if p == nil {
		return fmt.Errorf("the switch has no port %s", name)
	}
	p.down = !in
	return nil
}

// Close ends the switch and waits for it.
func (s *Switch) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		for _, p := range s.ports {
			p.listener.Close()
			if p.conn != nil {
				p.conn.Close()
			}
			close(p.queue)
		}
	}
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Switch) accept(p *port) {
	defer s.running.Done()
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			conn.Close()
			return
		}
		if p.conn != nil {
			p.conn.Close()
		}
		p.conn = conn
		s.running.Add(1)
		s.mu.Unlock()
		go s.receive(p, conn)
	}
}

// receive forwards what a machine sends, until it disconnects.
func (s *Switch) receive(p *port, conn net.Conn) {
	defer s.running.Done()
	defer conn.Close()
	r := bufio.NewReaderSize(conn, maxFrameBytes)
	for {
		frame, err := readFrame(r)
		if err != nil {
			return
		}
		s.forward(p, frame)
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < headerBytes || n > maxFrameBytes {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	frame := make([]byte, n)
	_, err := io.ReadFull(r, frame)
	return frame, err
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// forward queues a frame at the port of its destination, or at all others.
func (s *Switch) forward(from *port, frame []byte) {
	destination, source := [6]byte(frame[:6]), [6]byte(frame[6:12])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || from.down {
		return
	}
	const group = 1 // the bit of broadcast and multicast addresses
	if source[0]&group == 0 {
		s.learned[source] = from
	}
	if s.dhcp != nil && (destination == broadcast || destination == serverMAC) {
		if answer := s.dhcp.answer(frame); answer != nil {
			from.offer(answer)
			return
		}
	}
	if to := s.learned[destination]; to != nil && destination[0]&group == 0 {
		if to != from {
			to.offer(frame)
		}
		return
	}
	for _, to := range s.ports {
		if to != from {
			to.offer(frame)
		}
	}
}

// offer queues a frame unless the queue is full; the switch's lock is held.
func (p *port) offer(frame []byte) {
	if p.down || p.conn == nil {
		return
	}
	select {
	case p.queue <- frame:
	default:
	}
}

// send writes the queue of a port to the machine behind it.
func (s *Switch) send(p *port) {
	defer s.running.Done()
	var conn net.Conn
	var w *bufio.Writer
	for frame := range p.queue {
		s.mu.Lock()
		if p.conn != conn {
			conn, w = p.conn, bufio.NewWriterSize(p.conn, maxFrameBytes)
		}
		s.mu.Unlock()
		w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(frame))))
		w.Write(frame) // after an error, as by a machine that was switched off, it writes nothing
		if len(p.queue) == 0 {
			w.Flush()
		}
	}
}
