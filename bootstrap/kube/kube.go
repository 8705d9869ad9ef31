// Package kube makes a machine a Node of its cluster, by kubeadm, and on
// masters keeps what lets other machines become Nodes.
//
// It observes, decides and applies: Observe looks and changes nothing, Decide
// is a pure function of what was seen, Apply does one thing that may be
// repeated after a crash at any point. The caller is a loop around the three.
//
//	master   no API server answers: kubeadm init, over whatever etcd holds
//	         one answers and knows this machine's token: kubeadm join --control-plane
//	worker   kubeadm join, for ever
//
// Every kubeadm that did not succeed is cleaned up before the next one. That
// two masters initialise at once does no harm: all that kubeadm makes follows
// from node.json and the PKI, which are the same for both, and over existing
// objects it creates or updates. The lock is politeness.
//
// A machine proves its name by a bootstrap token of its own (nodeconf.Token),
// which lets it ask for a certificate and no more. Masters approve it for that
// name alone; nothing approves it automatically.
//
// A machine is never upgraded: it is replaced by one of a newer image, which
// brings the cluster along (upgrade.go). The package does not touch etcd's data,
// images or the runtime's settings.
package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
	"github.com/kimage-project/kimage/pkg/run"
)

// The balancers of every machine: kubeadm's control-plane endpoint, and its
// only etcd endpoint on masters.
const (
	APIEndpoint  = "127.0.0.1:7445"
	EtcdEndpoint = "127.0.0.1:7446"
)

const (
	apiPort   = "6443"
	criSocket = "/run/containerd/containerd.sock"
)

// Places on a machine. What kubeadm reset empties is not among them but for
// kubernetesDir/pki and kubernetesDir/manifests.
const (
	kubernetesDir = "/etc/kubernetes"
	ownDir        = kubernetesDir + "/kimage" // kimage's own; no reset empties it
	doneFile      = ownDir + "/joined.json"
	resolvFile    = ownDir + "/resolv.conf"
	encryptFile   = ownDir + "/encryption.yaml"
	patchesDir    = ownDir + "/patches"
	kubeadmFile   = ownDir + "/kubeadm.yaml"
	discoveryFile = ownDir + "/discovery.conf"
	adminConf     = kubernetesDir + "/admin.conf"
	superConf     = kubernetesDir + "/super-admin.conf"
	kubeletConf   = kubernetesDir + "/kubelet.conf"
	kubeletDir    = "/var/lib/kubelet"
	pluginDir     = kubeletDir + "/volumeplugins"
	manifestDir   = "/usr/share/kimage" // of the payload
)

// Config is what the package needs to know.
type Config struct {
	Node      nodeconf.Config
	Name      string   // the Node's name; empty: node.json's (a machine of a pool needs one: PoolName)
	Addresses []string // one per family, the cluster's first; empty: node.json's
	// Roster is the highest that is known; nil: none, and a master would take every
	// API server for absent.
	Roster func() nodeconf.Roster
	// Lock keeps two masters from initialising, joining or (Keep) renewing
	// certificates at once; ok is false while another holds it. nil: no lock.
	Lock func(ctx context.Context, to Verb) (release func(), ok bool, err error)
	// Clock says why this machine's clock must be set before anything is signed by
	// it; nil: it is right.
	Clock func() string
	Logf  func(format string, args ...any) // nil: silent

	Root          string // where the machine's files begin; empty: /
	API, Etcd     string // HOST:PORT of the balancers; empty: APIEndpoint, EtcdEndpoint
	Run           func(context.Context, run.Cmd) error
	Now           func() time.Time
	IgnoreChecks  []string      // kubeadm's preflight checks that may fail; empty: its minimum of CPUs and memory, as nobody is there to say that a small machine will do
	KubeadmBudget time.Duration // how long one kubeadm may take; 0: an hour, more than those of its time-outs that may follow each other
}

