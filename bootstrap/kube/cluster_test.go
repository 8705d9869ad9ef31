//go:build integration

package kube

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/kubeapi"
	"github.com/kimage-project/kimage/pkg/pki"
)

// TestMain: the test program is also a machine, and enters namespaces of its
// own first: nothing of it is seen outside, and nothing outside is in its way.
func TestMain(m *testing.M) {
	if file := os.Getenv("KIMAGE_TEST_MACHINE"); file != "" {
		log.SetFlags(log.Ltime | log.Lmicroseconds)
		if err := runMachine(file); err != nil {
			log.Fatal(err)
		}
		return
	}
	if os.Getenv("KIMAGE_TEST_INSIDE") == "" {
		cmd := exec.Command("unshare", append([]string{"--mount", "--net", "--propagation=private", "--", os.Args[0]}, os.Args[1:]...)...)
		cmd.Env = append(os.Environ(), "KIMAGE_TEST_INSIDE=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "inside namespaces, which need root:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const switchAddress = "172.17.8.1"

// cluster is a switch, an etcd behind it, and machines.
type cluster struct {
	*testing.T
	dir      string
	secrets  map[string][]byte // by name below nodeconf.PKIDir
	peers    nodeconf.Peers
	masters  []nodeconf.Master
	serial   int    // of the roster
	settings string // kubeadm's, JSON
	running  map[string]*exec.Cmd
	deadly   bool   // machines that start from now on lose their power after each new step
	version  string // of Kubernetes in the image of machines that start from now on; empty: the newest
}

func newCluster(t *testing.T, peers nodeconf.Peers) *cluster {
	c := &cluster{T: t, dir: t.TempDir(), secrets: map[string][]byte{}, peers: peers, serial: 1, running: map[string]*exec.Cmd{},
		// A dead machine, and a dead controller manager, are noticed sooner than in real life.
		settings: `{"controllerManager":{"extraArgs":[{"name":"node-monitor-grace-period","value":"12s"},{"name":"node-monitor-period","value":"2s"},
			{"name":"leader-elect-lease-duration","value":"6s"},{"name":"leader-elect-renew-deadline","value":"4s"},{"name":"leader-elect-retry-period","value":"1s"}]}}`}
	for _, p := range peers.Nodes {
		if strings.HasPrefix(p.Name, "m") {
			c.masters = append(c.masters, nodeconf.Master{Name: p.Name, Address: p.Addresses[0]})
		}
	}
	c.programs()
	c.makeSecrets()
	c.sh("ip link set lo up; ip link add br0 type bridge; ip addr add " + switchAddress + "/24 dev br0; ip link set br0 up")
	c.etcd()
	t.Cleanup(func() {
		for name := range c.running {
			c.kill(name)
		}
		if t.Failed() {
			c.tails()
		}
		c.sh("ip link del br0")
	})
	return c
}

func (c *cluster) sh(script string) {
	c.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		c.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// programs puts what machines run on a PATH of their own.
func (c *cluster) programs() {
	bin := filepath.Join(c.dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		c.Fatal(err)
	}
	for _, name := range []string{"kubeadm", "kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "etcdctl", "flanneld"} {
		p := program(c.T, name)
		if p == "" {
			c.Fatalf("no %s on this machine: bake an image from source first (kimage build)", name)
		}
		if err := os.Symlink(p, filepath.Join(bin, name)); err != nil {
			c.Fatal(err)
		}
	}
	systemctl := "#!/bin/sh\ncase $1 in\nstart|restart) touch /run/kubelet.on ;;\nstop) rm -f /run/kubelet.on ;;\nis-active) [ -e /run/kubelet.on ] && echo active || echo inactive ;;\nesac\n"
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(systemctl), 0o755); err != nil {
		c.Fatal(err)
	}
	c.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

func (c *cluster) makeSecrets() {
	const algorithm = "ECDSA-P256"
	now := time.Now()
	must := func(p pki.Pair, err error) pki.Pair {
		if err != nil {
			c.Fatal(err)
		}
		return p
	}
	put := func(name string, p pki.Pair) { c.secrets[name+".crt"], c.secrets[name+".key"] = p.Cert, p.Key }
	ca, etcd := must(pki.NewCA("kubernetes", "test", algorithm, now)), must(pki.NewCA("etcd", "test", algorithm, now))
	put(nodeconf.ClusterCA, ca)
	put(nodeconf.EtcdCA, etcd)
	put(nodeconf.FrontProxyCA, must(pki.NewCA("front-proxy", "test", algorithm, now)))
	put(nodeconf.EtcdServer, must(etcd.Issue(pki.Request{CommonName: "etcd", Names: []string{"127.0.0.1", switchAddress}, Server: true}, algorithm, now)))
	put(nodeconf.APIServerEtcd, must(etcd.Issue(pki.Request{CommonName: "apiserver", Client: true}, algorithm, now)))
	put("admin", must(ca.Issue(pki.Request{CommonName: "test", Organization: []string{"system:masters"}, Client: true}, algorithm, now)))
	sa, err := pki.NewKey(algorithm)
	if err != nil {
		c.Fatal(err)
	}
	public, err := pki.Public(sa)
	if err != nil {
		c.Fatal(err)
	}
	c.secrets[nodeconf.ServiceAccountKey], c.secrets[nodeconf.ServiceAccountPub] = sa, public
	c.secrets[nodeconf.EncryptionKey] = []byte(base64.StdEncoding.EncodeToString([]byte(strings.Repeat("e", 32))) + "\n")
	c.secrets[nodeconf.JoinKey] = []byte(base64.StdEncoding.EncodeToString([]byte(strings.Repeat("j", 32))) + "\n")
	for name, data := range c.secrets {
		writeFile(c.T, filepath.Join(c.dir, "pki", name), string(data))
	}
}

func (c *cluster) etcd() {
	url := "https://" + switchAddress + ":2379"
	p := filepath.Join(c.dir, "pki")
	cmd := exec.Command("etcd", "--data-dir="+c.dir+"/etcd", "--listen-client-urls="+url, "--advertise-client-urls="+url, "--listen-peer-urls=http://127.0.0.1:2380",
		"--client-cert-auth", "--trusted-ca-file="+p+"/etcd-ca.crt", "--cert-file="+p+"/etcd-server.crt", "--key-file="+p+"/etcd-server.key", "--unsafe-no-fsync", "--log-level=error")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
}

// etcdGet is what etcd holds at a key, as it is.
func (c *cluster) etcdGet(key string) string {
	p := filepath.Join(c.dir, "pki")
	out, err := exec.Command("etcdctl", "--endpoints=https://"+switchAddress+":2379", "--cacert="+p+"/etcd-ca.crt", "--cert="+p+"/apiserver-etcd-client.crt",
		"--key="+p+"/apiserver-etcd-client.key", "get", "--print-value-only", key).Output()
	if err != nil {
		c.Fatal(err)
	}
	return string(out)
}

// roster writes the list of machines, from which every machine reads it.
func (c *cluster) roster() (file string) {
	c.Helper()
	data, err := json.Marshal(nodeconf.Roster{Generation: 1, Serial: c.serial, Masters: c.masters, Peers: c.peers})
	if err != nil {
		c.Fatal(err)
	}
	file = filepath.Join(c.dir, "roster.json")
	if err := atomicfile.Write(file, data, 0o644); err != nil {
		c.Fatal(err)
	}
	return file
}

// start boots a machine: of peers' name, or of a pool. What is on its disk stays.
func (c *cluster) start(name, address string, node nodeconf.Node) {
	c.Helper()
	dir := filepath.Join(c.dir, name)
	master := node.Has(nodeconf.RoleMaster)
	node.Addresses = []string{address}
	m := machine{Dir: dir, Name: name, Address: address, Roster: c.roster(), Etcd: switchAddress + ":2379", Deadly: c.deadly, Config: nodeconf.Config{
		Cluster: nodeconf.Cluster{Name: "demo", UID: "uid-1"}, Node: node,
		Image: nodeconf.Image{Kubernetes: cmp.Or(c.version, "v1.37.2"), Plugin: "flannel"},
		Network: nodeconf.Network{Pods: []string{"10.244.0.0/16"}, Services: []string{"10.96.0.0/12"}, DNSDomain: "cluster.local", DNS: []string{"10.96.0.10"},
			Nodes: []string{"172.17.8.0/24"}}}}
	who := name
	if node.Pool != "" {
		who = node.Pool
	}
	writeFile(c.T, filepath.Join(dir, "kimage/token"), nodeconf.Token([]byte(strings.TrimSpace(string(c.secrets[nodeconf.JoinKey]))), node.Pool != "", who)+"\n")
	secrets := []string{"ca.crt"}
	if master {
		m.Config.Kubeadm = raw(c.settings)
		secrets = []string{"ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub", "etcd-ca.crt", "apiserver-etcd-client.crt", "apiserver-etcd-client.key",
			"encryption.key", "join.key"}
	}
	for _, s := range secrets {
		writeFile(c.T, filepath.Join(dir, "kimage/pki", s), string(c.secrets[s]))
	}
	flannel, err := os.ReadFile("../../images/files/payload/flannel.yaml")
	if err != nil {
		c.Fatal(err)
	}
	writeFile(c.T, filepath.Join(dir, "payload/flannel.yaml"), strings.ReplaceAll(string(flannel), "@FLANNEL@", "flannel:test"))
	data, err := json.Marshal(m)
	if err != nil {
		c.Fatal(err)
	}
	writeFile(c.T, filepath.Join(dir, "machine.json"), string(data))
	out, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		c.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--propagation=private", "--", os.Args[0])
	cmd.Env = append(os.Environ(), "KIMAGE_TEST_MACHINE="+filepath.Join(dir, "machine.json"))
	if c.version != "" {
		cmd.Env = append(cmd.Env, "PATH="+filepath.Join(c.dir, "bin-"+c.version)+":"+os.Getenv("PATH"))
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.running[name] = cmd
	time.Sleep(200 * time.Millisecond) // until unshare is in its namespaces
	link := "v" + name[max(0, len(name)-8):]
	c.sh(fmt.Sprintf("ip link add %s type veth peer name eth0 netns %d; ip link set %s master br0 up", link, cmd.Process.Pid, link))
}

// kill is a power cut.
func (c *cluster) kill(name string) {
	c.Helper()
	cmd := c.running[name]
	cmd.Process.Kill()
	cmd.Wait()
	delete(c.running, name)
	exec.Command("ip", "link", "del", "v"+name[max(0, len(name)-8):]).Run()
}

// wipe is a new image.
func (c *cluster) wipe(name string) {
	c.Helper()
	if err := os.RemoveAll(filepath.Join(c.dir, name, "disk")); err != nil {
		c.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(c.dir, name, "work")); err != nil {
		c.Fatal(err)
	}
}

// tails shows the ends of all logs.
func (c *cluster) tails() {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*/log"))
	for _, l := range logs {
		out, _ := exec.Command("tail", "-n", "60", l).Output()
		c.Logf("%s:\n%s", l, out)
	}
}

// admin talks to the API server of a master.
func (c *cluster) admin(address string) *kubeapi.Client {
	return c.as(address, kubeapi.Config{Cert: c.secrets["admin.crt"], Key: c.secrets["admin.key"]})
}

func (c *cluster) as(address string, conf kubeapi.Config) *kubeapi.Client {
	c.Helper()
	conf.Server, conf.CA, conf.Timeout = "https://"+address+":6443", c.secrets["ca.crt"], 10*time.Second
	client, err := kubeapi.New(conf)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(client.Close)
	return client
}

// until waits for what ask says.
func (c *cluster) until(what string, limit time.Duration, ask func(ctx context.Context) error) {
	c.Helper()
	started := time.Now()
	var err error
	for time.Since(started) < limit {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err = ask(ctx)
		cancel()
		if err == nil {
			c.Logf("%5.1f s: %s", time.Since(started).Seconds(), what)
			return
		}
		time.Sleep(300 * time.Millisecond)
	}
	c.Fatalf("not within %s: %s: %v", limit, what, err)
}
