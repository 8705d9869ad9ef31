//go:build integration

package kube

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// machine is one machine of a test: namespaces of its own for mounts, network
// and processes, and in them the loop of the agent, kubeadm, the control plane's
// programs as kubeadm's static pods name them, and a kubelet that registers its
// Node and starts no containers.
type machine struct {
	Dir      string // its disk
	Name     string
	Address  string
	Config   nodeconf.Config
	Roster   string // file with the list of machines
	Etcd     string // HOST:PORT
	Settings map[string]string
	Deadly   bool // the power is cut after each step that it takes for the first time, see deaths
}

// runMachine is the machine's first process.
func runMachine(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var m machine
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	if os.Getenv("KIMAGE_TEST_IDLE") != "" {
		return m.idle()
	}
	if err := m.boot(); err != nil {
		return err
	}
	go m.balance(APIEndpoint, func() []string { return readyFirst(m.roster().Masters) })
	go m.balance(EtcdEndpoint, func() []string { return []string{m.Etcd} })
	go m.pretendRuntime()
	go m.kubelet()
	n, err := New(Config{Node: m.Config, Name: m.Name, Addresses: []string{m.Address}, Roster: m.roster,
		Logf: log.Printf, IgnoreChecks: []string{"all"}})
	if err != nil {
		return err
	}
	if m.Deadly {
		deaths{m.Dir}.arrange(n)
	}
	before := ""
	pause := time.Second
	for ctx := context.Background(); ; time.Sleep(pause) {
		a := Decide(n.Observe(ctx))
		if line := string(a.Verb) + " " + a.Why; line != before {
			log.Print("DECIDE ", line)
			before = line
		}
		pause = time.Second
		if err := n.Apply(ctx, a); err != nil {
			log.Printf("APPLY %s: %v", a.Verb, err)
		} else if a.Verb != Wait && a.Verb != Keep {
			n.tellChanged(string(a.Verb))
			pause = 0 // as the agent does
		}
	}
}

func (m machine) roster() (r nodeconf.Roster) {
	data, err := os.ReadFile(m.Roster)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		log.Print(err)
	}
	return r
}

// boot makes the machine's places its own, and connects it.
func (m machine) boot() error {
	script := `set -e
for i in $(seq 100); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.1; done
ip link set lo up; ip addr add "$ADDRESS/24" dev eth0; ip link set eth0 up
# A second card, of the same address on every machine, has the default route.
ip link add nat0 type veth peer name nat1; ip link set nat1 up; ip addr add 10.0.2.15/24 dev nat0; ip link set nat0 up; ip route add default via 10.0.2.2 dev nat0
for d in /etc /var/lib; do
	mkdir -p "$DIR/disk$d" "$DIR/work$d"
	mount -t overlay overlay -o "lowerdir=$d,upperdir=$DIR/disk$d,workdir=$DIR/work$d" $d
done
mount -t tmpfs tmpfs /run
mkdir -p /run/containerd /usr/share/kimage 2>/dev/null || true
mount -t tmpfs tmpfs /usr/share/kimage
cp "$DIR/payload/"* /usr/share/kimage/
rm -rf /etc/kimage && cp -a "$DIR/kimage" /etc/kimage
hostname "$NAME"
[ ! -e /var/lib/kubelet/config.yaml ] || touch /run/kubelet.on`
	cmd := exec.Command("sh", "-c", script)
	cmd.Env = append(os.Environ(), "DIR="+m.Dir, "NAME="+m.Name, "ADDRESS="+m.Address)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// readyFirst is a balancer's list of API servers: those that are ready, then the others.
func readyFirst(masters []nodeconf.Master) (list []string) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	var rest []string
	for _, x := range masters {
		server := net.JoinHostPort(x.Address, apiPort)
		if answer, err := c.Get("https://" + server + "/readyz"); err == nil && answer.StatusCode == 200 {
			list = append(list, server)
		} else {
			rest = append(rest, server)
		}
	}
	return append(list, rest...)
}

func (m machine) balance(listen string, backends func() []string) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			for _, b := range backends() {
				s, err := net.DialTimeout("tcp", b, 2*time.Second)
				if err != nil {
					continue
				}
				defer s.Close()
				go func() { io.Copy(s, c); s.Close() }()
				io.Copy(c, s)
				return
			}
		}()
	}
}

// pretendRuntime answers on the runtime's socket, and says nothing.
func (m machine) pretendRuntime() {
	l, err := net.Listen("unix", criSocket)
	if err != nil {
		log.Fatal(err)
	}
	for {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	}
}
