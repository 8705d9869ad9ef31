package etcd

import (
	"crypto/sha1" // as in etcd's own IDs
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// Record is one possible founding. Only the incarnations are free; the rest
// follows from the roster, and is in the record because a record may outlive
// the roster it was made from.
type Record struct {
	ClusterUID string    `json:"clusterUID"`
	Generation int       `json:"generation"`
	Roster     string    `json:"roster"`         // digest of the signed roster
	Seed       string    `json:"seed,omitempty"` // sha256 of the snapshot it starts from; empty: an empty database
	Members    []Founder `json:"members"`        // the founding members, sorted by name
}

// Founder is one founding member of a record.
type Founder struct {
	Name        string `json:"name"`
	PeerURL     string `json:"peerURL"`
	Incarnation string `json:"incarnation"`
}

// compose makes the record of a roster and its founding members' incarnations.
func compose(r nodeconf.Roster, digest string, incarnation map[string]string) Record {
	rec := Record{ClusterUID: r.ClusterUID, Generation: r.Generation, Roster: digest, Seed: r.Seed}
	for _, m := range r.Members {
		if slices.Contains(r.Founding, m.Name) {
			rec.Members = append(rec.Members, Founder{m.Name, m.PeerURL, incarnation[m.Name]})
		}
	}
	return rec
}

// of says whether the record belongs to this very roster.
func (r Record) of(roster nodeconf.Roster, digest string) bool {
	incarnation := map[string]string{}
	for _, m := range r.Members {
		if m.Incarnation == "" {
			return false
		}
		incarnation[m.Name] = m.Incarnation
	}
	return len(r.Members) == len(roster.Founding) && r.Token() == compose(roster, digest, incarnation).Token()
}

// incarnation returns the incarnation that the record names for a member; empty: none.
func (r Record) incarnation(name string) string {
	for _, m := range r.Members {
		if m.Name == name {
			return m.Incarnation
		}
	}
	return ""
}

// peerURL returns where the record expects a member's etcd; empty: no member.
func (r Record) peerURL(name string) string {
	for _, m := range r.Members {
		if m.Name == name {
			return m.PeerURL
		}
	}
	return ""
}

// voters are the members of the cluster that was founded.
func (r Record) voters() (all []EtcdMember) {
	for _, m := range r.Members {
		all = append(all, EtcdMember{ID: hexID(r.MemberID(m.Name)), Name: m.Name, Incarnation: m.Incarnation, PeerURL: m.PeerURL})
	}
	return all
}

// names says whether the record names this incarnation of the member.
func (r Record) names(name, incarnation string) bool {
	return incarnation != "" && r.incarnation(name) == incarnation
}

// Token names the record: hex of the SHA-256 of its JSON, etcd's cluster token.
func (r Record) Token() string {
	data, err := json.Marshal(r)
	if err != nil {
		panic("BUG: a record is not JSON: " + err.Error())
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// InitialCluster is the record's members as etcd writes them: NAME=URL,...
func (r Record) InitialCluster() string {
	var all []string
	for _, m := range r.Members {
		all = append(all, m.Name+"="+m.PeerURL)
	}
	return strings.Join(all, ",")
}

// MemberID is the ID that etcd will give a founding member: the first 8 bytes
// of the SHA-1 of peer URL and token.
func (r Record) MemberID(name string) uint64 {
	for _, m := range r.Members {
		if m.Name == name {
			sum := sha1.Sum([]byte(m.PeerURL + r.Token()))
			return binary.BigEndian.Uint64(sum[:8])
		}
	}
	return 0
}

// ClusterID is the ID that etcd will give the cluster, in etcd's notation: the
// first 8 bytes of the SHA-1 of the sorted member IDs.
func (r Record) ClusterID() string {
	var ids []uint64
	for _, m := range r.Members {
		ids = append(ids, r.MemberID(m.Name))
	}
	slices.Sort(ids)
	var all []byte
	for _, id := range ids {
		all = binary.BigEndian.AppendUint64(all, id)
	}
	sum := sha1.Sum(all)
	return hexID(binary.BigEndian.Uint64(sum[:8]))
}

// hexID writes an ID as etcd does.
func hexID(id uint64) string { return strconv.FormatUint(id, 16) }
