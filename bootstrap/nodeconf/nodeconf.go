// Package nodeconf is what a machine is told at first boot: its one
// definition, for the program that writes it and the agent that reads it.
//
// A machine finds in Dir:
//
//	node.json     Config: no secret, the same on every boot
//	roster.json   SignedRoster: the cluster's machines, signed by the operator
//	token         bootstrap token "ID.SECRET", of machines with a kubelet
//	pki/          certificates and keys, what the machine's roles need and no more
//
// Only node.json has a version. A reader refuses one that it does not know and
// ignores no field.
package nodeconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// APIVersion and Kind open node.json.
const (
	APIVersion = "kimage.dev/v1alpha1"
	Kind       = "NodeConfig"
)

// Where first boot puts things, and what they are called there.
const (
	Dir        = "/etc/kimage"
	File       = Dir + "/node.json"
	RosterFile = Dir + "/roster.json"
	TokenFile  = Dir + "/token"
	PKIDir     = Dir + "/pki"
)

// Files below PKIDir. A .crt of an authority may hold several certificates.
const (
	ClusterCA         = "ca"                    // .crt on all, .key on masters
	FrontProxyCA      = "front-proxy-ca"        // .crt and .key on masters
	EtcdCA            = "etcd-ca"               // .crt on etcd members and masters
	PeerCA            = "etcd-peer-ca"          // .crt on etcd members
	EtcdServer        = "etcd-server"           // .crt and .key on etcd members
	EtcdPeer          = "etcd-peer"             // .crt and .key on etcd members: raft and the agents' endpoint
	EtcdAgent         = "etcd-agent"            // .crt and .key on etcd members: the agent as etcd's client
	APIServerEtcd     = "apiserver-etcd-client" // .crt and .key on masters
	ServiceAccountKey = "sa.key"                // masters
	ServiceAccountPub = "sa.pub"                // masters
	EncryptionKey     = "encryption.key"        // masters: 32 bytes, base64, encrypts Secrets in etcd
	JoinKey           = "join.key"              // masters: tokens of all names are derived from it
)

// Roles of a machine.
const (
	RoleEtcd   = "etcd"
	RoleMaster = "master"
	RoleWorker = "worker"
)

// Config is node.json.
type Config struct {
	APIVersion string  `json:"apiVersion"`
	Kind       string  `json:"kind"`
	Cluster    Cluster `json:"cluster"`
	Node       Node    `json:"node"`
	Image      Image   `json:"image"`
	Network    Network `json:"network"`
	API        API     `json:"api"`
	Kubeadm    *Raw    `json:"kubeadm,omitempty"` // masters: merged into ClusterConfiguration v1beta4
	Kubelet    *Raw    `json:"kubelet,omitempty"` // masters: merged into KubeletConfiguration
}

// Cluster names the cluster.
type Cluster struct {
	Name      string    `json:"name"`
	UID       string    `json:"uid"`
	RosterKey string    `json:"rosterKey"` // base64 of the Ed25519 public key that signs rosters
	Issued    time.Time `json:"issued"`    // no clock of the cluster is earlier
}

// Node is the machine itself: one of the cluster file, or one of a pool.
type Node struct {
	Name      string            `json:"name,omitempty"` // empty: of a pool; POOL-HASH of the machine's identity, on Compute Engine the instance's name
	Pool      string            `json:"pool,omitempty"`
	Roles     []string          `json:"roles"`
	Addresses []string          `json:"addresses,omitempty"` // one per family; empty: the source of the route to the masters
	Match     Match             `json:"match,omitzero"`
	Labels    map[string]string `json:"labels,omitempty"`
	Taints    []Taint           `json:"taints,omitempty"`
}

// Match tells one machine from another; all that is set must hold.
type Match struct {
	MAC    string `json:"mac,omitempty"`
	Serial string `json:"serial,omitempty"`
	UUID   string `json:"uuid,omitempty"`
}

// Taint is one of the node's taints.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
}

// Image is what the machine must have booted.
type Image struct {
	OS         string `json:"os"`
	Kubernetes string `json:"kubernetes"`
	Runtime    string `json:"runtime"`
	Plugin     string `json:"plugin"`
}

// Network holds the cluster's networks, one CIDR per family, the cluster's
// first family first.
type Network struct {
	Pods      []string          `json:"pods"`
	Services  []string          `json:"services"`
	Nodes     []string          `json:"nodes,omitempty"`
	DNSDomain string            `json:"dnsDomain"`
	DNS       []string          `json:"dns"`               // the tenth address of each service network
	Options   map[string]string `json:"options,omitempty"` // the plugin's own
}

// API is how people outside reach the API server.
type API struct {
	Endpoint string   `json:"endpoint,omitempty"` // HOST:PORT
	CertSANs []string `json:"certSANs,omitempty"`
}

// Raw is a JSON object that is passed on.
type Raw = json.RawMessage

// Has says whether the machine has a role.
func (n Node) Has(role string) bool { return slices.Contains(n.Roles, role) }

// Encode is the file's content: the same value gives the same bytes.
func (c Config) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(c); err != nil {
		return nil, fmt.Errorf("encoding node.json: %w", err)
	}
	return b.Bytes(), nil
}

// Decode reads node.json.
func Decode(data []byte) (Config, error) {
	var version struct {
		APIVersion, Kind string
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return Config{}, fmt.Errorf("reading node.json: %w", err)
	}
	if version.APIVersion != APIVersion || version.Kind != Kind {
		return Config{}, fmt.Errorf("node.json is %s %s, and this agent knows %s %s: boot an image of the kimage that made the config", version.APIVersion, version.Kind, APIVersion, Kind)
	}
	var c Config
	if err := strict(data, &c); err != nil {
		return Config{}, fmt.Errorf("reading node.json: %w", err)
	}
	if c.Cluster.UID == "" || c.Node.Name == "" == (c.Node.Pool == "") || len(c.Node.Roles) == 0 {
		return Config{}, errors.New("node.json lacks the cluster's uid, the node's roles, or exactly one of its name and pool: make it again with kimage config")
	}
	return c, nil
}

// strict decodes one JSON value without unknown fields.
func strict(data []byte, to any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the object")
	}
	return nil
}
