package etcd

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// unusable are etcd's last words when it cannot start on its data, as in the
// sources of etcd 3.7.3 and bbolt. The list is closed: a member that ends in any
// other way (a port, a certificate, a full disk) keeps its data. Not among them is
// what etcd warns of and gets over, as a snapshot with a wrong sum, nor what a
// comparison with others finds: it does not say who of them is wrong.
var unusable = []string{
	"walpb: crc mismatch",
	`"msg":"discovery failed","error":"proto:`, // a record of the log is none
	"failed to read WAL, cannot be repaired",
	"failed to recover v3 backend from snapshot",
	"failed to find database snapshot file",
	"Was the raft log corrupted, truncated, or lost?",
	"invalid database", // bbolt's
}

// unusableBy is the line in which etcd says so; empty: it does not.
func unusableBy(words string) string {
	for line := range strings.Lines(words) {
		for _, w := range unusable {
			if strings.Contains(line, w) {
				return strings.TrimSpace(line)
			}
		}
	}
	return ""
}

// troubleBy says what etcd's last words mean where it ends at each start until a
// person does something; empty: nothing that is known. Its data is not touched: a
// comparison with others does not say who of them is wrong.
func troubleBy(words string) string {
	switch {
	case strings.Contains(words, "found data inconsistency with peers"):
		return "etcd found that its data differs from that of other members (found data inconsistency with peers), and does not say whose is wrong: " +
			"if the others run, the data of this machine is wrong: image it again; if several say so, compare them with etcdctl endpoint hashkv --cluster first"
	case strings.Contains(words, "server version is lower than determined cluster version"):
		return "the etcd of this machine's image is older than its data: boot this machine with an image of the newer Kubernetes"
	}
	return ""
}

// alarms says what etcd's alarms mean, and what a person can do; empty: there are none.
func (s State) alarms() string {
	var all []string
	for _, a := range s.View.Alarms {
		name := "a member"
		if m := s.View.of(a.Member); m != nil {
			name, _ = s.owner(*m)
		}
		switch a.Kind {
		case "CORRUPT":
			all = append(all, fmt.Sprintf("etcd found that the data of %s differs from that of the others, and takes no more writes (alarm CORRUPT): compare them with etcdctl endpoint hashkv --cluster, switch the machine off whose is wrong, "+
				"end the alarm with etcdctl alarm disarm, and image that machine again", name))
		case "NOSPACE":
			all = append(all, fmt.Sprintf("the database of %s is full, and etcd takes no more writes (alarm NOSPACE): compact and defragment it with etcdctl, then end the alarm with etcdctl alarm disarm", name))
		default:
			all = append(all, fmt.Sprintf("etcd has the alarm %s of %s", a.Kind, name))
		}
	}
	return strings.Join(all, "; ")
}

// unfitBy says why the etcd of this machine's image cannot join, by the last words
// of one that tried; empty: it can. etcd ends as "incompatible with current running
// cluster" also where it has not heard which version the cluster has.
func unfitBy(words string) string {
	switch {
	case strings.Contains(words, "cluster version of remote member is not compatible; too high"):
		return "the etcd of this machine's image is older than the cluster's, and cannot join it: boot this machine with an image of the newer Kubernetes"
	case strings.Contains(words, "cluster version of remote member is not compatible; too low"):
		return "the etcd of this machine's image is too new to join the cluster's: boot this machine with an image of the Kubernetes that the other machines have, or of the next minor one"
	}
	return ""
}

// corrupt is for a member whose etcd has ended because of its data: it counts as
// lost if others are a quorum without it. They are if one has just read from a
// quorum, since the own etcd does not run.
func corrupt(s State) Action {
	line := unusableBy(s.Ended)
	if len(line) > 300 {
		line = line[:300]
	}
	for _, name := range slices.Sorted(maps.Keys(s.answers())) {
		if st := s.answers()[name]; st.Serves && st.Cluster == s.Facts.Cluster.ID {
			return Action{Do: SetAside, Why: fmt.Sprintf("etcd cannot use its data any more (%s), and %s proves a quorum without it: the machine comes back as another member", line, name)}
		}
	}
	return Action{Do: Wait, Why: fmt.Sprintf("etcd cannot use its data any more (%s), and nobody proves a quorum without it: nothing is changed; start the other members, or if they are lost: kimage recover", line)}
}

const oldDisk = "an older copy of this disk was put back"

// Count is the highest counter that was heard of a machine's incarnation.
type Count struct {
	Incarnation string `json:"incarnation"`
	Counter     uint64 `json:"counter"`
	Tag         string `json:"tag,omitempty"`
}

// rolledBack says who has heard a count of this very incarnation that this disk
// has not made: the disk is an older copy, and what was acknowledged since is not
// on it.
func (s State) rolledBack() string {
	own := s.Facts.Incarnation
	for _, name := range slices.Sorted(maps.Keys(s.Answers)) {
		c := s.Answers[name].Status.Heard[s.Self]
		made := own.tag(c.Counter)
		if own.ID != "" && c.Incarnation == own.ID && (c.Counter > own.Counter || made != "" && c.Tag != "" && made != c.Tag) {
			return name
		}
	}
	return ""
}
