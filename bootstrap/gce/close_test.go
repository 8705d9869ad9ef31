package gce

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/need"
)

// place is a network namespace.
type place struct {
	t   *testing.T
	pid string // of a process in it
}

func newPlace(t *testing.T) place {
	t.Helper()
	c := exec.Command("unshare", "--net", "--", "sh", "-c", "ip link set lo up; echo up; exec cat")
	hold, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close(); c.Wait() })
	if _, err := io.ReadFull(said, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	return place{t, strconv.Itoa(c.Process.Pid)}
}

// do runs f on a thread in the namespace.
func (p place) do(f func()) {
	p.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with it
		fd, err := unix.Open(filepath.Join("/proc", p.pid, "ns/net"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Setns(fd, unix.CLONE_NEWNET)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		p.t.Fatal(err)
	}
}

func (p place) sh(script string) {
	p.t.Helper()
	if out, err := exec.Command("nsenter", "--net=/proc/"+p.pid+"/ns/net", "sh", "-ec", script).CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// reaches says why a port of the metadata server cannot be reached; nil: it can.
func (p place) reaches(port string) (err error) {
	p.do(func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", net.JoinHostPort(server, port), 3*time.Second); err == nil {
			c.Close()
		}
	})
	return err
}

// TestClose: on the kernel, a pod asks by way of its node, whose own questions and whose
// names are not held back; also when the pod takes another way, by a Service.
func TestClose(t *testing.T) {
	need.Root(t, "network namespaces")
	node, pod, cloud := newPlace(t), newPlace(t), newPlace(t)
	node.sh("ip link add pod type veth peer name eth0 netns " + pod.pid + "; ip link add eth0 type veth peer name eth0 netns " + cloud.pid +
		"; ip addr add 10.1.0.1/24 dev pod; ip addr add 10.0.0.2/24 dev eth0; ip link set pod up; ip link set eth0 up; ip route add default via 10.0.0.1" +
		"; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter")
	pod.sh("ip addr add 10.1.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.1.0.1")
	cloud.sh("ip addr add 10.0.0.1/24 dev eth0; ip addr add 169.254.169.254/32 dev eth0; ip link set eth0 up; ip route add default via 10.0.0.2")
	for _, port := range []string{"53", "80", "443"} {
		var ln net.Listener
		var err error
		cloud.do(func() { ln, err = net.Listen("tcp", net.JoinHostPort(server, port)) })
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
	}
	for _, port := range []string{"53", "80", "443"} {
		if err := errors.Join(node.reaches(port), pod.reaches(port)); err != nil {
			t.Fatalf("before it is closed: %v", err)
		}
	}
	for range 2 { // at every start of the agent
		node.do(func() {
			if err := Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	for _, port := range []string{"53", "80", "443"} {
		if err := node.reaches(port); err != nil {
			t.Errorf("the node itself: %v", err)
		}
		if err := pod.reaches(port); (err == nil) != (port == "53") {
			t.Errorf("a pod, port %s: %v", port, err)
		}
	}
	node.sh(`[ "$(ip rule | grep -c ` + server + `)" = 3 ]`)
}
