package kube

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Where a machine's resolvers are named, best first: behind systemd-resolved
// /etc/resolv.conf names its stub alone, which no pod can reach.
var resolvSources = [...]string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"}

// SyncResolver keeps the file that the kubelet gives to pods as their
// resolv.conf. It is the machine's own without what cannot work in a pod, and
// never without a resolver: CoreDNS ends itself when it finds none, and the
// kubelet starts no pod when the file is missing. Where there is no resolver
// the file names the machine itself, which refuses at once.
func (n *Node) SyncResolver() error {
	var content string
	for _, p := range resolvSources {
		data, err := os.ReadFile(n.path(p))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reading the machine's resolvers: %w", err)
		}
		var found bool
		if content, found = podResolver(string(data), n.Addresses); found {
			break
		}
	}
	return n.write(resolvFile, []byte(content), 0o644)
}

// podResolver is a resolv.conf for pods, and whether host names a resolver that
// a pod can reach.
func podResolver(host string, addresses []string) (string, bool) {
	var servers, rest []string
	for line := range strings.Lines(host) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			a, err := netip.ParseAddr(f[1])
			// One on the machine itself has no answer for CoreDNS but CoreDNS.
			if err == nil && !a.IsLoopback() && !a.IsUnspecified() && !slices.Contains(servers, f[1]) {
				servers = append(servers, f[1])
			}
		case "search", "options":
			rest = append(rest, strings.Join(f, " "))
		}
	}
	found := len(servers) > 0
	if !found {
		servers = addresses[:1]
	}
	var b strings.Builder
	b.WriteString("# Written by kimage-agent for pods.\n")
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	for _, r := range rest {
		b.WriteString(r + "\n")
	}
	return b.String(), found
}
