//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// room is a machine room: a network of its own, with kimage serve on it.
type room struct {
	t   *testing.T
	os  string // of its machines, as --os names it
	who string // whom that lets in
	raw string // the image that they get
	ns  string
	dir string // with cluster.yaml
	key string // file of the key that machines let in
	url string

	pid   int        // of kimage serve
	ended chan error // with how it ended

	mu   sync.Mutex
	said bytes.Buffer // by kimage serve
}

const roomAddress = "192.168.77.1"

func (r *room) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said.Write(b)
}

func (r *room) words() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said.String()
}

// inside runs a program on the room's network.
func (r *room) inside(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", r.ns}, argv...)...)
	cmd.Dir = r.dir
	return cmd
}

// newRoom is one whose machines get the image of the stories.
func newRoom(t *testing.T, serve ...string) *room {
	t.Helper()
	return newRoomOf(t, "", system, user, image, serve...)
}

// newRoomOf is one where more nodes than k8s-01, and what else the cluster file says, are
// given as lines of it.
func newRoomOf(t *testing.T, more, system, user, image string, serve ...string) *room {
	t.Helper()
	need.Root(t, "a network namespace")
	key := newKey(t)
	r := &room{t: t, os: system, who: user, raw: image, ns: fmt.Sprintf("kimage-room-%d", os.Getpid()), dir: t.TempDir(), url: "http://" + roomAddress + ":8080"}
	r.key = filepath.Join(r.dir, "key")
	if err := os.WriteFile(r.key, key.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	need.Judge(t, "ip", "netns", "add", r.ns)
	t.Cleanup(func() { need.Judge(t, "ip", "netns", "del", r.ns) })
	script := "ip link set lo up; ip link add br0 type bridge; ip addr add " + roomAddress + "/24 dev br0; ip link set br0 up"
	if out, err := r.inside(t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := fmt.Sprintf(`apiVersion: kimage.dev/v1alpha1
kind: Cluster
metadata: {name: room}
spec:
  os: %s
  network: {nodes: [192.168.77.0/24]}
  machine: {ssh: {authorizedKeys: [%q]}}
  nodes:
  - {name: k8s-01, roles: [etcd, master, worker], address: 192.168.77.101, match: {mac: "52:54:00:17:08:01"}}
%s`, r.os, key.Public, more)
	if err := os.WriteFile(filepath.Join(r.dir, "cluster.yaml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	if len(serve) == 0 {
		r.dnsmasq()
	}
	r.serve(serve...)
	return r
}

// dnsmasq is the DHCP server that was there before.
func (r *room) dnsmasq() {
	r.t.Helper()
	need.Program(r.t, "dnsmasq", "dnsmasq-base")
	// On another computer: it has another one's network.
	other := r.ns + "-dhcp"
	need.Judge(r.t, "ip", "netns", "add", other)
	r.t.Cleanup(func() { need.Judge(r.t, "ip", "netns", "del", other) })
	script := "ip link add dhcp0 type veth peer name eth0 netns " + other + "; ip link set dhcp0 master br0 up"
	if out, err := r.inside(r.t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	need.Judge(r.t, "ip", "-n", other, "addr", "add", "192.168.77.2/24", "dev", "eth0")
	need.Judge(r.t, "ip", "-n", other, "link", "set", "eth0", "up")
	cmd := exec.Command("ip", "netns", "exec", other, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--interface=eth0", "--bind-interfaces", "--port=0",
		"--dhcp-leasefile="+filepath.Join(r.dir, "dnsmasq.leases"), "--dhcp-range=192.168.77.0,static", "--dhcp-host=52:54:00:17:08:01,192.168.77.101", "--log-dhcp", "--log-facility=-")
	cmd.Stdout, cmd.Stderr = r, r
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// serve runs kimage serve until the test ends.
func (r *room) serve(args ...string) {
	r.t.Helper()
	program, err := filepath.Abs("../bin/kimage")
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := r.inside(ctx, append([]string{program, "serve", "--interface", "br0", "--image", r.raw}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	cmd.Stdout, cmd.Stderr = r, r
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.pid = cmd.Process.Pid // ip becomes what it runs
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r.ended = ended
	r.t.Cleanup(func() {
		cancel()
		<-ended
		if r.t.Failed() {
			r.t.Logf("kimage serve:\n%s", r.words())
		}
	})
	r.until("Ctrl-C ends", 5*time.Minute)
}

// until waits for words of kimage serve.
func (r *room) until(words string, limit time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(limit); !strings.Contains(r.words(), words); time.Sleep(time.Second) {
		select {
		case err := <-r.ended:
			r.ended <- err // for who waits at the end
			r.t.Fatalf("kimage serve has ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			r.t.Fatalf("not within %s: %q", limit, words)
		}
	}
}

// phase is how far a machine is.
func (r *room) phase(name string) string {
	out, err := r.inside(r.t.Context(), "curl", "--silent", "--max-time", "5", r.url+"/status.json").Output()
	if err != nil {
		return err.Error()
	}
	var s struct {
		Machines []struct{ Name, Phase, Why string }
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return fmt.Sprintf("%s, %v", out, err)
	}
	for _, m := range s.Machines {
		if m.Name == name {
			return strings.TrimSpace(m.Phase + " " + m.Why)
		}
	}
	return fmt.Sprintf("%s is not in %s", name, out)
}

// metalMachine is a machine with an empty disk, and the network first in its boot order.
type metalMachine struct {
	*room
	number        int
	name, address string
	cpus, memory  int // MiB
	disk, console string
	firmware      []string
	accel         []string // qemu's options, of how it is emulated
	cmd           *exec.Cmd
}

// machine is the one with a number in the cluster file.
func (r *room) machine(number int, firmware string) *metalMachine {
	r.t.Helper()
	name := fmt.Sprintf("k8s-%02d", number)
	m := &metalMachine{room: r, number: number, name: name, address: fmt.Sprintf("192.168.77.%d", 100+number), cpus: 2, memory: 4096, accel: qemu.Pace(),
		disk: filepath.Join(r.dir, name+".qcow2"), console: filepath.Join(r.dir, name+".log")}
	if out, err := r.inside(r.t.Context(), "sh", "-ec", fmt.Sprintf("ip tuntap add tap%[1]d mode tap; ip link set tap%[1]d master br0 up", number)).CombinedOutput(); err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	need.Judge(r.t, "qemu-img", "create", "-q", "-f", "qcow2", m.disk, "20G")
	if firmware == qemu.UEFI {
		vars := filepath.Join(r.dir, name+".fd")
		need.Judge(r.t, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
		m.firmware = []string{"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,file=" + vars}
	}
	r.t.Cleanup(func() {
		m.off()
		if log, err := os.ReadFile(m.console); err == nil && r.t.Failed() {
			r.t.Logf("console of %s:\n%s", name, lastLines(string(log), 60))
		}
	})
	return m
}

// on switches the machine on.
func (m *metalMachine) on() {
	m.t.Helper()
	argv := append([]string{"qemu-system-x86_64", "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory), "-display", "none", "-nodefaults", "-no-user-config",
		"-serial", "file:" + m.console, "-device", "virtio-rng-pci", "-uuid", fmt.Sprintf("5a1b2c3d-0000-4000-8000-0000000000%02d", m.number),
		"-netdev", fmt.Sprintf("tap,id=n,ifname=tap%d,script=no,downscript=no", m.number), "-device", fmt.Sprintf("virtio-net-pci,netdev=n,mac=52:54:00:17:08:%02d,bootindex=1", m.number),
		"-drive", "if=none,id=d,format=qcow2,cache=unsafe,discard=unmap,file=" + m.disk, "-device", "virtio-blk-pci,drive=d,serial=DISK1,bootindex=2"}, m.firmware...)
	m.cmd = m.inside(context.Background(), append(argv, m.accel...)...)
	m.cmd.Stdout, m.cmd.Stderr = m.room, m.room
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

// off cuts its power.
func (m *metalMachine) off() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		m.cmd = nil
	}
}

func (m *metalMachine) awaitPhase(want string, limit time.Duration) {
	m.t.Helper()
	for end := time.Now().Add(slack * limit); !strings.HasPrefix(m.phase(m.name), want); time.Sleep(2 * time.Second) {
		if time.Now().After(end) {
			m.t.Fatalf("%s is not %s within %s, but %s", m.name, want, limit, m.phase(m.name))
		}
	}
}

// ssh runs a command on the machine, which has to succeed.
func (m *metalMachine) ssh(command string) string {
	m.t.Helper()
	out, err := m.try(command)
	if err != nil {
		m.t.Errorf("%s: %v\n%s", command, err, out)
	}
	return out
}

// try returns what a command on the machine prints.
func (m *metalMachine) try(command string) (string, error) {
	out, err := m.inside(m.t.Context(), "ssh", "-q", "-i", m.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60", m.who+"@"+m.address, command).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// installs switches a machine on that is to be installed, and waits until it is Ready.
func (m *metalMachine) installs() {
	m.t.Helper()
	started := time.Now()
	m.on()
	m.awaitPhase("boots the installer", 3*time.Minute)
	m.awaitPhase("installing", 8*time.Minute) // a live system is large
	m.awaitPhase("installed", 10*time.Minute)
	m.t.Logf("installed %s after power-on", time.Since(started).Round(time.Second))
	m.awaitPhase("ready", 15*time.Minute)
	m.t.Logf("Ready %s after power-on", time.Since(started).Round(time.Second))
}

// powerCycles switches the machine off and on, and wants it to boot its disk each time.
func (m *metalMachine) powerCycles(n int) {
	m.t.Helper()
	for range n {
		m.off()
		before := strings.Count(m.words(), "k8s-01: boots its disk")
		m.on()
		for end := time.Now().Add(slack * 4 * time.Minute); strings.Count(m.words(), "k8s-01: boots its disk") == before; time.Sleep(time.Second) {
			if time.Now().After(end) {
				m.t.Fatal("it does not boot its disk")
			}
		}
	}
	m.awaitPhase("ready", 15*time.Minute)
	if n := strings.Count(m.words(), "k8s-01: installing: to vda"); n != 1 {
		m.t.Errorf("installed %d times", n)
	}
}

// replaces releases the machine, which is the whole of etcd, and has it installed once more.
func (m *metalMachine) replaces() {
	m.t.Helper()
	program, err := filepath.Abs("../bin/kimage")
	if err != nil {
		m.t.Fatal(err)
	}
	if out, err := m.inside(m.t.Context(), program, "replace", "k8s-01").CombinedOutput(); err == nil || !strings.Contains(string(out), "only etcd member") {
		m.t.Errorf("%v: %s", err, out)
	}
	if out, err := m.inside(m.t.Context(), program, "replace", "k8s-01", "--yes").CombinedOutput(); err != nil {
		m.t.Errorf("%v: %s", err, out)
	}
	m.off()
	m.on()
	m.awaitPhase("installing", 5*time.Minute)
	m.awaitPhase("installed", 10*time.Minute)
}

// TestServe: a machine with an empty disk, whose BIOS tries the network first, is installed
// by the only DHCP server there is, and becomes a cluster. After that it boots its disk,
// however often it is switched on, until it is released.
func TestServe(t *testing.T) {
	enough(t, 2, "make e2e")
	m := newRoom(t, "--dhcp-range", "192.168.77.101-192.168.77.150").machine(1, qemu.BIOS)
	m.installs()
	if out := m.ssh("findmnt -no SOURCE /; sudo kimage-agent status >/dev/null && echo well"); out != "/dev/vda1\nwell" {
		t.Error(out)
	}
	m.powerCycles(5)
	m.replaces()
}

// TestServeUEFI: as TestServe, by UEFI and beside a DHCP server that knows nothing of it.
func TestServeUEFI(t *testing.T) {
	enough(t, 2, "make e2e")
	m := newRoom(t).machine(1, qemu.UEFI)
	m.installs()
	m.powerCycles(1)
}

// TestServeUbuntu: as TestServe, of Ubuntu's lookalike with its own first boot.
func TestServeUbuntu(t *testing.T) {
	t.Parallel()
	disk := lookalike(t, "ubuntu")
	baked := bakeOnto(t, nil, "--os", "ubuntu-24.04", "--base", disk)
	keepsUbuntus(t, disk, baked)
	m := newRoomOf(t, "", "ubuntu-24.04", "ubuntu", baked, "--dhcp-range", "192.168.77.101-192.168.77.150").machine(1, qemu.BIOS)
	m.installs()
	if out := m.ssh("cloud-init status --long >/dev/null && systemctl --failed --no-legend --plain && sudo kimage-agent status >/dev/null && echo well"); out != "well" {
		t.Error(out)
	}
	if got := strings.Join(strings.Fields(m.ssh(ubuntuAsks)), " "); got != ubuntuSays {
		t.Errorf("file systems, and the size that the root grew to: %s", got)
	}
	if os.Getenv("CI") == "" { // it was sent to its disk once, behind the installation
		m.powerCycles(1)
	}
}
