package balancer

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

const (
	apiPort  = "6443"
	etcdPort = "2379"
)

// apiBackends are the masters of the roster and the endpoints last seen: the
// roster may be older than a new master, and the endpoints than a new roster.
// What is no longer a master does not answer, and gets no connection.
func apiBackends(r nodeconf.Roster, seen []string) []string {
	var out []string
	for _, m := range r.Masters {
		out = append(out, net.JoinHostPort(m.Address, apiPort))
	}
	return slices.Compact(slices.Sorted(slices.Values(append(out, seen...))))
}

// etcdBackends are the members of the roster, and those that left it: they vote
// until others have taken their places. Probes leave out learners.
func etcdBackends(r nodeconf.Roster) []string {
	var out []string
	for _, m := range slices.Concat(r.Members, r.Left) {
		if a := clientAddress(m); a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// ownMember is the backend on this machine; empty: none.
func ownMember(r nodeconf.Roster, name string) string {
	for _, m := range r.Members {
		if m.Name == name {
			return clientAddress(m)
		}
	}
	return ""
}

// clientAddress is where clients find a member: the host of its peers' URL.
func clientAddress(m nodeconf.Member) string {
	u, err := url.Parse(m.PeerURL)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	return net.JoinHostPort(u.Hostname(), etcdPort)
}

func readRoster(file string, c nodeconf.Cluster) (nodeconf.Roster, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nodeconf.Roster{}, err
	}
	var s nodeconf.SignedRoster
	if err := json.Unmarshal(data, &s); err != nil {
		return nodeconf.Roster{}, err
	}
	return s.Open(c.RosterKey, c.UID)
}

// clientTLS trusts the authorities in the file ca; cert and key may be empty.
func clientTLS(ca, cert, key string) (*tls.Config, error) {
	data, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !c.RootCAs.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate", ca)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", cert, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
