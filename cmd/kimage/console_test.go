package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/local"
)

// terminal is a pseudo-terminal: what is typed at keys comes out of tty, and what is
// written there at keys.
func terminal(t *testing.T) (keys, tty *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	raw, err := keys.SyscallConn() // Fd would take the deadline away
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return keys, tty
}

// supervised is a machine that is on, by the word of a supervisor that is this test, which
// has the other end of its console.
func supervised(t *testing.T, dir, name string) net.Listener {
	t.Helper()
	l, err := localOf(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write(local.Spec{Machines: []local.Machine{{Name: name}}}); err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "kimage-run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	write(t, l.Dir, "run", sockets+"\n")
	lock, err := os.Create(l.in("lock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	listen := func(socket string) net.Listener {
		ln, err := net.Listen("unix", filepath.Join(sockets, socket))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	console := listen("console")
	go http.Serve(listen("control"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(local.Status{Machines: []local.MachineStatus{{Name: name, On: true, Console: console.Addr().String()}}})
	}))
	return console
}

// TestConsole: what is typed at a terminal goes to the machine as it is typed, Ctrl-C and
// all, what the machine says comes out, and Ctrl-] ends it and leaves the terminal as it
// was.
func TestConsole(t *testing.T) {
	dir := t.TempDir()
	machine := supervised(t, dir, "k8s-01").(*net.UnixListener)
	keys, tty := terminal(t)
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command("console", "k8s-01")
	var words bytes.Buffer
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, tty, tty, &words
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true} // Ctrl-C at it would be its signal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	limit := time.Now().Add(30 * time.Second)
	machine.SetDeadline(limit)
	conn, err := machine.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := errors.Join(conn.SetDeadline(limit), keys.SetDeadline(limit)); err != nil {
		t.Fatal(err)
	}
	// The terminal is raw once the machine's words come out of it.
	if _, err := conn.Write([]byte("k8s-01 login: ")); err != nil {
		t.Fatal(err)
	}
	shown := make([]byte, len("k8s-01 login: "))
	if _, err := io.ReadFull(keys, shown); err != nil || string(shown) != "k8s-01 login: " {
		t.Errorf("%q, %v", shown, err)
	}
	const typed = "core\r\x03\x04"
	if _, err := keys.Write([]byte(typed + "\x1dnot for it")); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != typed {
		t.Errorf("the machine got %q, %v", got, err)
	}
	select {
	case err := <-ended:
		if err != nil || !strings.Contains(words.String(), "the console of k8s-01; Ctrl-] ends this") {
			t.Errorf("%v: %s", err, words.String())
		}
	case <-time.After(time.Until(limit)):
		t.Fatal("it did not end")
	}
	if after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || *after != *before {
		t.Errorf("the terminal is not as it was: %v, %+v, %+v", err, before, after)
	}
}
