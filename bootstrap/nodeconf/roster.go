package nodeconf

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Roster is the list of etcd members, masters and all other machines that the
// operator signed. It is the one thing that running machines are told later.
//
// Within a generation the founding members never change, and the serial rises
// with every change of the rest. Only a person makes a new generation.
type Roster struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"` // Roster
	ClusterUID string   `json:"clusterUID"`
	Generation int      `json:"generation"`
	Serial     int      `json:"serial"`
	Founding   []string `json:"founding"` // names, sorted; who is not among them never founds
	Members    []Member `json:"members"`  // etcd, sorted by name
	Masters    []Master `json:"masters"`  // sorted by name
	// Left are members of an older roster of this generation that are none of this
	// one, sorted by name: who would found asks them too, because they may have data.
	Left   []Member  `json:"left,omitempty"`
	Peers  Peers     `json:"peers,omitzero"`
	Seed   string    `json:"seed,omitempty"`
	Issued time.Time `json:"issued"`
}

// Member is one member of etcd.
type Member struct {
	Name    string `json:"name"`
	PeerURL string `json:"peerURL"`
}

// Peers are the machines with a kubelet: the names for which masters keep
// bootstrap tokens.
type Peers struct {
	Nodes []Peer `json:"nodes,omitempty"`
	Pools []Peer `json:"pools,omitempty"`
}

// Peer is one named machine or pool as its masters know it.
type Peer struct {
	Name      string            `json:"name"`
	Roles     []string          `json:"roles"`
	Addresses []string          `json:"addresses,omitempty"`
	Size      int               `json:"size,omitempty"`   // pools
	Labels    map[string]string `json:"labels,omitempty"` // those that a node may not set itself
}

// Has says whether the machine, or pool, of a name is one of the cluster's.
func (p Peers) Has(pool bool, name string) bool {
	list := p.Nodes
	if pool {
		list = p.Pools
	}
	return slices.ContainsFunc(list, func(p Peer) bool { return p.Name == name })
}

// Master is one machine that runs an API server.
type Master struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// SignedRoster is roster.json: the exact bytes that were signed, and the
// Ed25519 signature over signatureContext and them.
type SignedRoster struct {
	Payload   []byte `json:"payload"`   // a Roster as JSON
	Signature []byte `json:"signature"` // 64 bytes
}

// signatureContext keeps a signature over something else from being one over a roster.
const signatureContext = "kimage.dev roster v1\n"

const rosterKind = "Roster"

// MaxRosterBytes is the longest payload of a roster: a few thousand machines. It
// travels in every direction, and etcd's agents hold several at once.
const MaxRosterBytes = 512 << 10

// Sign makes the signed roster; Ed25519 gives the same bytes for the same roster.
func (r Roster) Sign(key ed25519.PrivateKey) (SignedRoster, error) {
	r.APIVersion, r.Kind = APIVersion, rosterKind
	if err := r.validate(); err != nil {
		return SignedRoster{}, fmt.Errorf("BUG: signing a roster: %w", err)
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return SignedRoster{}, err
	}
	if len(payload) > MaxRosterBytes {
		return SignedRoster{}, fmt.Errorf("the list of the cluster's machines is %d KiB long, and may be %d: make workers that are alike a pool (spec.pools), which is one entry", len(payload)>>10, MaxRosterBytes>>10)
	}
	return SignedRoster{payload, ed25519.Sign(key, append([]byte(signatureContext), payload...))}, nil
}

// Open verifies a roster of the cluster uid under key (base64, as in
// Cluster.RosterKey).
func (s SignedRoster) Open(key, uid string) (Roster, error) {
	public, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return Roster{}, errors.New("the roster key in node.json is not an Ed25519 public key: make node.json again with kimage config")
	}
	if !ed25519.Verify(public, append([]byte(signatureContext), s.Payload...), s.Signature) {
		return Roster{}, errors.New("the roster is not signed by this cluster's operator")
	}
	var r Roster
	if err := strict(s.Payload, &r); err != nil {
		return Roster{}, fmt.Errorf("reading the roster: %w", err)
	}
	if r.ClusterUID != uid {
		return Roster{}, fmt.Errorf("the roster is that of cluster %s, and this machine belongs to %s", r.ClusterUID, uid)
	}
	if err := r.validate(); err != nil {
		return Roster{}, fmt.Errorf("reading the roster: %w", err)
	}
	return r, nil
}

func (r Roster) validate() error {
	names, left := namesOf(r.Members), namesOf(r.Left)
	switch {
	case r.APIVersion != APIVersion || r.Kind != rosterKind:
		return fmt.Errorf("it is %s %s, not %s %s", r.APIVersion, r.Kind, APIVersion, rosterKind)
	case r.ClusterUID == "" || r.Generation < 1 || r.Serial < 1:
		return errors.New("no cluster, generation or serial")
	case len(r.Founding) == 0 || len(r.Members) == 0:
		return errors.New("no founding members or no members")
	case !slices.IsSorted(r.Founding) || len(slices.Compact(slices.Clone(r.Founding))) != len(r.Founding):
		return errors.New("the founding members are not sorted or not different")
	case !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names):
		return errors.New("the members are not sorted or not different")
	case !slices.IsSorted(left) || len(slices.Compact(slices.Clone(left))) != len(left):
		return errors.New("the members that left are not sorted or not different")
	case slices.ContainsFunc(left, func(name string) bool { return slices.Contains(names, name) }):
		return errors.New("a member has left")
	}
	return nil
}

func namesOf(members []Member) []string {
	names := make([]string, 0, len(members))
	for _, m := range members {
		names = append(names, m.Name)
	}
	return names
}

// Without is who has left when the roster r, of the same generation, replaces old.
func (r Roster) Without(old Roster) []Member {
	left := slices.Concat(old.Left, old.Members)
	left = slices.DeleteFunc(left, func(m Member) bool { return slices.Contains(namesOf(r.Members), m.Name) })
	slices.SortFunc(left, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return left
}

// Digest names the exact roster: hex of its SHA-256.
func (s SignedRoster) Digest() string {
	sum := sha256.Sum256(s.Payload)
	return hex.EncodeToString(sum[:])
}

// Newer says whether r replaces old: a higher generation, or a higher serial
// in the same one. The same numbers with other content are an error: the
// operator's state was copied or rolled back.
func (r Roster) Newer(old Roster) (bool, error) {
	if r.Generation != old.Generation {
		return r.Generation > old.Generation, nil
	}
	if r.Serial != old.Serial {
		return r.Serial > old.Serial, nil
	}
	a, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	b, err := json.Marshal(old)
	if err != nil {
		return false, err
	}
	if string(a) != string(b) {
		return false, fmt.Errorf("two rosters of generation %d, serial %d differ: two copies of the operator's state were used", r.Generation, r.Serial)
	}
	return false, nil
}
