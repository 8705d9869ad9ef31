package state

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/pki"
)

// Ports of etcd.
const (
	etcdPeerPort = "2380"
	apiPort      = "6443"
)

// adminLifetime is that of the operator's certificate; a third of it before
// its end it is made again.
const adminLifetime = 365 * 24 * time.Hour

// Ensure makes what the cluster file wants and is not there, in memory.
func (s *Store) Ensure() error {
	c := s.file.Cluster
	if s.fresh {
		s.Public = Public{APIVersion: cluster.APIVersion, Kind: "ClusterState", Name: c.Metadata.Name, UID: newUID(),
			Created: s.now().UTC().Truncate(time.Second), Fingerprints: map[string]string{}}
		s.dirty = true
	}
	if err := s.roots(c.KeyAlgorithm()); err != nil {
		return err
	}
	for _, t := range s.file.Nodes {
		if err := s.leaves(t, c.KeyAlgorithm()); err != nil {
			return fmt.Errorf("certificates of %s: %w", t.Name, err)
		}
	}
	if err := s.ensureAdmin(c.KeyAlgorithm()); err != nil {
		return err
	}
	return s.ensureRoster()
}

// roots are the secrets that everything else hangs on.
func (s *Store) roots(algorithm string) error {
	made := func(name string) error {
		f, err := s.fingerprint(name)
		if err != nil {
			return fmt.Errorf("BUG: %s: %w", name, err)
		}
		s.Fingerprints[name] = f
		s.dirty = true
		return nil
	}
	for _, a := range authorities {
		if _, ok := s.Fingerprints[a.name]; ok {
			continue
		}
		// The organisation tells clusters of one name apart.
		ca, err := pki.NewCA(a.commonName, "kimage:"+s.Public.Name+":"+s.UID, algorithm, s.now())
		if err != nil {
			return err
		}
		s.setPair(a.name, ca)
		if err := made(a.name); err != nil {
			return err
		}
	}
	for _, k := range []struct {
		name string
		make func() ([]byte, error)
	}{
		{nodeconf.ServiceAccountKey, func() ([]byte, error) { return pki.NewKey(algorithm) }},
		{rosterKey, newEd25519},
		{nodeconf.EncryptionKey, random32},
		{nodeconf.JoinKey, random32},
	} {
		if _, ok := s.Fingerprints[k.name]; ok {
			continue
		}
		data, err := k.make()
		if err != nil {
			return err
		}
		s.set(k.name, data)
		if err := made(k.name); err != nil {
			return err
		}
	}
	if s.secrets[nodeconf.ServiceAccountPub] == nil {
		public, err := pki.Public(s.secrets[nodeconf.ServiceAccountKey])
		if err != nil {
			return err
		}
		s.set(nodeconf.ServiceAccountPub, public)
	}
	return nil
}

func (s *Store) setPair(name string, p pki.Pair) {
	s.set(name+".crt", p.Cert)
	s.set(name+".key", p.Key)
}

// random32 is 32 random bytes, base64.
func random32() ([]byte, error) {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return []byte(base64.StdEncoding.EncodeToString(b[:]) + "\n"), nil
}

// leaves are a machine's own certificates for etcd; they live as long as their
// authority, because no machine could renew them.
func (s *Store) leaves(t cluster.Target, algorithm string) error {
	for _, l := range s.leafRequests(t) {
		name := Node(t.Name, l.name)
		if have := s.Pair(name); have.Key != nil && pki.Covers(have.Cert, s.secrets[l.ca+".crt"], l.request.Names, s.now()) {
			continue
		}
		p, err := s.Pair(l.ca).Issue(l.request, algorithm, s.now())
		if err != nil {
			return err
		}
		s.setPair(name, p)
	}
	return nil
}

type leaf struct {
	name, ca string
	request  pki.Request
}

