package kube

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/pkg/kubeapi"
	"github.com/kimage-project/kimage/pkg/run"
)

// Answer is how a question was answered. "Cannot reach" is never "does not exist".
type Answer int

// Answers, from least to most.
const (
	Unknown Answer = iota // nobody answered
	No
	Yes
)

// API is what the cluster's API servers do.
type API int

// States of the API servers; the best one counts.
const (
	APISilent   API = iota // none answers on any address that is known
	APIStarting            // one answers that it is not ready
	APIReady               // one serves
)

// State is all that Decide knows.
type State struct {
	Now    time.Time
	Name   string
	Master bool

	Done        *Done  // kubeadm succeeded on this disk; nil: not yet
	DoneProblem string // Done cannot be read, or is another cluster's or machine's
	Certificate time.Time
	Debris      bool // of a kubeadm that did not succeed
	SuperAdmin  bool // init's all-powerful credentials lie about
	Runtime     bool
	Failures    int       // of kubeadm, one after the other, in this run of the agent
	FailedAt    time.Time // the last one
	Failure     string    // its words
	API         API
	APIDetail   string    // what was tried
	APISince    time.Time // since when it is so
	APIVersion  string    // "v1.37.2"; empty: not asked
	Kubernetes  string    // this image's
	Token       Answer    // the cluster knows this machine's token
	NodeReady   Answer    // a Ready Node has this machine's name
	Etcd        Answer    // masters: etcd serves a linearizable read
	EtcdDetail  string
	Initialised Answer // masters: something finished initialising this cluster, says etcd
}

// Done is the fact that kubeadm succeeded, written after it did. It lies beside
// what kubeadm wrote, so that both are there or neither.
type Done struct {
	ClusterUID string    `json:"clusterUID"`
	Node       string    `json:"node"`
	Kubernetes string    `json:"kubernetes"`
	By         string    `json:"by"` // init or join
	At         time.Time `json:"at"`
}

// answerSince remembers since when the API servers do what they do.
type answerSince struct {
	api API
	at  time.Time
}

// Observe looks at the machine, its API servers and etcd; it changes nothing.
func (n *Node) Observe(ctx context.Context) State {
	s := State{Now: n.Now(), Name: n.Name, Master: n.master(), Kubernetes: n.Node.Image.Kubernetes}
	n.last.mu.Lock()
	s.Failures, s.FailedAt, s.Failure = n.last.failures, n.last.at, n.last.reason
	n.last.mu.Unlock()
	s.Done, s.DoneProblem = n.done()
	s.Certificate = n.kubeletCertificate()
	s.SuperAdmin = exists(n.path(superConf))
	if s.Done != nil || s.DoneProblem != "" {
		return s // the rest is for those that must still join
	}
	s.Debris = n.debris()
	s.Runtime = connects(n.path(criSocket))
	s.API, s.APIDetail = n.probeAPI(ctx)
	if n.apiSeen.at.IsZero() || n.apiSeen.api != s.API {
		n.apiSeen = answerSince{s.API, s.Now}
	}
	s.APISince = n.apiSeen.at
	if s.API == APIReady {
		n.askAPI(ctx, &s)
	}
	if s.Master && !s.Debris {
		s.Etcd, s.Initialised, s.EtcdDetail = n.askEtcd(ctx)
	}
	return s
}

// done reads the fact that kubeadm succeeded.
func (n *Node) done() (*Done, string) {
	data, err := os.ReadFile(n.path(doneFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ""
	}
	var d Done
	if err == nil {
		err = json.Unmarshal(data, &d)
	}
	switch {
	case err != nil:
		return nil, fmt.Sprintf("reading %s: %v", n.path(doneFile), err)
	case d.ClusterUID != n.Node.Cluster.UID:
		return nil, fmt.Sprintf("this disk joined cluster %s, and its config is that of %s: image the machine again", d.ClusterUID, n.Node.Cluster.UID)
	case d.Node != n.Name:
		return nil, fmt.Sprintf("this disk joined as %s, and the machine is %s now: image the machine again", d.Node, n.Name)
	}
	return &d, ""
}

// kubeletCertificate is when the kubelet's client certificate ends; zero: it
// has none of this name.
func (n *Node) kubeletCertificate() time.Time {
	c, err := kubeapi.ReadKubeconfig(n.path(kubeletConf))
	if err != nil {
		return time.Time{}
	}
	for rest := c.Cert; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return time.Time{}
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || cert.Subject.CommonName != nodeUser+n.Name {
			return time.Time{}
		}
		return cert.NotAfter
	}
}

