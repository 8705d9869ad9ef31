//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/lan"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// enough skips a story of more machines than KIMAGE_E2E_MACHINES allows.
func enough(t *testing.T, machines int, target string) {
	t.Helper()
	allowed, _ := strconv.Atoi(os.Getenv("KIMAGE_E2E_MACHINES"))
	if os.Getenv("CI") != "" {
		allowed = 1
	}
	if machines > allowed {
		t.Skipf("%d machines: %s runs it, where CI is not set", machines, target)
	}
}

// allAsked skips what takes too long for make e2e.
func allAsked(t *testing.T) {
	t.Helper()
	if os.Getenv("KIMAGE_E2E_ALL") == "" {
		t.Skip("takes long on emulated machines: make e2e-all, which sets KIMAGE_E2E_ALL, runs it")
	}
}

// routeOut gives a machine a default route through the card that leads nowhere,
// as every Vagrant machine has one. networkd is restarted, because networkctl
// needs D-Bus, which is not up so early.
const routeOut = `#cloud-config
bootcmd:
- - sh
  - -c
  - printf '[Match]\nMACAddress=` + qemu.MAC + `\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' >/etc/systemd/network/50-nat.network && systemctl restart systemd-networkd
`

// unhurried lets the control plane of emulated machines be slow: by its own times it
// gives up being the leader, ends itself, and all that its start costs is due again.
// Where several masters crowd few processors, each runs on one. kimage up does the same.
func unhurried(masters int) string {
	api, more := "", ""
	if masters > 1 {
		const one = `extraEnvs: [{name: GOMAXPROCS, value: "1"}]`
		api, more = "    apiServer: {"+one+"}\n", ", "+one
	}
	slow := "{extraArgs: [{name: leader-elect-lease-duration, value: 120s}, {name: leader-elect-renew-deadline, value: 100s}, {name: leader-elect-retry-period, value: 15s}]" + more + "}\n"
	return "  kubeadm:\n" + api + "    controllerManager: " + slow + "    scheduler: " + slow +
		"  kubelet: {nodeLeaseDurationSeconds: 120, nodeStatusUpdateFrequency: 20s}\n"
}

// cluster is a topology of machines that were powered on together.
type cluster struct {
	t       *testing.T
	started time.Time
	nodes   []*clusterNode
	network *lan.Switch
	crowded bool // they have more processors than this computer
}

type clusterNode struct {
	*node
	name, address string
	roles         []string
	ready         time.Duration // after power-on
	config        qemu.Config
	key           qemu.Key
}

func (n *clusterNode) has(role string) bool { return slices.Contains(n.roles, role) }

func (n *clusterNode) kubelet() bool { return n.has("master") || n.has("worker") }

// cpus: only one machine at a time initialises, and can use them. The others have
// one, since there are more machines than this computer has processors, and
// emulation needs no atomic instructions for a machine with one.
func (n *clusterNode) cpus() int {
	if n.has("master") {
		return 2
	}
	return 1
}

// memoryMiB is what a machine of these roles has.
func (n *clusterNode) memoryMiB() int {
	switch {
	case n.has("master"):
		return 2560
	case n.has("worker"):
		return 1536
	}
	return 512
}

