package kube

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/pkg/run"
)

// ErrBusy: another master holds the lock. It is no failure; observe again.
var ErrBusy = errors.New("another master initialises the cluster or joins it")

// Masters come up one after the other: what an API server does at its start is
// most of the work, and on few processors two of them keep each other from ever
// being ready. It is politeness, and ends.
const (
	turnHeld     = 10 * time.Minute // after kubeadm, until the Node is Ready
	turnPatience = 20 * time.Minute // of a master that could join
)

// resetBudget is how long cleaning up may take: unmounting pods' volumes and
// stopping their containers.
const resetBudget = 10 * time.Minute

// Apply does what Decide said. It may be killed at any point: what it leaves is
// seen by the next Observe. Wait and Stop do nothing.
func (n *Node) Apply(ctx context.Context, a Action) error {
	switch a.Verb {
	case Clean:
		return n.clean(ctx, a.Forget)
	case Init, Join:
		err := n.attempt(ctx, a)
		if errors.Is(err, ErrBusy) || ctx.Err() != nil {
			return err
		}
		n.tried(err)
		return err
	case Certify:
		return n.certify()
	case Keep:
		return n.keep(ctx)
	}
	return nil
}

// attempt is one kubeadm init or join, to its end. A master has its turn for it,
// and keeps it until it is Ready.
func (n *Node) attempt(ctx context.Context, a Action) error {
	if !n.master() {
		return n.try(ctx, a)
	}
	release, err := n.lock(ctx, a.Verb)
	if err != nil {
		return err
	}
	if err := n.try(ctx, a); err != nil {
		release()
		return err
	}
	n.turn.keep(release)
	return nil
}

// turn is a master's, once kubeadm has ended well.
type turn struct {
	waits time.Time // since when this master could join and another had its turn; zero: it did not wait
	end   func()    // nil: there is none
}

func (t *turn) keep(release func()) {
	end := sync.OnceFunc(release)
	time.AfterFunc(turnHeld, end)
	t.end = end
}

// Settled says that the Node is Ready: another master may have its turn.
func (n *Node) Settled() {
	if n.turn.end != nil {
		n.turn.end()
		n.turn.end = nil
	}
}

func (n *Node) try(ctx context.Context, a Action) error {
	token, err := n.token()
	if err != nil {
		return err
	}
	if err := errors.Join(n.SyncResolver(), n.nameItself()); err != nil {
		return err
	}
	if a.Fetch {
		if err := n.fetchImages(ctx); err != nil {
			return err
		}
	}
	if n.master() {
		if err := errors.Join(n.placePKI(), n.placeEncryption(), n.placePatches()); err != nil {
			return err
		}
	}
	var config []byte
	argv := []string{"kubeadm", "init", "--config", n.path(kubeadmFile), "--skip-token-print"}
	if a.Verb == Init {
		config, err = n.initConfig(a.Again, token)
	} else {
		argv = []string{"kubeadm", "join", "--config", n.path(kubeadmFile)}
		config, err = n.joinConfig()
		if err == nil {
			err = n.placeDiscovery(token)
		}
		if err == nil && a.Raise {
			err = n.raise(ctx)
		}
	}
	if err != nil {
		return err
	}
	if err := n.write(kubeadmFile, config, 0o600); err != nil {
		return err
	}
	began := n.Now().Truncate(time.Second) // as the API server writes times
	if err := n.kubeadm(ctx, argv, n.KubeadmBudget); err != nil {
		return err
	}
	if a.Verb == Init && a.Again {
		if err := n.replaceNode(ctx, began); err != nil {
			return err
		}
	}
	return n.finish(string(a.Verb))
}