func (s *Store) leafRequests(t cluster.Target) (out []leaf) {
	if t.Has(cluster.RoleEtcd) {
		names := slices.Concat([]string{t.Name}, t.Addresses, []string{"127.0.0.1", "::1"})
		out = append(out,
			leaf{nodeconf.EtcdServer, nodeconf.EtcdCA, pki.Request{CommonName: t.Name, Names: names, Server: true}},
			leaf{nodeconf.EtcdPeer, nodeconf.PeerCA, pki.Request{CommonName: t.Name, Names: names, Server: true, Client: true}},
			leaf{nodeconf.EtcdAgent, nodeconf.EtcdCA, pki.Request{CommonName: "kimage-agent:" + t.Name, Client: true}})
	}
	if t.Has(cluster.RoleMaster) {
		out = append(out, leaf{nodeconf.APIServerEtcd, nodeconf.EtcdCA, pki.Request{CommonName: "kube-apiserver-etcd-client", Client: true}})
	}
	return out
}

func (s *Store) ensureAdmin(algorithm string) error {
	if have := s.Pair(admin); have.Key != nil && pki.Covers(have.Cert, s.secrets[nodeconf.ClusterCA+".crt"], nil, s.now().Add(adminLifetime/3)) {
		return nil
	}
	p, err := s.Pair(nodeconf.ClusterCA).Issue(pki.Request{CommonName: "kimage-operator", Organization: []string{"kubeadm:cluster-admins"}, Client: true,
		NotAfter: s.now().Add(adminLifetime)}, algorithm, s.now())
	if err != nil {
		return err
	}
	s.setPair(admin, p)
	return nil
}

