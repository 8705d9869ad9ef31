//go:build integration

package kube

import (
	"context"
	"errors"
	"io"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/run"
)

// deaths cuts the power of a machine after each step that it takes for the
// first time: a file written or removed, a phase of kubeadm, a kubeadm, a
// change in the cluster, an action of the loop. So a machine that boots often
// enough has been cut off everywhere, and still had to get there.
type deaths struct{ dir string }

func (d deaths) file() string { return filepath.Join(d.dir, "deaths") }

// steps are those that it died of.
func (d deaths) steps() []string {
	data, _ := os.ReadFile(d.file())
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")[:strings.Count(string(data), "\n")]
}

// random are parts of names that differ from one attempt to the next.
var random = regexp.MustCompile(`csr-[a-z0-9]+|\b[0-9.]+(ms|s)\b`)

// step ends the machine: its first process ends, and so does every other.
func (d deaths) step(what string) {
	what = random.ReplaceAllString(what, "*")
	if slices.Contains(d.steps(), what) {
		return
	}
	f, err := os.OpenFile(d.file(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(what + "\n")
	}
	if err != nil {
		log.Print(err)
	}
	log.Print("POWER CUT after ", what)
	os.Exit(137)
}

func (d deaths) arrange(n *Node) {
	n.changed = d.step
	inner := n.Run
	n.Run = func(ctx context.Context, c run.Cmd) error {
		if c.Argv[0] == "kubeadm" {
			c.Stdout = io.MultiWriter(c.Stdout, &phaseWatch{deaths: d, kubeadm: c.Argv[1]})
		}
		return inner(ctx, c)
	}
}

// phaseWatch reads kubeadm's output. With KIMAGE_CUTS=lines each line is a step,
// else the first line of a phase: "[certs] Using certificateDir folder ...".
type phaseWatch struct {
	deaths
	kubeadm string
	partial string
}

var phaseName = regexp.MustCompile(`^\[[a-z-]+\]`)

func (w *phaseWatch) Write(p []byte) (int, error) {
	w.partial += string(p)
	for {
		line, rest, ok := strings.Cut(w.partial, "\n")
		if !ok {
			return len(p), nil
		}
		w.partial = rest
		name := phaseName.FindString(line)
		if name != "" && os.Getenv("KIMAGE_CUTS") == "lines" {
			name = line
		}
		if name != "" {
			w.step("kubeadm " + w.kubeadm + ": " + name)
		}
	}
}

// deadlyUntil boots machines again whenever they lost their power, until done.
func (c *cluster) deadlyUntil(what string, boot map[string]func(), done func(ctx context.Context) error) {
	c.Helper()
	died := map[string]int{}
	steps := func(name string) []string { return deaths{filepath.Join(c.dir, name)}.steps() }
	for name, start := range boot {
		died[name] = len(steps(name))
		if c.running[name] == nil {
			start()
		}
	}
	c.until(what, 20*time.Minute, func(ctx context.Context) error {
		for name, start := range boot {
			if all := steps(name); len(all) > died[name] {
				died[name] = len(all)
				c.kill(name)
				start()
			}
		}
		return done(ctx)
	})
}

// TestPowerCutAfterEveryStep: masters that initialise and join, and a worker,
// lose their power after every step that they take, and become a cluster.
func TestPowerCutAfterEveryStep(t *testing.T) {
	peers := storyPeers()
	peers.Nodes = peers.Nodes[:3]
	c := newCluster(t, peers)
	c.deadly = true
	master1, master2 := func() { c.startMaster("m1", m1) }, func() { c.startMaster("m2", m2) }
	worker := func() {
		c.start("w1", "172.17.8.111", nodeconf.Node{Name: "w1", Roles: []string{"worker"}})
	}
	joined := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			var node apiNode
			admin := c.admin(m1) // a new connection: the old one's other end may have died
			defer admin.Close()
			if c.joinedBy(name) == "" {
				return errors.New("it has not joined")
			}
			if err := admin.Get(ctx, "/api/v1/nodes/"+name, nil, &node); err != nil {
				return err
			}
			if _, ok := node.Metadata.Labels[workerLabel]; name == "w1" && !ok {
				return errors.New("it has no role")
			}
			if !node.ready() {
				return errors.New("it is not Ready")
			}
			return admin.Get(ctx, recordPath, nil, nil)
		}
	}
	// Until then a machine answers at the second one's address that has no API
	// server: nobody waits for one.
	c.sh("ip addr add " + m2 + "/24 dev br0")
	c.deadlyUntil("m1 has initialised", map[string]func(){"m1": master1}, joined("m1"))
	c.deadlyUntil("w1 has joined", map[string]func(){"m1": master1, "w1": worker}, joined("w1"))
	c.sh("ip addr del " + m2 + "/24 dev br0")
	c.deadlyUntil("m2 has joined", map[string]func(){"m1": master1, "m2": master2}, joined("m2"))
	for name, least := range map[string]int{"m1": 40, "w1": 10, "m2": 20} {
		all := deaths{filepath.Join(c.dir, name)}.steps()
		t.Logf("%s lost its power %d times, after each of:\n%s", name, len(all), strings.Join(all, "\n"))
		if len(all) < least {
			t.Errorf("%s lost its power only %d times", name, len(all))
		}
	}
	if by := c.joinedBy("m1") + c.joinedBy("m2") + c.joinedBy("w1"); by != "initjoinjoin" {
		t.Errorf("they became Nodes by %s", by)
	}

	// One more boot of each, with nothing in the way.
	c.deadly = false
	for name, start := range map[string]func(){"m1": master1, "m2": master2, "w1": worker} {
		c.kill(name)
		start()
	}
	c.provisioned()
	c.pkiUnchanged("m1")
	for _, name := range []string{"m1", "m2", "w1"} {
		c.joined(name)
		c.ready(m1, name, "")
	}
}
