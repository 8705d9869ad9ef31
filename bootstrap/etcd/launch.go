package etcd

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// Ports of an etcd member, all on the node's own address.
const (
	ClientPort  = 2379 // also on 127.0.0.1
	PeerPort    = 2380
	MetricsPort = 2381 // on 127.0.0.1 only, without TLS: health and metrics
	AgentPort   = 7444
)

// Launch is how etcd is to be run. A unit that restarts it should look for
// Data/member/wal first: an etcd that finds no data leaves an empty directory,
// which then needs a person.
type Launch struct {
	Argv        []string // without the program
	Data        string   // the data directory, which is there
	Incarnation string
	Joins       bool // etcd makes its data by itself, from the members that it joins
}

// launch makes etcd's command line. It is the same on every member but for
// names and addresses.
func (c Config) launch(f Facts, r nodeconf.Roster, peerURL string) Launch {
	heartbeat, election := timing(r)
	fill(&c.Heartbeat, heartbeat)
	fill(&c.Election, election)
	host := c.Address
	pki := func(name string) string { return filepath.Join(c.PKI, name) }
	client := "https://" + net.JoinHostPort(host, strconv.Itoa(ClientPort))
	incarnation, initial := f.Incarnation.ID, c.Name+"="+peerURL
	if f.joining() {
		initial = f.Cluster.Joining
	}
	data := filepath.Join(c.State, dataDir, incarnation)
	return Launch{Data: data, Incarnation: incarnation, Joins: f.joining(), Argv: []string{
		"--name=" + c.Name,
		"--data-dir=" + data,
		// Never "new": it would make data. Only a member that was added for this
		// very incarnation is told of the others; without data another would ask
		// them who has its address, and come back under the ID that lost its data.
		"--initial-cluster-state=existing",
		"--initial-cluster=" + initial,
		"--listen-peer-urls=" + peerURL,
		"--initial-advertise-peer-urls=" + peerURL,
		"--listen-client-urls=" + client + ",https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(ClientPort)),
		"--advertise-client-urls=" + client,
		"--listen-metrics-urls=http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(MetricsPort)),
		"--cert-file=" + pki(nodeconf.EtcdServer+".crt"),
		"--key-file=" + pki(nodeconf.EtcdServer+".key"),
		"--trusted-ca-file=" + pki(nodeconf.EtcdCA+".crt"),
		"--client-cert-auth=true",
		// With these its JSON gateway, which the agent asks, is its client.
		"--client-cert-file=" + pki(nodeconf.EtcdAgent+".crt"),
		"--client-key-file=" + pki(nodeconf.EtcdAgent+".key"),
		"--peer-cert-file=" + pki(nodeconf.EtcdPeer+".crt"),
		"--peer-key-file=" + pki(nodeconf.EtcdPeer+".key"),
		"--peer-trusted-ca-file=" + pki(nodeconf.PeerCA+".crt"),
		"--peer-client-cert-auth=true",
		"--strict-reconfig-check=true",
		// Corruption is found at the start and at each compaction. The peer's
		// address is that of the roster even where a machine has others.
		"--feature-gates=" + strings.Join([]string{"InitialCorruptCheck=true", "CompactHashCheck=true", "SetMemberLocalAddr=true"}, ","),
		"--heartbeat-interval=" + strconv.FormatInt(c.Heartbeat.Milliseconds(), 10),
		"--election-timeout=" + strconv.FormatInt(c.Election.Milliseconds(), 10),
		"--logger=zap",
		"--log-level=info",
	}}
}

// Timing for slow machines; it must be the same on all members.
const (
	defaultHeartbeat = 500 * time.Millisecond
	defaultElection  = 5 * time.Second
)

// timing is how often a leader is heard, and how long it may be silent. A member
// without others elects itself when that time is over, at every start: it is
// given etcd's own, shorter times. When others are added it has them until its
// next start; it does no more than ask them in vain who leads, since etcd votes
// only after such a question.
func timing(r nodeconf.Roster) (heartbeat, election time.Duration) {
	if len(r.Members) == 1 {
		return 100 * time.Millisecond, time.Second
	}
	return defaultHeartbeat, defaultElection
}