// ensureRoster raises the serial if the list of machines changed. The founding
// members of a generation never change.
func (s *Store) ensureRoster() error {
	next := s.Roster
	next.APIVersion, next.Kind, next.ClusterUID = nodeconf.APIVersion, "Roster", s.UID
	next.Members, next.Masters, next.Peers = nil, nil, peersOf(s.file)
	var names []string
	for _, t := range s.file.Nodes {
		if t.Has(cluster.RoleEtcd) {
			next.Members = append(next.Members, nodeconf.Member{Name: t.Name, PeerURL: "https://" + net.JoinHostPort(t.Addresses[0], etcdPeerPort)})
			names = append(names, t.Name)
		}
		if t.Has(cluster.RoleMaster) {
			next.Masters = append(next.Masters, nodeconf.Master{Name: t.Name, Address: t.Addresses[0]})
		}
	}
	slices.SortFunc(next.Members, func(a, b nodeconf.Member) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(next.Masters, func(a, b nodeconf.Master) int { return strings.Compare(a.Name, b.Name) })
	if next.Generation == 0 {
		slices.Sort(names)
		next.Generation, next.Founding = 1, names
	} else if slices.Equal(next.Members, s.Roster.Members) && slices.Equal(next.Masters, s.Roster.Masters) && reflect.DeepEqual(next.Peers, s.Roster.Peers) {
		return nil
	}
	next.Left = next.Without(s.Roster)
	next.Serial++
	next.Issued = s.now().UTC().Truncate(time.Second)
	if next.Serial > 1 {
		s.logf("the list of machines changed: roster serial %d", next.Serial)
	}
	s.Roster, s.dirty = next, true
	return nil
}

// peersOf lists every machine with a kubelet, as its masters know it.
func peersOf(f *cluster.File) (peers nodeconf.Peers) {
	for _, t := range f.Targets() {
		if !t.Kubelet() {
			continue
		}
		_, restricted := t.SplitLabels()
		if len(restricted) == 0 {
			restricted = nil // as a roster that was read has it
		}
		p := nodeconf.Peer{Name: t.Name, Roles: t.Roles, Addresses: t.Addresses, Size: t.Size, Labels: restricted}
		if t.Pool {
			peers.Pools = append(peers.Pools, p)
		} else {
			peers.Nodes = append(peers.Nodes, p)
		}
	}
	return peers
}

// Rotate makes a group of secrets anew; machines that use them need their new
// configs.
func (s *Store) Rotate(what string) error {
	switch what {
	case "join":
		key, err := random32()
		if err != nil {
			return err
		}
		s.set(nodeconf.JoinKey, key)
		if s.Fingerprints[nodeconf.JoinKey], err = s.fingerprint(nodeconf.JoinKey); err != nil {
			return err
		}
		s.dirty = true
	case "kubeconfig":
		delete(s.secrets, admin+".key")
		return s.ensureAdmin(s.file.Cluster.KeyAlgorithm())
	case "etcd":
		for _, t := range s.file.Nodes {
			for _, l := range s.leafRequests(t) {
				delete(s.secrets, Node(t.Name, l.name)+".key")
			}
			if err := s.leaves(t, s.file.Cluster.KeyAlgorithm()); err != nil {
				return err
			}
		}
	case "ca":
		return errors.New("authorities are not rotated: every certificate and every machine hangs on them, and a machine with the old one could not be told the new one. " +
			"Their files are bundles, so that a successor can be trusted beside them; that takes a running cluster to carry it, not this command")
	default:
		return fmt.Errorf("unknown secrets %q: rotate join, kubeconfig or etcd", what)
	}
	return nil
}

// Encrypt writes every private file for the cluster file's recipients.
func (s *Store) Encrypt() (int, error) {
	if len(s.recipients) == 0 {
		return 0, errors.New("for whom? name age recipients under spec.secrets.encryptTo in the cluster file")
	}
	n := 0
	for name := range s.secrets {
		if private(name) {
			s.changed[name] = true
			n++
		}
	}
	return n, s.Save()
}

// Kubeconfig is the operator's: a context per master, and one for the endpoint.
func (s *Store) Kubeconfig() ([]byte, error) {
	var servers []server
	if e := s.file.Cluster.Spec.API.Endpoint; e != "" {
		servers = append(servers, server{s.Public.Name, e})
	}
	for _, m := range s.Roster.Masters {
		servers = append(servers, server{s.Public.Name + "-" + m.Name, net.JoinHostPort(m.Address, apiPort)})
	}
	return s.kubeconfig(servers)
}

// KubeconfigAt is the operator's where the API is reached at HOST:PORT alone.
func (s *Store) KubeconfigAt(hostPort string) ([]byte, error) {
	return s.kubeconfig([]server{{s.Public.Name, hostPort}})
}

// server is a way to the API, and the context by which it is chosen.
type server struct{ context, hostPort string }

func (s *Store) kubeconfig(servers []server) ([]byte, error) {
	type named struct {
		Name    string         `json:"name"`
		Cluster map[string]any `json:"cluster,omitempty"`
		Context map[string]any `json:"context,omitempty"`
		User    map[string]any `json:"user,omitempty"`
	}
	config := struct {
		APIVersion     string         `json:"apiVersion"`
		Kind           string         `json:"kind"`
		CurrentContext string         `json:"current-context"`
		Clusters       []named        `json:"clusters"`
		Contexts       []named        `json:"contexts"`
		Users          []named        `json:"users"`
		Preferences    map[string]any `json:"preferences"`
	}{APIVersion: "v1", Kind: "Config", Preferences: map[string]any{}}
	p, user := s.Pair(admin), s.Public.Name+"-operator"
	config.Users = []named{{Name: user, User: map[string]any{"client-certificate-data": p.Cert, "client-key-data": p.Key}}}
	for _, x := range servers {
		config.Clusters = append(config.Clusters, named{Name: x.context, Cluster: map[string]any{"server": "https://" + x.hostPort, "certificate-authority-data": s.secrets[nodeconf.ClusterCA+".crt"]}})
		config.Contexts = append(config.Contexts, named{Name: x.context, Context: map[string]any{"cluster": x.context, "user": user}})
	}
	config.CurrentContext = config.Contexts[0].Name
	data, err := json.MarshalIndent(config, "", "  ")
	return append(data, '\n'), err
}
