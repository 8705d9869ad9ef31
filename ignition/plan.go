package ignition

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/pkg/cluster"
)

// plan is what one machine is told, before it is written in the language of
// its first-boot system.
type plan struct {
	target cluster.Target
	files  []file // sorted by path
	links  []link
	units  []unit
}

type file struct {
	path    string
	mode    int
	content []byte
}

type link struct{ path, target string }

// unit is a systemd unit with content, or one that is masked or enabled.
type unit struct {
	name    string
	content string
	enable  bool
	mask    bool
}

func (p *plan) add(path string, mode int, content []byte) {
	p.files = append(p.files, file{path, mode, content})
}

// plan decides everything that t is told.
func (g *Generator) plan(t cluster.Target) (*plan, error) {
	p := &plan{target: t}
	node, err := g.nodeConfig(t)
	if err != nil {
		return nil, err
	}
	data, err := node.Encode()
	if err != nil {
		return nil, err
	}
	p.add(nodeconf.File, 0o644, data)
	p.add(nodeconf.RosterFile, 0o644, g.roster)
	if err := g.secrets(p); err != nil {
		return nil, err
	}
	g.runtime(p)
	if len(t.Machine.SSH.AuthorizedKeys) == 0 {
		for _, u := range g.os.SSHUnits {
			p.units = append(p.units, unit{name: u, mask: true})
		}
	}
	if !g.os.EditableRoot {
		for _, a := range g.activation {
			switch {
			case a.Link != "":
				p.links = append(p.links, link{a.Path, a.Link})
			default:
				p.add(a.Path, a.Mode, a.Content)
			}
		}
		// What activation brings must run permissive at first: nothing in it is labelled.
		if g.os.SELinux {
			p.add("/etc/selinux/config", 0o644, []byte("SELINUX=permissive\nSELINUXTYPE=targeted\n"))
		}
	}
	slices.SortFunc(p.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	slices.SortFunc(p.links, func(a, b link) int { return strings.Compare(a.path, b.path) })
	return p, nil
}

// keys are those that may log in, each once: Ignition takes no list that says one twice.
func keys(t cluster.Target) (out []string) {
	for _, k := range t.Machine.SSH.AuthorizedKeys {
		if k = strings.TrimSpace(k); !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// nodeConfig is node.json.
func (g *Generator) nodeConfig(t cluster.Target) (nodeconf.Config, error) {
	s := g.file.Cluster.Spec
	c := nodeconf.Config{
		APIVersion: nodeconf.APIVersion, Kind: nodeconf.Kind,
		Cluster: nodeconf.Cluster{Name: g.state.Public.Name, UID: g.state.UID, RosterKey: g.rosterKey, Issued: g.state.Created},
		Node:    nodeconf.Node{Roles: t.Roles, Addresses: t.Addresses, Match: nodeconf.Match(t.Match)},
		Image:   nodeconf.Image{OS: g.file.OS.Name, Kubernetes: s.Kubernetes, Runtime: s.Runtime, Plugin: s.Network.Plugin},
		Network: nodeconf.Network{Pods: s.Network.Pods, Services: s.Network.Services, Nodes: s.Network.Nodes, DNSDomain: s.Network.DNSDomain, Options: s.Network.Options},
		API:     nodeconf.API{Endpoint: s.API.Endpoint, CertSANs: s.API.CertSANs},
	}
	if t.Pool {
		c.Node.Pool = t.Name
	} else {
		c.Node.Name = t.Name
	}
	if t.Kubelet() {
		c.Node.Labels, _ = t.SplitLabels()
		for _, x := range t.Machine.Taints {
			c.Node.Taints = append(c.Node.Taints, nodeconf.Taint(x))
		}
	}
	for _, network := range s.Network.Services {
		dns, err := cluster.ServiceAddress(network, 10)
		if err != nil {
			return c, err
		}
		c.Network.DNS = append(c.Network.DNS, dns)
	}
	if !t.Has(cluster.RoleMaster) {
		return c, nil
	}
	var err error
	if c.Kubeadm, err = raw(s.Kubeadm); err != nil {
		return c, err
	}
	if c.Kubelet, err = raw(s.Kubelet); err != nil {
		return c, err
	}
	return c, nil
}

func raw(o cluster.Object) (*nodeconf.Raw, error) {
	if len(o) == 0 {
		return nil, nil
	}
	data, err := json.Marshal(o)
	return (*nodeconf.Raw)(&data), err
}

// secrets adds the certificates, keys and token that the roles of the machine
// need, and no more.
func (g *Generator) secrets(p *plan) error {
	t := p.target
	put := func(from, to string) error {
		data := g.state.Secret(from)
		if data == nil {
			return fmt.Errorf("BUG: %s has no secret %s", t.Name, from)
		}
		mode := 0o600
		if strings.HasSuffix(to, ".crt") || strings.HasSuffix(to, ".pub") {
			mode = 0o644
		}
		p.add(nodeconf.PKIDir+"/"+to, mode, data)
		return nil
	}
	shared := map[string]bool{nodeconf.ClusterCA + ".crt": true} // no secret: masters are known by it
	var own []string
	if t.Kubelet() {
		p.add(nodeconf.TokenFile, 0o600, []byte(nodeconf.Token(g.joinKey, t.Pool, t.Name)+"\n"))
	}
	if t.Has(cluster.RoleMaster) {
		for _, name := range []string{nodeconf.ClusterCA + ".key", nodeconf.FrontProxyCA + ".crt", nodeconf.FrontProxyCA + ".key", nodeconf.ServiceAccountKey,
			nodeconf.ServiceAccountPub, nodeconf.EncryptionKey, nodeconf.JoinKey, nodeconf.EtcdCA + ".crt"} {
			shared[name] = true
		}
		own = append(own, nodeconf.APIServerEtcd)
	}
	if t.Has(cluster.RoleEtcd) {
		shared[nodeconf.EtcdCA+".crt"], shared[nodeconf.PeerCA+".crt"] = true, true
		own = append(own, nodeconf.EtcdServer, nodeconf.EtcdPeer, nodeconf.EtcdAgent)
	}
	for _, name := range slices.Sorted(maps.Keys(shared)) {
		if err := put(name, name); err != nil {
			return err
		}
	}
	for _, name := range own {
		for _, end := range []string{".crt", ".key"} {
			if err := put(state.Node(t.Name, name+end), name+end); err != nil {
				return err
			}
		}
	}
	return nil
}

// runtime adds registry mirrors and the proxy.
func (g *Generator) runtime(p *plan) {
	m := p.target.Machine
	if !p.target.Kubelet() {
		return
	}
	for host, r := range m.Registries {
		var b strings.Builder
		fmt.Fprintf(&b, "server = %q\n", "https://"+upstream(host))
		for _, u := range r.Mirrors {
			fmt.Fprintf(&b, "\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", u)
		}
		p.add("/etc/containerd/certs.d/"+host+"/hosts.toml", 0o644, []byte(b.String()))
	}
	if m.Proxy.HTTP == "" && m.Proxy.HTTPS == "" {
		return
	}
	var b strings.Builder
	b.WriteString("[Service]\n")
	no := strings.Join(g.noProxy(m.Proxy.No), ",")
	for _, v := range []struct{ name, value string }{{"HTTP_PROXY", m.Proxy.HTTP}, {"HTTPS_PROXY", m.Proxy.HTTPS}, {"NO_PROXY", no}} {
		if v.value != "" {
			// % begins a specifier of systemd.
			fmt.Fprintf(&b, "Environment=\"%s=%s\"\n", v.name, strings.ReplaceAll(v.value, "%", "%%"))
		}
	}
	for _, u := range []string{"containerd", "kubelet"} {
		p.add("/etc/systemd/system/"+u+".service.d/20-kimage-proxy.conf", 0o644, []byte(b.String()))
	}
}

// upstream is where a registry's name leads: Docker Hub's is not its host.
func upstream(registry string) string {
	if registry == "docker.io" {
		return "registry-1.docker.io"
	}
	return registry
}

// noProxy is what must never go through a proxy: the cluster itself.
func (g *Generator) noProxy(more []string) []string {
	n := g.file.Cluster.Spec.Network
	out := slices.Concat([]string{"localhost", "127.0.0.1", "::1", ".svc", "." + n.DNSDomain}, n.Pods, n.Services, n.Nodes)
	for _, t := range g.file.Nodes {
		for _, a := range t.Addresses {
			if !slices.ContainsFunc(n.Nodes, func(s string) bool { return contains(s, a) }) {
				out = append(out, a)
			}
		}
	}
	return append(out, more...)
}

func contains(network, address string) bool {
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(address)
	return err == nil && p.Contains(a)
}