// Node is this machine on its way to being a Node. Its methods may not run at
// the same time, but for Failure.
type Node struct {
	Config
	last        lastTry
	apiSeen     answerSince
	clients     clients
	settings    settings
	kubeconfigs kubeconfigs
	turn        turn
	renewLooked time.Time         // when renew last looked
	changed     func(what string) // told of each change, to be cut off after it; nil: nobody
}

func (n *Node) tellChanged(what string) {
	if n.changed != nil {
		n.changed(what)
	}
}

// lastTry is what became of the last kubeadm, as long as the agent runs.
type lastTry struct {
	mu       sync.Mutex
	failures int
	at       time.Time
	reason   string
}

// clients are kept between observations, with their connections.
type clients struct {
	token, admin, kubelet, etcd *kubeapi.Client
	adminFrom, kubeletFrom      string                     // their certificates
	anonymous                   map[string]*kubeapi.Client // by HOST:PORT
	anonymousCA                 string                     // theirs
}

// New checks c and fills in its defaults.
func New(c Config) (*Node, error) {
	if c.Name == "" {
		c.Name = c.Node.Node.Name
	}
	if c.Name == "" {
		return nil, errors.New("BUG: a machine of a pool has no name")
	}
	if len(c.Addresses) == 0 {
		c.Addresses = c.Node.Node.Addresses
	}
	if len(c.Addresses) == 0 {
		return nil, errors.New("no address of this machine is known yet")
	}
	for _, a := range c.Addresses {
		if net.ParseIP(a) == nil {
			return nil, fmt.Errorf("%q is not an address", a)
		}
	}
	if !c.Node.Node.Has(nodeconf.RoleMaster) && !c.Node.Node.Has(nodeconf.RoleWorker) {
		return nil, errors.New("BUG: a machine that is neither master nor worker has no kubelet")
	}
	s, err := userSettings(c.Node)
	if err != nil {
		return nil, err
	}
	if c.Roster == nil {
		c.Roster = func() nodeconf.Roster { return nodeconf.Roster{} }
	}
	if c.Clock == nil {
		c.Clock = func() string { return "" }
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	if c.Run == nil {
		c.Run = run.Run
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.API == "" {
		c.API = APIEndpoint
	}
	if c.Etcd == "" {
		c.Etcd = EtcdEndpoint
	}
	if len(c.IgnoreChecks) == 0 {
		c.IgnoreChecks = []string{"Mem", "NumCPU"}
	}
	if c.KubeadmBudget == 0 {
		c.KubeadmBudget = time.Hour
	}
	return &Node{Config: c, settings: s}, nil
}

// path is where a file of the machine lies.
func (n *Node) path(p string) string { return filepath.Join("/", n.Root, p) }

// pki is where first boot put a certificate or key.
func (n *Node) pki(name string) string { return n.path(nodeconf.PKIDir + "/" + name) }

func (n *Node) master() bool { return n.Node.Node.Has(nodeconf.RoleMaster) }

// Failure is why the last kubeadm did not succeed: its own words; empty: it
// did, or there was none.
func (n *Node) Failure() string {
	n.last.mu.Lock()
	defer n.last.mu.Unlock()
	return n.last.reason
}

// tried remembers the outcome of a kubeadm.
func (n *Node) tried(err error) {
	n.last.mu.Lock()
	defer n.last.mu.Unlock()
	if err == nil {
		n.last.failures, n.last.reason = 0, ""
		return
	}
	n.last.failures, n.last.at, n.last.reason = n.last.failures+1, n.Now(), err.Error()
}

// minor is the minor version of "v1.37.2"; 0: unreadable.
func minor(version string) int {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	m := 0
	if len(parts) > 1 {
		fmt.Sscanf(parts[1], "%d", &m)
	}
	return m
}

// masterNames are the names and addresses by which a master may be called.
func (n *Node) masterNames() []string {
	var all []string
	roster := n.Roster()
	for _, p := range roster.Peers.Nodes {
		if slices.Contains(p.Roles, nodeconf.RoleMaster) {
			all = append(append(all, p.Name), p.Addresses...)
		}
	}
	for _, m := range roster.Masters {
		all = append(all, m.Name, m.Address)
	}
	return all
}