// replaceNode deletes this master's Node, and its pods, if the Node is from before the
// machine was imaged again, and has the kubelet make another. A machine that joins has
// that done by a master (approve); one that initialises finds none, and the proof that it
// may is the cluster's CA.
func (n *Node) replaceNode(ctx context.Context, began time.Time) error {
	c, err := n.caClient()
	if err != nil {
		return err
	}
	defer c.Close()
	var node apiNode
	path := "/api/v1/nodes/" + url.PathEscape(n.Name)
	if err := c.Get(ctx, path, nil, &node); err != nil {
		return fmt.Errorf("reading Node %s: %w", n.Name, err)
	}
	if !node.Metadata.CreationTimestamp.Before(began) {
		return nil
	}
	if err := n.deleteNode(ctx, c, node, began); err != nil {
		return err
	}
	// A kubelet makes its Node once in its life: one that found the old Node makes no other.
	if err := n.Run(ctx, run.Cmd{Argv: []string{"systemctl", "restart", "kubelet"}}); err != nil {
		return fmt.Errorf("starting the kubelet again, so that it makes its Node: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, n.KubeadmBudget)
	defer cancel()
	for {
		err := c.Get(limited, path, nil, &node)
		if err == nil {
			break
		}
		select {
		case <-limited.Done():
			return fmt.Errorf("the kubelet did not make Node %s within %s (journalctl -u kubelet): %w", n.Name, n.KubeadmBudget, err)
		case <-time.After(time.Second):
		}
	}
	return n.kubeadm(ctx, []string{"kubeadm", "init", "phase", "mark-control-plane", "--config", n.path(kubeadmFile)}, n.KubeadmBudget)
}

// raise brings the cluster to this image's version before its control plane starts.
func (n *Node) raise(ctx context.Context) error {
	c, err := n.caClient()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = n.bringAlong(ctx, c)
	return err
}

// lock takes the lock. For init it makes sure that nobody finished while it was
// waited for; to join, nothing is waited for without end.
func (n *Node) lock(ctx context.Context, to Verb) (release func(), err error) {
	if n.Lock == nil {
		return func() {}, nil
	}
	release, ok, err := n.Lock(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("asking for the masters' lock: %w", err)
	}
	if !ok {
		if n.turn.waits.IsZero() {
			n.turn.waits = n.Now()
		}
		if to == Join && n.Now().Sub(n.turn.waits) >= turnPatience {
			n.Logf("joining although another master has its turn: it has had it for long")
			return func() {}, nil
		}
		return nil, ErrBusy
	}
	n.turn.waits = time.Time{}
	if to == Init {
		s := State{Now: n.Now(), APISince: n.Now()}
		if n.apiSeen.api == APIStarting {
			s.APISince = n.apiSeen.at // for so long that it was decided not to wait for it
		}
		if s.API, _, _ = n.probeAPI(ctx, true); s.API == APIReady || s.starting() {
			release()
			return nil, ErrBusy
		}
	}
	return release, nil
}

// finish writes the fact that kubeadm succeeded, then removes what only kubeadm
// needed.
func (n *Node) finish(by string) error {
	data, err := json.Marshal(Done{ClusterUID: n.Node.Cluster.UID, Node: n.Name, Kubernetes: n.Node.Image.Kubernetes, By: by, At: n.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	if err := n.write(doneFile, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return n.tidy()
}

// tidy removes credentials that have no use after kubeadm: those of init that
// no access rule can limit, and copies of the token.
func (n *Node) tidy() error {
	return errors.Join(n.remove(superConf), n.remove(discoveryFile), n.remove(kubeadmFile), n.remove(kubernetesDir+"/bootstrap-kubelet.conf"))
}

// clean undoes what a kubeadm left. etcd, nodeconf.Dir and ownDir stay.
func (n *Node) clean(ctx context.Context, forget bool) error {
	if forget {
		// First of all: cut off here, the machine must still know that it has to join.
		if err := n.remove(doneFile); err != nil {
			return err
		}
	}
	n.clients.admin = nil
	// The kubeconfig is one that does not exist: kubeadm would ask the cluster
	// for its configuration, and wait.
	if err := n.kubeadm(ctx, []string{"kubeadm", "reset", "--force", "--skip-phases=preflight,remove-etcd-member", "--cleanup-tmp-dir",
		"--cri-socket=unix://" + criSocket, "--kubeconfig=" + n.path(ownDir+"/none")}, resetBudget); err != nil {
		return fmt.Errorf("cleaning up: %w", err)
	}
	// kubeadm warns about what it cannot remove, and goes on.
	for _, f := range attemptFiles {
		if err := n.remove(f); err != nil {
			return err
		}
	}
	// It was there before the first kubeadm, and reset emptied the directory above it.
	return os.MkdirAll(n.path(pluginDir), 0o755)
}

// kubeadm runs it; its error is kubeadm's own words.
func (n *Node) kubeadm(ctx context.Context, argv []string, budget time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	out, words := &lineLog{n.Logf, argv[0] + " " + argv[1], nil, ""}, &lineLog{n.Logf, argv[0] + " " + argv[1], nil, ""}
	err := n.Run(limited, run.Cmd{Argv: argv, Stdout: out, Stderr: words, Env: []string{"HOME=/root"}})
	out.flush()
	words.flush()
	n.tellChanged(argv[0] + " " + argv[1])
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return fmt.Errorf("kubeadm %s did not end within %s (journalctl -u kubelet): its last words: %s", argv[1], budget, cmp.Or(words.last, out.last))
	}
	return reason(err)
}

// lineLog logs what a program writes, line by line.
type lineLog struct {
	logf    func(string, ...any)
	prefix  string
	partial []byte
	last    string
}

func (l *lineLog) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		line, rest, ok := bytes.Cut(l.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.say(string(line))
		l.partial = rest
	}
}

// flush says what does not end with a newline.
func (l *lineLog) flush() { l.say(string(l.partial)) }

func (l *lineLog) say(line string) {
	if line = strings.TrimSpace(line); line != "" {
		l.last = line
		l.logf("%s: %s", l.prefix, line)
	}
}
