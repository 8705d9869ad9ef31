package kube

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
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
// does not count.
func (n *Node) probeAPI(ctx context.Context, balanced bool) (API, string) {
	ca, err := os.ReadFile(n.pki("ca.crt"))
	if err != nil {
		return APISilent, err.Error()
	}
	var servers []server
	if balanced || !n.master() {
		servers = append(servers, server{"the balancer", n.API})
	}
	for _, m := range n.Masters() {
		if m.Name != n.Name {
			servers = append(servers, server{m.Name, net.JoinHostPort(m.Address, apiPort)})
		}
	}
	type answer struct {
		api    API
		detail string
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // one that is ready is enough: a machine without power lets wait
	answers := make(chan answer, len(servers))
	for _, x := range servers {
		go func() {
			api, detail := n.probeOne(ctx, x.addr, ca)
			answers <- answer{api, x.name + " (" + x.addr + "): " + detail}
		}()
	}
	best, details := APISilent, []string{}
	for range servers {
		a := <-answers
		if a.api == APIReady {
			return APIReady, a.detail
		}
		best, details = max(best, a.api), append(details, a.detail)
	}
	slices.Sort(details)
	return best, strings.Join(details, "; ")
}

// probeOne asks without credentials: a token that is not known yet would be refused.
func (n *Node) probeOne(ctx context.Context, server string, ca []byte) (API, string) {
	c, err := kubeapi.New(kubeapi.Config{Server: "https://" + server, CA: ca, Timeout: probeTimeout})
	if err != nil {
		return APISilent, err.Error()
	}
	defer c.Close()
	var answer string
	err = c.Get(ctx, "/readyz", nil, &answer)
	var e *kubeapi.Error
	switch {
	case err == nil:
		return APIReady, "ready"
	case errors.As(err, &e) && (e.Code == 401 || e.Code == 403):
		return APIReady, "ready" // it lets nobody ask without credentials
	case errors.As(err, &e):
		return APIStarting, "not ready"
	}
	return APISilent, peer.Why(err, n.Now())
}

// askAPI asks the cluster about this machine, as this machine.
func (n *Node) askAPI(ctx context.Context, s *State) {
	c, err := n.tokenClient()
	if err != nil {
		s.APIDetail = err.Error()
		return
	}
	err = c.Get(ctx, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config", nil, nil)
	switch {
	case err == nil:
		s.Token = Yes
	case kubeapi.Is(err, 401), kubeapi.Is(err, 403), kubeapi.Is(err, 404):
		s.Token = No
		return
	default:
		return
	}
	var version struct{ GitVersion string }
	if err := c.Get(ctx, "/version", nil, &version); err == nil {
		s.APIVersion = version.GitVersion
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
	var out strings.Builder
	err := n.Run(ctx, run.Cmd{Stdout: &out, Argv: []string{"etcdctl", "--endpoints=https://" + n.Etcd, "--cacert=" + n.pki("etcd-ca.crt"),
		"--cert=" + n.pki("apiserver-etcd-client.crt"), "--key=" + n.pki("apiserver-etcd-client.key"), "--command-timeout=20s", "--dial-timeout=10s",
		"get", "--keys-only", recordKey}})
	if err != nil {
		return Unknown, Unknown, reason(err).Error()
	}
	if strings.Contains(out.String(), recordKey) {
		return Yes, Yes, ""
	}
	return Yes, No, ""
}

// kubeletClient talks to the cluster as this machine's kubelet.
func (n *Node) kubeletClient() (*kubeapi.Client, error) {
	conf, err := kubeapi.ReadKubeconfig(n.path(kubeletConf))
	if err != nil {
		return nil, errors.New("the machine is no Node yet")
	}
	conf.Timeout = probeTimeout
	return kubeapi.New(conf)
}

// APIServers are the HOST:PORT behind the service kubernetes, of which a kubelet
// may read the Endpoints.
func (n *Node) APIServers(ctx context.Context) ([]string, error) {
	c, err := n.kubeletClient()
	if err != nil {
		return nil, err
	}
	defer c.Close()
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
	defer c.Close()
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
