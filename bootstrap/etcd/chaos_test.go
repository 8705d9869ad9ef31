//go:build chaos

package etcd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/gobuild"
	"github.com/kimage-project/kimage/pkg/run"
)

var chaosSchedules = flag.Int("chaos", 12, "how many schedules on real etcd; -seed N: that one only")

const etcdVersion = "v3.7.3"

// programs builds etcd, etcdutl and etcdctl once, from the module proxy.
func programs(t *testing.T) map[string]string {
	t.Helper()
	return programsOf(t, etcdVersion, "etcd", "etcdutl", "etcdctl")
}

func programsOf(t *testing.T, version string, names ...string) map[string]string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "kimage-test", "etcd-"+version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range names {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err != nil {
			t.Logf("building %s %s", name, version)
			module := "go.etcd.io/etcd/" + name + "/v3"
			if name == "etcd" {
				module = "go.etcd.io/etcd/server/v3"
			}
			tmp := filepath.Join(t.TempDir(), name)
			if err := (gobuild.Build{Module: module, Version: version, Package: module}).Run(t.Context(), t.TempDir(), tmp, nil); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(tmp)
			if err == nil {
				err = os.WriteFile(file+".new", data, 0o755)
			}
			if err == nil {
				err = os.Rename(file+".new", file)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		out[name] = file
	}
	return out
}

// chaosMachine is a machine, with the agent that is running on it.
type chaosMachine struct {
	chaosNode
	ns    string
	agent *exec.Cmd
	gone  chan struct{} // closed when the agent has ended
	away  bool          // KIMAGE is not mounted
	armed bool          // power is cut in the first moments of the next etcd
	old   int           // the etcd that ran when that was said
	off   bool          // nobody has switched it on, or it is destroyed
}

// chaos is one schedule.
type chaos struct {
	t        *testing.T
	r        *rand.Rand
	ns       string // of the switch; the machines' begin with it
	key      ed25519.PrivateKey
	roster   nodeconf.Roster // the newest
	machines []*chaosMachine
	etcdctl  string
	check    checker
	acked    string // file of the client's, see write
	lost     int    // disks and data that may still be lost
	cuts     int    // of power, in etcd's first moments
	log      []string
	undo     []func()
}

func (c *chaos) note(format string, args ...any) {
	c.log = append(c.log, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// ip runs an ip command, for the network namespaces of this schedule only.
func (c *chaos) ip(args ...string) error {
	return run.Run(context.Background(), run.Cmd{Argv: append([]string{"ip"}, args...)})
}

func (c *chaos) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// newChaos makes machines a, b, c, ..., of which the first three found.
func newChaos(t *testing.T, seed uint64, programs map[string]string, machines int) *chaos {
	c := &chaos{t: t, r: rand.New(rand.NewPCG(seed, 2)), ns: fmt.Sprintf("kimage-%d-%d", os.Getpid(), seed), etcdctl: programs["etcdctl"],
		check: checker{incarnation: map[uint64]string{}, member: map[string]uint64{}, history: map[uint64]*history{}}}
	c.lost = []int{0, 1, 1, 2, 3}[c.r.IntN(5)]
	dir := t.TempDir()
	t.Cleanup(c.end)
	c.must(c.ip("netns", "add", c.ns))
	c.must(c.ip("-n", c.ns, "link", "add", "name", "switch", "type", "bridge"))
	c.must(c.ip("-n", c.ns, "link", "set", "dev", "switch", "up"))
	c.key = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	cluster := nodeconf.Cluster{Name: "chaos", UID: fmt.Sprint("chaos-", seed), RosterKey: base64.StdEncoding.EncodeToString(c.key.Public().(ed25519.PublicKey)), Issued: time.Now().Add(-time.Hour)}
	c.roster = nodeconf.Roster{ClusterUID: cluster.UID, Generation: 1, Serial: 1, Issued: cluster.Issued, Founding: []string{"a", "b", "c"}}
	for i := range machines {
		name, address := string(rune('a'+i)), fmt.Sprintf("10.99.0.%d", i+1)
		c.machines = append(c.machines, &chaosMachine{ns: c.ns + name, chaosNode: chaosNode{Name: name, Address: address, Dir: filepath.Join(dir, name), Cluster: cluster, Etcd: programs["etcd"]}})
	}
	signed := c.sign(c.machines[:3])
	etcdCA, peerCA := newAuthority(t, "etcd"), newAuthority(t, "peer")
	for _, m := range c.machines {
		m.Roster = signed
		c.connect(m.ns, m.Name+"0", m.Address)
		pki := filepath.Join(m.Dir, "pki")
		c.must(os.MkdirAll(pki, 0o700))
		c.must(os.WriteFile(filepath.Join(pki, nodeconf.EtcdCA+".crt"), etcdCA.pem, 0o600))
		c.must(os.WriteFile(filepath.Join(pki, nodeconf.PeerCA+".crt"), peerCA.pem, 0o600))
		etcdCA.issue(t, filepath.Join(pki, nodeconf.EtcdServer), m.Name, m.Address)
		etcdCA.issue(t, filepath.Join(pki, nodeconf.EtcdAgent), m.Name, m.Address)
		peerCA.issue(t, filepath.Join(pki, nodeconf.EtcdPeer), m.Name, m.Address)
		// etcdutl takes its time, so that founding is hit too.
		m.Etcdutl = filepath.Join(m.Dir, "etcdutl")
		c.must(os.WriteFile(m.Etcdutl, fmt.Appendf(nil, "#!/bin/sh\nsleep 0.%d\n%s \"$@\" || exit\nsleep 0.%d\n", c.r.IntN(10), programs["etcdutl"], c.r.IntN(10)), 0o700))
		c.tell(m)
		c.image(m)
	}
	return c
}

// connect makes a network namespace that is connected to the switch.
func (c *chaos) connect(ns, port, address string) {
	c.must(c.ip("netns", "add", ns))
	c.must(c.ip("-n", ns, "link", "add", "name", "eth0", "type", "veth", "peer", "name", port, "netns", c.ns))
	c.must(c.ip("-n", c.ns, "link", "set", "dev", port, "master", "switch", "up"))
	c.must(c.ip("-n", ns, "link", "set", "dev", "lo", "up"))
	c.must(c.ip("-n", ns, "link", "set", "dev", "eth0", "up"))
	c.must(c.ip("-n", ns, "address", "add", address+"/24", "dev", "eth0"))
}

// sign makes these machines the members of the roster.
func (c *chaos) sign(members []*chaosMachine) nodeconf.SignedRoster {
	old := c.roster
	c.roster.Members = nil
	for _, m := range members {
		c.roster.Members = append(c.roster.Members, nodeconf.Member{Name: m.Name, PeerURL: "https://" + m.Address + ":2380"})
	}
	slices.SortFunc(c.roster.Members, func(a, b nodeconf.Member) int { return strings.Compare(a.Name, b.Name) })
	c.roster.Left = c.roster.Without(old)
	signed, err := c.roster.Sign(c.key)
	c.must(err)
	return signed
}

// end ends every process of the schedule, and its namespaces.
func (c *chaos) end() {
	for _, m := range c.machines {
		c.kill(m)
		c.killEtcd(m)
		c.ip("netns", "delete", m.ns)
	}
	c.ip("netns", "delete", c.ns)
}

// lookLast reads all data, before some of it is removed, or at the end.
func (c *chaos) lookLast() {
	c.t.Helper()
	c.must(c.check.look(c.machines))
	c.must(c.check.read(c.machines))
}

// image gives a machine an empty disk.
func (c *chaos) image(m *chaosMachine) {
	c.lookLast()
	c.must(os.RemoveAll(m.disk()))
	c.must(os.RemoveAll(filepath.Join(m.Dir, "disk.away")))
	m.away = false
	c.must(os.MkdirAll(m.disk(), 0o700))
	c.must(os.WriteFile(filepath.Join(m.disk(), isKIMAGE), nil, 0o600))
}

func (c *chaos) boot(m *chaosMachine) {
	if m.agent != nil {
		select {
		case <-m.gone:
			m.agent = nil
		default:
			return
		}
	}
	out, err := os.OpenFile(filepath.Join(m.Dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	c.must(err)
	defer out.Close()
	cmd := exec.Command("ip", "netns", "exec", m.ns, os.Args[0])
	cmd.Env = append(os.Environ(), "KIMAGE_CHAOS_AGENT="+filepath.Join(m.Dir, "node.json"))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.must(cmd.Start())
	gone := make(chan struct{})
	m.agent, m.gone = cmd, gone
	go func() { cmd.Wait(); close(gone) }()
}

func (c *chaos) kill(m *chaosMachine) {
	if m.agent != nil {
		m.agent.Process.Kill()
		<-m.gone
		m.agent = nil
	}
}

func (c *chaos) killEtcd(m *chaosMachine) {
	for _, state := range []string{m.state(), filepath.Join(m.Dir, "disk.away", "state")} {
		for pid := etcdOf(state); pid != 0; pid = etcdOf(state) {
			syscall.Kill(pid, syscall.SIGKILL)
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// later undoes a fault after at most d.
func (c *chaos) later(undo func()) { c.undo = append(c.undo, undo) }

// wait lets time pass, boots what is down, and cuts the power where it was said.
func (c *chaos) wait(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, m := range c.machines {
			if m.armed {
				if pid := etcdStarted(m.state()); pid != 0 && pid != m.old {
					m.armed = false
					c.cuts++
					time.Sleep(time.Duration(c.r.IntN(100)) * time.Millisecond)
					c.note("%s: power cut in etcd's first moments", m.Name)
					c.kill(m)
					c.killEtcd(m)
				}
			}
		}
	}
	for _, m := range c.machines {
		if !m.off {
			c.boot(m)
		}
		// What a person does who reads it.
		if s := m.said(); !m.away && strings.HasPrefix(s, string(Stop)) && strings.Contains(s, "remove the directory too") {
			dir := strings.Fields(s)[1]
			c.note("%s: a person removes %s", m.Name, dir)
			c.killEtcd(m)
			c.lookLast()
			c.must(os.RemoveAll(dir))
		}
	}
	c.must(c.check.look(c.machines))
}

func (m *chaosMachine) said() string {
	data, _ := os.ReadFile(filepath.Join(m.Dir, "said"))
	return string(data)
}

// allServe is how a schedule ends in which no majority was lost.
const allServe = "all members serve"

// founded says whether the schedule ended as it must: all members whose data is
// not lost run and a quorum of them serves; or a majority is lost, and all say so.
func (c *chaos) founded() (bool, string) {
	c.must(c.check.look(c.machines))
	running, lost := 0, 0
	for _, m := range c.machines {
		switch s := m.said(); {
		case strings.Contains(s, "a majority was lost"):
			lost++
		case strings.HasPrefix(s, string(Keep)):
			running++
		default:
			return false, ""
		}
	}
	if lost == 3 {
		return true, "a majority was lost, and all say so"
	}
	if running < 3 {
		return false, ""
	}
	for _, m := range c.machines {
		if !strings.HasPrefix(m.said(), string(Keep)) {
			continue
		}
		if _, err := c.ctl(m, "put", "from-"+m.Name, m.Name); err != nil {
			return false, ""
		}
		out, err := c.ctl(m, "member", "list")
		if err != nil || strings.Count(string(out), ", started, ") != 3 || strings.Count(string(out), ", false\n") != 3 {
			return false, ""
		}
		out, err = c.ctl(m, "endpoint", "status", "--write-out=json")
		var status []struct {
			Status struct {
				Header struct {
					Cluster uint64 `json:"cluster_id"`
					Member  uint64 `json:"member_id"`
				} `json:"header"`
			}
		}
		if err != nil || json.Unmarshal(out, &status) != nil || len(status) != 1 {
			return false, ""
		}
		// etcd, its files and the record must speak of the same cluster.
		c.must(c.check.look(c.machines))
		pin := struct{ ID, Incarnation string }{}
		data, err := os.ReadFile(filepath.Join(m.state(), factsDir, clusterFile))
		c.must(err)
		c.must(json.Unmarshal(data, &pin))
		if h := status[0].Status.Header; hexID(h.Cluster) != pin.ID || c.check.member[pin.Incarnation] != h.Member {
			c.t.Errorf("%s: etcd says cluster %x, member %x; recorded are %s, %x", m.Name, h.Cluster, h.Member, pin.ID, c.check.member[pin.Incarnation])
		}
	}
	return true, allServe
}

// TestEtcdMakesNoData: an etcd whose data was removed between the agent's last
// look and its start must not come back as the member that it was. It knows
// nobody whom it could ask, and ends.
func TestEtcdMakesNoData(t *testing.T) {
	c := newChaos(t, 0, programs(t), 3)
	m := c.machines[0]
	l := Config{Name: m.Name, Address: m.Address, State: m.state(), PKI: filepath.Join(m.Dir, "pki"), Heartbeat: defaultHeartbeat, Election: defaultElection}.launch(Facts{Incarnation: Incarnation{ID: "gone"}}, c.roster, "https://"+m.Address+":2380")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := run.Run(ctx, run.Cmd{Argv: append([]string{"ip", "netns", "exec", m.ns, m.Etcd}, l.Argv...)})
	if err == nil || !strings.Contains(err.Error(), "could not retrieve cluster information") {
		t.Errorf("etcd ends with %v", err)
	}
	if log, _ := filepath.Glob(filepath.Join(l.Data, "member", "wal", "*")); len(log) > 0 {
		t.Errorf("etcd made %v", log)
	}
}

// TestChaos founds on real etcd while machines are killed, imaged again,
// paused, cut off and worse. Needs root and network namespaces.
func TestChaos(t *testing.T) { schedules(t, 3, (*chaos).run) }

// schedules runs as many random schedules as are asked for, of so many machines
// each; or the one of -seed.
func schedules(t *testing.T, machines int, run func(*chaos)) {
	built := programs(t)
	seeds := []uint64{*simSeed}
	if *simSeed == 0 {
		seeds = nil
		for range *chaosSchedules {
			seeds = append(seeds, rand.Uint64N(1_000_000))
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			c := newChaos(t, seed, built, machines)
			t.Cleanup(func() { c.explain(seed) })
			for _, m := range c.machines {
				m.Count = 2 * time.Second
				c.tell(m)
			}
			run(c)
		})
	}
}

// explain logs what led to a failure.
func (c *chaos) explain(seed uint64) {
	if !c.t.Failed() {
		return
	}
	why := fmt.Sprintf("again: make chaos SEED=%d\n%s", seed, strings.Join(c.log, "\n"))
	c.t.Log(why)
	for _, m := range c.machines {
		log, _ := os.ReadFile(filepath.Join(m.Dir, "agent.log"))
		why += fmt.Sprintf("\nagent of %s, which says last %s:\n%s", m.Name, m.said(), log)
	}
	if file := os.Getenv("KIMAGE_CHAOS_LOG"); file != "" {
		if err := os.WriteFile(file, []byte(why), 0o644); err != nil {
			c.t.Error(err)
		}
	}
	for _, m := range c.machines {
		for _, f := range []string{"agent.log", "etcd.log"} {
			data, _ := os.ReadFile(filepath.Join(m.Dir, f))
			lines := bytes.Split(data, []byte("\n"))
			c.t.Logf("%s of %s:\n%.6000s", f, m.Name, bytes.Join(lines[max(0, len(lines)-25):], []byte("\n")))
		}
	}
}

// start boots all machines at about the same time.
func (c *chaos) start() {
	for _, m := range c.r.Perm(3) {
		if c.r.IntN(3) == 0 {
			c.arm(c.machines[m])
		}
		c.boot(c.machines[m])
		time.Sleep(time.Duration(c.r.IntN(300)) * time.Millisecond)
	}
}

func (c *chaos) run() {
	c.start()
	faults := 8 + c.r.IntN(12)
	for range faults {
		c.fault()
		c.wait(time.Duration(20+c.r.IntN(400)) * time.Millisecond)
		if len(c.undo) > 0 && c.r.IntN(2) == 0 {
			c.undo[0]()
			c.undo = c.undo[1:]
		}
	}
	c.note("faults end")
	for _, undo := range c.undo {
		undo()
	}
	for _, m := range c.machines {
		m.armed = false
	}
	start := time.Now()
	for time.Since(start) < 2*time.Minute {
		c.wait(300 * time.Millisecond)
		if ok, how := c.founded(); ok {
			c.lookLast()
			c.t.Logf("%d faults, %d power cuts in etcd's first 100 ms, %d data directories; after %.1f s of calm: %s", faults, c.cuts, c.check.seen, time.Since(start).Seconds(), how)
			return
		}
	}
	for _, m := range c.machines {
		c.t.Errorf("%s: %s", m.Name, m.said())
	}
}