// powerOn makes the machines that kimage cluster new describes, and switches all of
// them on.
func powerOn(t *testing.T, topology string) *cluster {
	t.Helper()
	c := describe(t, topology)
	c.started = time.Now()
	for _, n := range slices.Backward(c.nodes) { // the last first: no order is the right one
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// describe makes the machines that kimage cluster new describes, with the configs that
// kimage config writes; none is switched on. They are connected by a network of their
// own, and each has a card besides that has the same address on all; every second one
// even has its default route there, the others have none.
func describe(t *testing.T, topology string, more ...string) *cluster {
	t.Helper()
	key := newKey(t)
	dir := t.TempDir()
	configure(t, dir, append([]string{"--topology", topology}, more...), key)
	names := machineNames(t, dir)
	c := &cluster{t: t, crowded: 2*len(names) > runtime.NumCPU()} // none has more than two: see cpus
	var err error
	if c.network, err = lan.New(filepath.Join(dir, "lan")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.network.Close)
	for _, name := range names {
		c.nodes = append(c.nodes, c.machine(dir, name, key))
	}
	return c
}

// configure writes the cluster file that kimage cluster new describes, and the configs.
func configure(t *testing.T, dir string, outline []string, key qemu.Key) {
	t.Helper()
	kimage := kimageIn(t, dir)
	text := kimage(append([]string{"cluster", "new", "--os", system}, outline...)...)
	edit := func(old, new string) {
		if !strings.Contains(text, old) {
			t.Fatalf("kimage cluster new does not print %q:\n%s", old, text)
		}
		text = strings.Replace(text, old, new, 1)
	}
	edit("ssh: {authorizedKeys: []}", "ssh: {authorizedKeys: [\""+key.Public+"\"]}")
	edit("  nodes:\n  - name", "    network: {mtu: 1500}    # static: nobody gives addresses here\n"+unhurried(strings.Count(text, "master"))+"  nodes:\n  - name")
	for i := 2; strings.Contains(text, fmt.Sprintf("name: k8s-%02d", i)); i += 2 {
		match := fmt.Sprintf("    match: {mac: \"52:54:00:17:08:%02d\"}\n", i)
		edit(match, match+"    machine: {cloudInit: route.yaml}\n")
	}
	for name, content := range map[string]string{"cluster.yaml": text, "route.yaml": routeOut} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kimage("config", "--seed")
}

// kimageIn runs kimage in dir and returns what it prints.
func kimageIn(t *testing.T, dir string) func(args ...string) string {
	t.Helper()
	program, err := filepath.Abs("../bin/kimage")
	if err != nil {
		t.Fatal(err)
	}
	return func(args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir = dir
		var words strings.Builder
		cmd.Stderr = &words
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("kimage %s: %v\n%s", strings.Join(args, " "), err, words.String())
		}
		return string(out)
	}
}

func machineNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "config/nodes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// machine makes one machine of the cluster file in dir.
func (c *cluster) machine(dir, name string, key qemu.Key) *clusterNode {
	c.t.Helper()
	var shown struct{ Roles, Addresses []string }
	if err := json.Unmarshal([]byte(kimageIn(c.t, dir)("cluster", "show", name, "--json")), &shown); err != nil {
		c.t.Fatal(err)
	}
	n := &clusterNode{name: name, roles: shown.Roles, address: shown.Addresses[0], key: key}
	socket, err := c.network.Port(name)
	if err != nil {
		c.t.Fatal(err)
	}
	number := strings.TrimPrefix(name, "k8s-")
	n.config = qemu.Config{Dir: filepath.Join(dir, name), CPUs: n.cpus(), MemoryMiB: n.memoryMiB(), Paced: c.crowded, Seed: filepath.Join(dir, "config/nodes", name, "seed.iso"),
		LAN: socket, LANMAC: "52:54:00:17:08:" + number, UUID: "6b696d61-6765-4000-8000-5254001708" + number}
	n.image(c.t)
	return n
}

// image gives a machine, which is off then, a new disk with the image.
func (n *clusterNode) image(t *testing.T) {
	t.Helper()
	if n.node != nil {
		n.Kill()
		if err := os.RemoveAll(n.config.Dir); err != nil {
			t.Fatal(err)
		}
	}
	n.node = newNode(t, n.config, user, n.key)
}

// awaitReady waits until every machine says that it is ready.
func (c *cluster) awaitReady(limit time.Duration) {
	c.t.Helper()
	end := c.started.Add(limit)
	// Time is left to ask what was the matter.
	if last, ok := c.t.Deadline(); ok && last.Add(-3*time.Minute).Before(end) {
		end = last.Add(-3 * time.Minute)
	}
	ctx, cancel := context.WithDeadline(c.t.Context(), end)
	defer cancel()
	go c.takeTurns(ctx)
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			errs[i] = n.awaitReady(ctx)
			n.ready = time.Since(c.started)
		})
	}
	wg.Wait()
	for i, n := range c.nodes {
		if errs[i] != nil {
			c.t.Errorf("%s: %v", n.name, errs[i])
		}
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// player is a machine that takes turns with others.
type player struct {
	master bool
	phase  func() string
	renice func(nice int) error
}

// takeTurns sets the machines' priorities until ctx ends: what emulated machines do
// that are ready, or wait, is more than half of what the host has. Then they are equals
// again.
func takeTurns(ctx context.Context, t *testing.T, all []player) {
	for ctx.Err() == nil {
		for _, p := range all {
			if err := p.renice(local.Nice(p.phase(), p.master)); err != nil && ctx.Err() == nil {
				t.Logf("the machines' turns end: %v", err)
				return
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
	for _, p := range all {
		if err := p.renice(0); err != nil {
			t.Logf("a machine keeps its priority: %v", err)
		}
	}
}

func (c *cluster) takeTurns(ctx context.Context) {
	var all []player
	for _, n := range c.nodes {
		all = append(all, player{n.has("master"), func() string { return phaseOf(n.Machine) }, func(nice int) error {
			if !n.Started() {
				return nil
			}
			return n.SetNice(nice)
		}})
	}
	takeTurns(ctx, c.t, all)
}

// explain logs what every machine knows of a failure.
func (c *cluster) explain() {
	if !c.t.Failed() {
		return
	}
	const ask = `journalctl -u kimage-agent -o short-monotonic --no-pager | tail -n 40 | cut -c 1-300
journalctl -u kimage-balancer -o short-monotonic --no-pager | tail -n 30 | cut -c 1-300
` + cpuByUnit + `
crictl ps -a; free -m; uptime; systemctl --failed --no-legend
journalctl -u kubelet -o short-monotonic --no-pager | tail -n 12 | cut -c 1-300
for log in /var/log/pods/kube-system_kube-apiserver*/*/*.log; do tail -n 12 $log | cut -c 1-300; done`
	said := make([]string, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			r, err := n.try(ask, 90*time.Second)
			said[i] = fmt.Sprintln(n.name, "says:", err) + r.Stdout + r.Stderr
		})
	}
	wg.Wait()
	for _, s := range said {
		c.t.Log(s)
	}
}

// first is the first machine with a role.
func (c *cluster) first(role string) *clusterNode {
	return c.nodes[slices.IndexFunc(c.nodes, func(n *clusterNode) bool { return n.has(role) })]
}

func (c *cluster) count(is func(*clusterNode) bool) (count int) {
	for _, n := range c.nodes {
		if is(n) {
			count++
		}
	}
	return count
}

// phaseLine is one of the agent's, with the seconds since the kernel's start.
var phaseLine = regexp.MustCompile(`(?m)^\[ *([0-9]+)\..*\]: phase ([a-z]+)`)

// table logs when each machine reached its phases.
func (c *cluster) table() {
	c.t.Helper()
	var b strings.Builder
	for _, n := range c.nodes {
		fmt.Fprintf(&b, "%s  %-20s %4d MiB  ready %s after power-on; seconds after the kernel's start:", n.name, strings.Join(n.roles, ","), n.memoryMiB(), n.ready.Round(time.Second))
		for _, m := range phaseLine.FindAllStringSubmatch(n.must("journalctl -u kimage-agent -o short-monotonic --no-pager", 3*time.Minute), -1) {
			fmt.Fprintf(&b, " %s %s", m[1], m[2])
		}
		b.WriteByte('\n')
	}
	c.t.Logf("phases:\n%s", b.String())
}
