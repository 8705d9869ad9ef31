package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// The addresses that every node's clients use.
const (
	APIListen  = "127.0.0.1:7445" // machines with a kubelet
	EtcdListen = "127.0.0.1:7446" // masters
)

// StateDir is where the agent keeps what the balancers go by, beside nodeconf.Dir.
const StateDir = "/var/lib/kimage/state/agent"

// Files in StateDir.
const (
	APIServersFile = "apiservers.json" // see WriteAPIServers
	RosterFile     = "roster.json"     // nodeconf.SignedRoster, the highest that was verified
)

// pollEvery: the files are small and few, and change once in months. It is a tick of
// the API servers', so that nobody wakes up for it alone.
const pollEvery = 4 * interval

// apiPath leaves out one of the two checks of etcd, which ask it the same: every
// machine of the cluster asks every second or so.
const apiPath = "/readyz?exclude=etcd"

// etcdPath leaves out the alarm of corrupt data, which every member reports
// when one has it: it does not tell which one to leave. What remains is a
// linearizable read, and not being a learner.
const etcdPath = "/readyz?exclude=data_corruption"

// NodeConfig says where a node's balancers find things.
type NodeConfig struct {
	Conf       string // directory of node.json; empty: nodeconf.Dir
	State      string // empty: StateDir
	APIListen  string // empty: APIListen
	EtcdListen string // empty: EtcdListen
	Logf       func(string, ...any)
}

// Node is a machine's balancers.
type Node struct {
	config    NodeConfig
	node      nodeconf.Config
	api, etcd *service // nil: none on a machine of these roles
	roster    nodeconf.Roster
	watched   []string
	seen      map[string]fingerprint // of watched
}

// service is a balancer and how it speaks TLS with its backends.
type service struct {
	*Balancer
	tls     atomic.Pointer[tls.Config]
	loadTLS func() (*tls.Config, error)
}

// NewNode reads what the machine was told and listens. Without anything to
// balance, on a machine that is neither master nor worker, it returns nil.
func NewNode(c NodeConfig) (*Node, error) {
	if c.Conf == "" {
		c.Conf = nodeconf.Dir
	}
	if c.State == "" {
		c.State = StateDir
	}
	if c.APIListen == "" {
		c.APIListen = APIListen
	}
	if c.EtcdListen == "" {
		c.EtcdListen = EtcdListen
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	n := &Node{config: c, seen: map[string]fingerprint{}}
	data, err := os.ReadFile(n.conf(nodeconf.File))
	if err != nil {
		return nil, err
	}
	if n.node, err = nodeconf.Decode(data); err != nil {
		return nil, err
	}
	master := n.node.Node.Has(nodeconf.RoleMaster)
	if !master && !n.node.Node.Has(nodeconf.RoleWorker) {
		return nil, nil
	}
	if err := n.readRosters(); err != nil {
		return nil, err
	}
	ca := n.pki(nodeconf.ClusterCA, ".crt")
	n.watched = []string{n.conf(nodeconf.RosterFile), n.state(RosterFile), n.state(APIServersFile), ca}
	seed := n.node.Node.Name
	if seed == "" {
		seed, _ = os.Hostname() // of a pool
	}
	if n.api, err = newService(Config{Listen: c.APIListen, Path: apiPath, Seed: seed, Logf: c.Logf}, func() (*tls.Config, error) { return clientTLS(ca, "", "") }); err != nil {
		return nil, err
	}
	if master {
		ca, cert, key := n.pki(nodeconf.EtcdCA, ".crt"), n.pki(nodeconf.APIServerEtcd, ".crt"), n.pki(nodeconf.APIServerEtcd, ".key")
		n.watched = append(n.watched, ca, cert, key)
		config := Config{Listen: c.EtcdListen, Path: etcdPath, Seed: seed, First: ownMember(n.roster, n.node.Node.Name), CutUnready: true, Logf: c.Logf}
		if n.etcd, err = newService(config, func() (*tls.Config, error) { return clientTLS(ca, cert, key) }); err != nil {
			n.api.close()
			return nil, err
		}
	}
	n.changed()
	n.set()
	return n, nil
}

func newService(c Config, loadTLS func() (*tls.Config, error)) (*service, error) {
	s := &service{loadTLS: loadTLS}
	t, err := loadTLS()
	if err != nil {
		return nil, err
	}
	s.tls.Store(t)
	c.TLS = s.tls.Load
	s.Balancer, err = New(c)
	return s, err
}

// conf is a file of nodeconf in the directory that was given.
func (n *Node) conf(file string) string { return filepath.Join(n.config.Conf, filepath.Base(file)) }

func (n *Node) state(file string) string { return filepath.Join(n.config.State, file) }

func (n *Node) pki(name, ext string) string {
	return filepath.Join(n.config.Conf, filepath.Base(nodeconf.PKIDir), name+ext)
}

// Run balances until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range []*service{n.api, n.etcd} {
		if s != nil {
			g.Go(func() error { return s.Run(ctx) })
		}
	}
	g.Go(func() error { n.follow(ctx); return nil })
	return g.Wait()
}

// follow takes in what changes in the watched files. What cannot be read
// changes nothing.
func (n *Node) follow(ctx context.Context) {
	pause, due := newPause()
	defer pause.close()
	for {
		// When the probes are due as well: it costs no other wake-up.
		pause.reset(pollEvery - interval + n.api.untilNextTick(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-due:
		}
		if !n.changed() {
			continue
		}
		if err := n.readRosters(); err != nil {
			n.config.Logf("%v", err)
		}
		for _, s := range []*service{n.api, n.etcd} {
			if s == nil {
				continue
			}
			if t, err := s.loadTLS(); err != nil {
				n.config.Logf("%v", err)
			} else {
				s.tls.Store(t)
			}
		}
		n.set()
	}
}

// changed says whether a watched file is another than when last asked.
func (n *Node) changed() (any bool) {
	for _, file := range n.watched {
		now := fingerprintOf(file)
		any = any || n.seen[file] != now
		n.seen[file] = now
	}
	return any
}

// fingerprint differs after a rename over the file, and after a change in place.
type fingerprint struct {
	inode uint64
	size  int64
	mtime unix.Timespec
}

func fingerprintOf(file string) fingerprint {
	var st unix.Stat_t
	if unix.Stat(file, &st) != nil {
		return fingerprint{}
	}
	return fingerprint{st.Ino, st.Size, st.Mtim}
}

// set hands the balancers their backends.
func (n *Node) set() {
	seen, err := readAPIServers(n.state(APIServersFile), n.node.Cluster.UID)
	if err != nil {
		n.config.Logf("%v", err)
	}
	n.api.Set(apiBackends(n.roster, seen))
	if n.etcd != nil {
		n.etcd.Set(etcdBackends(n.roster))
	}
}

// readRosters takes in the higher of the two rosters if it is higher than the
// one known.
func (n *Node) readRosters() error {
	var errs []error
	for _, file := range []string{n.conf(nodeconf.RosterFile), n.state(RosterFile)} {
		r, err := readRoster(file, n.node.Cluster)
		if errors.Is(err, os.ErrNotExist) && file == n.state(RosterFile) {
			continue
		}
		newer := err == nil
		if newer && n.roster.Serial > 0 {
			newer, err = r.Newer(n.roster)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
		if newer {
			n.roster = r
		}
	}
	if n.roster.Serial > 0 {
		for _, err := range errs {
			n.config.Logf("%v", err)
		}
		return nil
	}
	return errors.Join(errs...)
}