// attemptFiles are there from the first steps of a kubeadm on. Manifests and
// files of a person's own are none of them.
var attemptFiles = [...]string{adminConf, superConf, kubeletConf, kubernetesDir + "/bootstrap-kubelet.conf", kubernetesDir + "/controller-manager.conf",
	kubernetesDir + "/scheduler.conf", kubernetesDir + "/pki/ca.crt", kubernetesDir + "/pki/apiserver.crt", kubernetesDir + "/manifests/kube-apiserver.yaml",
	kubernetesDir + "/manifests/kube-controller-manager.yaml", kubernetesDir + "/manifests/kube-scheduler.yaml",
	kubeletDir + "/config.yaml", kubeletDir + "/kubeadm-flags.env"}

func (n *Node) debris() bool {
	for _, f := range attemptFiles {
		if exists(n.path(f)) {
			return true
		}
	}
	return false
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return !errors.Is(err, fs.ErrNotExist)
}

func connects(socket string) bool {
	c, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// probeTimeout is how long an API server on an emulated processor may think.
const probeTimeout = 10 * time.Second

// probeAPI asks the balancer and every master whether an API server is ready.
func (n *Node) probeAPI(ctx context.Context) (API, string) {
	ca, err := os.ReadFile(n.pki("ca.crt"))
	if err != nil {
		return APISilent, err.Error()
	}
	servers := []string{n.API}
	for _, m := range n.Masters() {
		if m.Name != n.Name { // one's own is of an attempt that was cut off
			servers = append(servers, net.JoinHostPort(m.Address, apiPort))
		}
	}
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		best    API
		details []string
	)
	for _, server := range servers {
		wg.Go(func() {
			api, detail := probeOne(ctx, server, ca)
			mu.Lock()
			defer mu.Unlock()
			best = max(best, api)
			details = append(details, server+": "+detail)
		})
	}
	wg.Wait()
	return best, strings.Join(details, "; ")
}

// probeOne asks without credentials: a token that is not known yet would be refused.
func probeOne(ctx context.Context, server string, ca []byte) (API, string) {
	c, err := kubeapi.New(kubeapi.Config{Server: "https://" + server, CA: ca, Timeout: probeTimeout})
	if err != nil {
		return APISilent, err.Error()
	}
	defer c.Close()
	var answer string
	err = c.Get(ctx, "/readyz", nil, &answer)
	var e *kubeapi.Error
	switch {
	case err == nil:
		return APIReady, "ready"
	case errors.As(err, &e) && (e.Code == 401 || e.Code == 403):
		return APIReady, "ready" // it lets nobody ask without credentials
	case errors.As(err, &e):
		return APIStarting, "not ready"
	}
	return APISilent, rootCause(err)
}

// rootCause is the innermost error: without the URL around it.
func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

// askAPI asks the cluster about this machine, as this machine.
func (n *Node) askAPI(ctx context.Context, s *State) {
	c, err := n.tokenClient()
	if err != nil {
		s.APIDetail = err.Error()
		return
	}
	err = c.Get(ctx, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config", nil, nil)
	switch {
	case err == nil:
		s.Token = Yes
	case kubeapi.Is(err, 401), kubeapi.Is(err, 403), kubeapi.Is(err, 404):
		s.Token = No
		return
	default:
		return
	}
	var version struct{ GitVersion string }
	if err := c.Get(ctx, "/version", nil, &version); err == nil {
		s.APIVersion = version.GitVersion
	}
	var node apiNode
	switch err := c.Get(ctx, "/api/v1/nodes/"+n.Name, nil, &node); {
	case err == nil && node.ready():
		s.NodeReady = Yes
	case err == nil, kubeapi.Is(err, 404):
		s.NodeReady = No
	}
}

// tokenClient talks to the cluster by this machine's token.
func (n *Node) tokenClient() (*kubeapi.Client, error) {
	if n.clients.token != nil {
		return n.clients.token, nil
	}
	token, err := n.token()
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(n.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	n.clients.token, err = kubeapi.New(kubeapi.Config{Server: "https://" + n.API, CA: ca, Token: token, Timeout: probeTimeout})
	return n.clients.token, err
}

// askEtcd asks etcd, by a linearizable read, whether something finished
// initialising this cluster: the record that provisioning writes last. The API
// server's own keys are not encrypted, only their values.
func (n *Node) askEtcd(ctx context.Context) (serves, initialised Answer, detail string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var out strings.Builder
	err := n.Run(ctx, run.Cmd{Stdout: &out, Argv: []string{"etcdctl", "--endpoints=https://" + n.Etcd, "--cacert=" + n.pki("etcd-ca.crt"),
		"--cert=" + n.pki("apiserver-etcd-client.crt"), "--key=" + n.pki("apiserver-etcd-client.key"), "--command-timeout=20s", "--dial-timeout=10s",
		"get", "--keys-only", recordKey}})
	if err != nil {
		return Unknown, Unknown, reason(err).Error()
	}
	if strings.Contains(out.String(), recordKey) {
		return Yes, Yes, ""
	}
	return Yes, No, ""
}
