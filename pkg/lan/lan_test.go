package lan

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// machine is one that speaks QEMU's framing.
type machine struct {
	t    *testing.T
	mac  [6]byte
	conn net.Conn
	r    *bufio.Reader
}

func plugIn(t *testing.T, socket string, last byte) *machine {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &machine{t, [6]byte{0x52, 0x54, 0, 0x17, 8, last}, conn, bufio.NewReader(conn)}
}

var everybody = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func (m *machine) say(to [6]byte, text string) {
	m.t.Helper()
	frame := append(append(append([]byte{}, to[:]...), m.mac[:]...), 0x88, 0xb5)
	frame = append(frame, text...)
	if _, err := m.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		m.t.Fatal(err)
	}
}

// hears fails unless the next frame is text.
func (m *machine) hears(text string) {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	frame, err := readFrame(m.r)
	if err != nil {
		m.t.Fatalf("waiting for %q: %v", text, err)
	}
	if got := string(frame[headerBytes:]); got != text {
		m.t.Fatalf("heard %q, not %q", got, text)
	}
}

func network(t *testing.T, names ...string) (*Switch, []string) {
	t.Helper()
	s, err := New(filepath.Join(t.TempDir(), "lan"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	var sockets []string
	for _, n := range names {
		socket, err := s.Port(n)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, socket)
	}
	return s, sockets
}

// meet lets each machine say something to each other until it is heard: one that
// has just connected may not be known yet.
func meet(all ...*machine) {
	for _, m := range all {
		m.t.Helper()
		for _, other := range all {
			if other == m {
				continue
			}
			for met := false; !met; {
				m.say(other.mac, "hello")
				other.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				_, err := readFrame(other.r)
				met = err == nil
			}
		}
	}
	// What was flooded or repeated meanwhile.
	for _, m := range all {
		for {
			m.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := readFrame(m.r); err != nil {
				break
			}
		}
	}
}

// TestSwitch: what is said to one is heard by that one alone, what is said to
// all by all others.
func TestSwitch(t *testing.T) {
	_, sockets := network(t, "a", "b", "c")
	a, b, c := plugIn(t, sockets[0], 1), plugIn(t, sockets[1], 2), plugIn(t, sockets[2], 3)
	meet(a, b, c)
	a.say(everybody, "who is there?")
	b.hears("who is there?")
	c.hears("who is there?")
	b.say(a.mac, "me")
	a.hears("me")
	c.say(a.mac, "me too")
	a.hears("me too")
	a.say(b.mac, "for b")
	a.say(everybody, "for all")
	c.hears("for all") // and not what was for b
	b.hears("for b")
	b.hears("for all")
	// A machine that moves is found where it is.
	moved := &machine{t, b.mac, c.conn, c.r}
	moved.say(a.mac, "moved")
	a.hears("moved")
	a.say(b.mac, "found")
	c.hears("found")
}

// TestCable: without its cable a machine hears and says nothing, and afterwards
// nothing is left of what was said.
func TestCable(t *testing.T) {
	s, sockets := network(t, "a", "b", "c")
	a, b, c := plugIn(t, sockets[0], 1), plugIn(t, sockets[1], 2), plugIn(t, sockets[2], 3)
	meet(a, b, c)
	if err := s.Plug("b", false); err != nil {
		t.Fatal(err)
	}
	a.say(everybody, "one")
	b.say(everybody, "two")
	c.hears("one")
	a.say(c.mac, "three")
	c.hears("three")
	if err := s.Plug("b", true); err != nil {
		t.Fatal(err)
	}
	a.say(everybody, "four")
	b.hears("four")
	c.hears("four")
	if err := s.Plug("d", true); err == nil {
		t.Error("a port that is not there has a cable")
	}
}

// TestPowerCycle: a machine that went off does not hold up the others, and is
// heard again when it is on.
func TestPowerCycle(t *testing.T) {
	_, sockets := network(t, "a", "b", "c")
	a, b, c := plugIn(t, sockets[0], 1), plugIn(t, sockets[1], 2), plugIn(t, sockets[2], 3)
	meet(a, b, c)
	b.conn.Close()
	for range 2 * queueFrames {
		a.say(everybody, "")
		c.hears("")
	}
	b = plugIn(t, sockets[1], 2)
	meet(a, b, c)
	a.say(b.mac, "again")
	b.hears("again")
}

// TestBadFrame: whoever sends no frames is disconnected; the others go on.
func TestBadFrame(t *testing.T) {
	_, sockets := network(t, "a", "b", "c")
	a, b, c := plugIn(t, sockets[0], 1), plugIn(t, sockets[1], 2), plugIn(t, sockets[2], 3)
	meet(a, b, c)
	c.conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := readFrame(c.r); err == nil {
		t.Error("heard a frame")
	} else if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Error("not disconnected")
	}
	a.say(b.mac, "still there")
	b.hears("still there")
}

// TestQEMU: QEMU frames as this package does: its card's boot ROM asks all others
// for an address.
func TestQEMU(t *testing.T) {
	if testing.Short() {
		need.Missing(t, "the patience for a virtual machine's firmware (-short)")
	}
	qemu := need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	_, sockets := network(t, "machine", "us")
	us := plugIn(t, sockets[1], 9)
	cmd := exec.Command(qemu, "-accel", "tcg", "-nodefaults", "-display", "none", "-boot", "n", "-m", "64",
		"-netdev", "stream,id=lan,server=off,addr.type=unix,addr.path="+sockets[0], "-device", "virtio-net-pci,netdev=lan,mac=52:54:00:17:08:01")
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &words, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	us.conn.SetReadDeadline(time.Now().Add(time.Minute))
	want := []byte{0x52, 0x54, 0, 0x17, 8, 1}
	for {
		frame, err := readFrame(us.r)
		if err != nil {
			t.Fatalf("no DHCP: %v\n%s", err, words.String())
		}
		// DHCPDISCOVER: IPv4, UDP, to port 67.
		if bytes.Equal(frame[6:12], want) && len(frame) > 38 && bytes.Equal(frame[12:14], []byte{8, 0}) && frame[23] == 17 && binary.BigEndian.Uint16(frame[36:38]) == 67 {
			return
		}
	}
}
