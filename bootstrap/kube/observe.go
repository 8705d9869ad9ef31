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
	"time"
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
	Certificate Certificate
	Clock       string // why this machine's clock must be set first; empty: it agrees with others'
	Debris      bool   // of a kubeadm that did not succeed
	Runtime     bool
	Failures    int       // of kubeadm, one after the other, in this run of the agent
	FailedAt    time.Time // the last one
	Failure     string    // its words
	API         API
	APIDetail   string    // what was tried
	APISince    time.Time // since when it is so
	APIRefused  bool      // masters: every other master's machine refuses connections to its API server; there may be no other
	Kubernetes  string    // this image's

	ClusterVersion string // masters: of kubeadm-config; workers: of the newest master that is up; empty: not known
	RaisedTo       string // version of kubeadm-config, from when on new pods of every machine have it; empty: not known
	Token          Answer // the cluster knows this machine's token
	NodeReady      Answer // a Ready Node has this machine's name
	Etcd           Answer // masters: etcd serves a linearizable read
	EtcdDetail     string
	Initialised    Answer // masters: something finished initialising this cluster, says etcd
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
	if s.DoneProblem != "" || s.Done != nil && !s.Certificate.useless(s.Now) {
		return s // the rest is for those that must join
	}
	s.Clock = n.Clock()
	s.Debris = n.debris()
	s.Runtime = connects(n.path(criSocket))
	s.API, s.APIRefused, s.APIDetail = n.probeAPI(ctx, s.Done == nil)
	if n.apiSeen.at.IsZero() || n.apiSeen.api != s.API {
		n.apiSeen = answerSince{s.API, s.Now}
	}
	s.APISince = n.apiSeen.at
	if s.API == APIReady {
		n.askAPI(ctx, &s)
	}
	if s.Master && s.Done == nil && !s.Debris && !s.starting() {
		s.Etcd, s.Initialised, s.EtcdDetail = n.askEtcd(ctx)
		if s.Initialised == Yes && s.ClusterVersion == "" {
			s.ClusterVersion, s.EtcdDetail = n.versionInEtcd(ctx)
		}
	}
	return s
}

// starting says whether another master's API server is on its way. etcd is not
// asked then, which would take from it what it starts with on a slow machine.
func (s State) starting() bool {
	return s.API == APIStarting && s.Now.Before(s.APISince.Add(startingFor))
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

// Certificate is what is known of the kubelet's client certificate.
type Certificate struct {
	Missing bool      // there is none, or it is not this machine's
	Until   time.Time // zero: it cannot be read now
}

// useless says whether the kubelet cannot join or renew by it.
func (c Certificate) useless(now time.Time) bool {
	return c.Missing || !c.Until.IsZero() && now.After(c.Until)
}

func (n *Node) kubeletCertificate() Certificate {
	conf, err := n.kubeconfig(kubeletConf)
	if errors.Is(err, fs.ErrNotExist) {
		return Certificate{Missing: true}
	}
	if err != nil {
		return Certificate{}
	}
	for rest := conf.Cert; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return Certificate{Missing: true}
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || cert.Subject.CommonName != nodeUser+n.Name {
			return Certificate{Missing: true}
		}
		return Certificate{Until: cert.NotAfter}
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
