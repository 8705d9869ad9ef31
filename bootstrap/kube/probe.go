package kube

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kimage-project/kimage/bootstrap/peer"
	"github.com/kimage-project/kimage/pkg/kubeapi"
	"github.com/kimage-project/kimage/pkg/run"
)

// probeTimeout is how long an API server on an emulated processor may think.
const probeTimeout = 10 * time.Second

// server is an API server to be asked.
type server struct{ name, addr string }

// probeAPI asks every other master, and the balancer, whether an API server is
// ready. The balancer's may be this machine's own: balanced is false where that
// does not count. refused: every other master of the roster, which may be none,
// refuses the connection, as a machine does that is up and has no API server.
func (n *Node) probeAPI(ctx context.Context, balanced bool) (best API, refused bool, detail string) {
	ca, err := os.ReadFile(n.pki("ca.crt"))
	if err != nil {
		return APISilent, false, err.Error()
	}
	var servers []server
	masters := n.Roster().Masters
	refused = len(masters) > 0 // none at all: nobody knows
	if balanced || !n.master() {
		servers = append(servers, server{"the balancer", n.API})
	}
	for _, m := range masters {
		if m.Name != n.Name {
			servers = append(servers, server{m.Name, net.JoinHostPort(m.Address, apiPort)})
		}
	}
	type answer struct {
		server, detail string
		api            API
		refused        bool
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // one that is ready is enough: a machine without power lets wait
	answers := make(chan answer, len(servers))
	if n.clients.anonymousCA != string(ca) {
		n.clients.anonymous, n.clients.anonymousCA = map[string]*kubeapi.Client{}, string(ca)
	}
	for _, x := range servers {
		c, err := n.anonymousClient(x.addr, ca)
		if err != nil {
			return APISilent, false, err.Error()
		}
		go func() {
			api, refused, detail := n.probeOne(ctx, c)
			answers <- answer{x.addr, x.name + " (" + x.addr + "): " + detail, api, refused}
		}()
	}
	var details []string
	for range servers {
		a := <-answers
		if a.api == APIReady {
			return APIReady, false, a.detail
		}
		best = max(best, a.api)
		refused = refused && (a.refused || a.server == n.API)
		// A balancer without a server closes in one of two ways, at random, and
		// says nothing that the masters do not say.
		if a.server != n.API || a.api != APISilent || len(servers) == 1 {
			details = append(details, a.detail)
		}
	}
	slices.Sort(details)
	return best, refused, strings.Join(details, "; ")
}

// anonymousClient has no credentials: a token that is not known yet would be
// refused. It keeps its connection, as handshakes are most of what a question
// costs an API server that is starting.
func (n *Node) anonymousClient(server string, ca []byte) (*kubeapi.Client, error) {
	if c := n.clients.anonymous[server]; c != nil {
		return c, nil
	}
	c, err := kubeapi.New(kubeapi.Config{Server: "https://" + server, CA: ca, Timeout: probeTimeout})
	if err == nil {
		n.clients.anonymous[server] = c
	}
	return c, err
}

func (n *Node) probeOne(ctx context.Context, c *kubeapi.Client) (api API, refused bool, detail string) {
	var answer string
	err := c.Get(ctx, "/readyz", nil, &answer)
	var e *kubeapi.Error
	switch {
	case err == nil:
		return APIReady, false, "ready"
	case errors.As(err, &e) && (e.Code == 401 || e.Code == 403):
		return APIReady, false, "ready" // it lets nobody ask without credentials
	case errors.As(err, &e):
		return APIStarting, false, "not ready"
	}
	return APISilent, errors.Is(err, syscall.ECONNREFUSED), peer.Why(err, n.Now())
}

// askAPI asks the cluster about this machine, as this machine.
func (n *Node) askAPI(ctx context.Context, s *State) {
	c, err := n.tokenClient()
	if err != nil {
		s.APIDetail = err.Error()
		return
	}
	var config kubeadmConfig
	err = c.Get(ctx, kubeadmConfigPath, nil, &config)
	switch {
	case err == nil:
		s.Token, s.ClusterVersion, s.RaisedTo = Yes, config.version(), config.version()
	case kubeapi.Is(err, 401), kubeapi.Is(err, 403), kubeapi.Is(err, 404):
		s.Token = No
		return
	default:
		return
	}
	if !n.master() {
		// Written when a master of that version is up; kubeadm's is written before.
		var made struct{ Data map[string]string }
		if err := c.Get(ctx, recordPath, nil, &made); err == nil && made.Data["kubernetes"] != "" {
			s.ClusterVersion = made.Data["kubernetes"]
		}
	}
	var node apiNode
	switch err := c.Get(ctx, "/api/v1/nodes/"+n.Name, nil, &node); {
	case err == nil && node.ready():
		s.NodeReady = Yes
	case err == nil, kubeapi.Is(err, 404):
		s.NodeReady = No
	}
}

// tokenClient talks to the cluster by this machine's token.
func (n *Node) tokenClient() (*kubeapi.Client, error) {
	if n.clients.token != nil {
		return n.clients.token, nil
	}
	token, err := n.token()
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(n.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	n.clients.token, err = kubeapi.New(kubeapi.Config{Server: "https://" + n.API, CA: ca, Token: token, Timeout: probeTimeout})
	return n.clients.token, err
}

// askEtcd asks etcd, by a linearizable read, whether something finished
// initialising this cluster: the record that provisioning writes last. The API
// server's own keys are not encrypted, only their values.
func (n *Node) askEtcd(ctx context.Context) (serves, initialised Answer, detail string) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// Asked many times while etcd is founded or starts, so without a program.
	if err := n.etcdReady(ctx); err != nil {
		return Unknown, Unknown, peer.Why(err, n.Now())
	}
	out, err := n.etcdctl(ctx, "get", "--keys-only", recordKey)
	if err != nil {
		return Unknown, Unknown, reason(err).Error()
	}
	if strings.Contains(out, recordKey) {
		return Yes, Yes, ""
	}
	return Yes, No, ""
}

// versionInEtcd is the version of a cluster whose API servers are all gone. Of
// configurations the API server encrypts nothing.
func (n *Node) versionInEtcd(ctx context.Context) (version, detail string) {
	out, err := n.etcdctl(ctx, "get", "--print-value-only", "/registry/configmaps/kube-system/kubeadm-config")
	if err != nil {
		return "", reason(err).Error()
	}
	return versionIn(out), ""
}

func (n *Node) etcdctl(ctx context.Context, args ...string) (string, error) {
	var out strings.Builder
	err := n.Run(ctx, run.Cmd{Stdout: &out, Argv: append([]string{"etcdctl", "--endpoints=https://" + n.Etcd, "--cacert=" + n.pki("etcd-ca.crt"),
		"--cert=" + n.pki("apiserver-etcd-client.crt"), "--key=" + n.pki("apiserver-etcd-client.key"), "--command-timeout=20s", "--dial-timeout=10s"}, args...)})
	return out.String(), err
}

// etcdReady asks a member whether it serves a linearizable read.
func (n *Node) etcdReady(ctx context.Context) error {
	if n.clients.etcd == nil {
		c := kubeapi.Config{Server: "https://" + n.Etcd, Timeout: probeTimeout}
		for file, to := range map[string]*[]byte{"etcd-ca.crt": &c.CA, "apiserver-etcd-client.crt": &c.Cert, "apiserver-etcd-client.key": &c.Key} {
			var err error
			if *to, err = os.ReadFile(n.pki(file)); err != nil {
				return err
			}
		}
		var err error
		if n.clients.etcd, err = kubeapi.New(c); err != nil {
			return err
		}
	}
	return n.clients.etcd.Get(ctx, "/readyz", url.Values{"exclude": {"data_corruption"}}, new(string))
}

// kubeletClient talks to the cluster as this machine's kubelet.
func (n *Node) kubeletClient() (*kubeapi.Client, error) {
	conf, err := n.kubeconfig(kubeletConf)
	if err != nil {
		return nil, errors.New("the machine is no Node yet")
	}
	if n.clients.kubelet != nil && n.clients.kubeletFrom == string(conf.Cert) {
		return n.clients.kubelet, nil
	}
	conf.Timeout = probeTimeout
	c, err := kubeapi.New(conf)
	if err != nil {
		return nil, err
	}
	if n.clients.kubelet != nil {
		n.clients.kubelet.Close()
	}
	n.clients.kubelet, n.clients.kubeletFrom = c, string(conf.Cert)
	return c, nil
}

// APIServers are the HOST:PORT behind the service kubernetes, of which a kubelet
// may read the Endpoints.
func (n *Node) APIServers(ctx context.Context) ([]string, error) {
	c, err := n.kubeletClient()
	if err != nil {
		return nil, err
	}
	var endpoints struct {
		Subsets []struct {
			Addresses []struct{ IP string }
			Ports     []struct{ Port int }
		}
	}
	if err := c.Get(ctx, "/api/v1/namespaces/default/endpoints/kubernetes", nil, &endpoints); err != nil {
		return nil, err
	}
	var servers []string
	for _, s := range endpoints.Subsets {
		for _, a := range s.Addresses {
			for _, p := range s.Ports {
				servers = append(servers, net.JoinHostPort(a.IP, strconv.Itoa(p.Port)))
			}
		}
	}
	return servers, nil
}

// Ready says whether this machine's Node is Ready, as the kubelet's own
// credentials see it, and if not, why: the kubelet's words.
func (n *Node) Ready(ctx context.Context) (bool, string) {
	c, err := n.kubeletClient()
	if err != nil {
		return false, err.Error()
	}
	var node apiNode
	if err := c.Get(ctx, "/api/v1/nodes/"+n.Name, nil, &node); err != nil {
		return false, "asking for the Node: " + peer.Why(err, n.Now())
	}
	for _, x := range node.Status.Conditions {
		if x.Type == "Ready" {
			return x.Status == "True", x.Message
		}
	}
	return false, "the kubelet has not reported yet"
}

// UnreadyNodes are the addresses of the Nodes that are not Ready, by name, for a
// master that has joined.
func UnreadyNodes(ctx context.Context) (map[string][]string, error) {
	conf, err := kubeapi.ReadKubeconfig(adminConf)
	if err != nil {
		return nil, err
	}
	conf.Timeout = probeTimeout
	c, err := kubeapi.New(conf)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var list struct{ Items []apiNode }
	if err := c.Get(ctx, "/api/v1/nodes", url.Values{"resourceVersion": {"0"}}, &list); err != nil {
		return nil, err
	}
	all := map[string][]string{}
	for _, n := range list.Items {
		if n.ready() {
			continue
		}
		for _, a := range n.Status.Addresses {
			if a.Type == "InternalIP" {
				all[n.Metadata.Name] = append(all[n.Metadata.Name], a.Address)
			}
		}
	}
	return all, nil
}
