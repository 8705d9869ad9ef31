package etcd

import (
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// Question is what an agent sends to another: who asks, and its roster. With a
// record it is a proposal.
// With Prove the asked one asks its etcd before it answers.
type Question struct {
	ClusterUID string                `json:"clusterUID"`
	Roster     nodeconf.SignedRoster `json:"roster"`
	Record     *Record               `json:"record,omitempty"`
	Prove      bool                  `json:"prove,omitempty"`
	PeerURL    string                `json:"peerURL"` // of who asks: it may not be in the other's roster
}

// Status is what an agent tells of itself. All of it but the last part is on its
// disk before it is told.
type Status struct {
	ClusterUID  string                 `json:"clusterUID"`
	Name        string                 `json:"name"`
	Unknown     string                 `json:"unknown,omitempty"`     // why it can tell nothing of its data
	Incarnation string                 `json:"incarnation,omitempty"` // empty: none yet
	Counter     uint64                 `json:"counter"`
	Tag         string                 `json:"tag,omitempty"`        // of that count
	Data        bool                   `json:"data"`                 // it has data under the incarnation
	Generation  int                    `json:"generation,omitempty"` // of the data
	Cluster     string                 `json:"cluster,omitempty"`    // etcd's cluster ID of the data
	Record      *Record                `json:"record,omitempty"`     // with data: the record it was founded under; without: the one that is held
	Digest      string                 `json:"digest,omitempty"`     // of the roster
	Roster      *nodeconf.SignedRoster `json:"roster,omitempty"`
	Member      string                 `json:"member,omitempty"` // etcd's ID of the member that the data is of
	Heard       map[string]Count       `json:"heard,omitempty"`  // of the other machines, by name

	Unfit   string    `json:"unfit,omitempty"`   // why its etcd cannot join; it is not to be added
	Running bool      `json:"running,omitempty"` // its etcd's process runs
	Serves  bool      `json:"serves,omitempty"`  // to Prove: a quorum has answered its etcd since the question
	View    *View     `json:"view,omitempty"`    // what its etcd last said of the members
	Alone   *View     `json:"alone,omitempty"`   // without a View, since no quorum answers: what its etcd knows by itself; only to explain
	Time    time.Time `json:"time,omitzero"`     // its clock
}
