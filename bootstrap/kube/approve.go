package kube

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

const (
	nodeUser      = "system:node:"
	tokenUser     = "system:bootstrap:"
	kubeletSigner = "kubernetes.io/kube-apiserver-client-kubelet"
	csrPath       = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
)

// metadata is what this package reads of an object's metadata.
type metadata struct {
	Name              string            `json:"name"`
	UID               string            `json:"uid"`
	ResourceVersion   string            `json:"resourceVersion"`
	CreationTimestamp time.Time         `json:"creationTimestamp"`
	Labels            map[string]string `json:"labels"`
}

type condition struct {
	Type    string    `json:"type"`
	Status  string    `json:"status"`
	Message string    `json:"message"`
	Since   time.Time `json:"lastTransitionTime"`
}

// csr is a CertificateSigningRequest.
type csr struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		Request    []byte   `json:"request"` // PEM
		SignerName string   `json:"signerName"`
		Usages     []string `json:"usages"`
		Username   string   `json:"username"`
		Groups     []string `json:"groups"`
	} `json:"spec"`
	Status struct {
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

// apiNode is a Node.
type apiNode struct {
	Metadata metadata `json:"metadata"`
	Status   struct {
		Conditions []condition `json:"conditions"`
		Addresses  []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

func (n apiNode) ready() bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c condition) bool { return c.Type == "Ready" && c.Status == "True" })
}

// verdict is what is done about one request.
type verdict struct {
	csr     csr
	node    string   // the name that was asked for
	approve bool     // false: deny
	why     string   // for the request's status
	stale   *apiNode // deleted first
}

// judge says which requests are approved and which are denied; one that it does
// not name is left for later, or for others. It is pure.
//
// A token's group names the machine, and its user may ask for that name alone:
//
//	no Node of the name, or one older than the request and not Ready   approved
//	a Ready one                                                        later
//	one that is younger than the request                               never: the request is of an attempt before
//
// Of several requests for a name the newest counts.
func judge(requests []csr, nodes map[string]apiNode, cluster string, peers nodeconf.Peers) []verdict {
	newest := map[string]time.Time{}
	asked := func(c csr) (name string, err error, ours bool) {
		pool, of, ours := tokenOf(c)
		if !ours {
			return "", nil, false
		}
		name, err = nameAsked(c)
		if err == nil {
			err = mayAsk(name, pool, of, cluster, peers)
		}
		return name, err, true
	}
	for _, c := range requests {
		if name, err, ours := asked(c); ours && err == nil && c.Metadata.CreationTimestamp.After(newest[name]) {
			newest[name] = c.Metadata.CreationTimestamp
		}
	}
	var out []verdict
	for _, c := range requests {
		if decided(c) {
			continue
		}
		name, err, ours := asked(c)
		if !ours {
			continue
		}
		v := verdict{csr: c, node: name}
		node, known := nodes[name]
		switch {
		case err != nil:
			v.why = err.Error()
		case c.Metadata.CreationTimestamp.Before(newest[name]):
			v.why = "a newer request of the same machine takes its place"
		case known && node.ready():
			continue
		case known && !node.Metadata.CreationTimestamp.Before(c.Metadata.CreationTimestamp):
			v.why = "the machine has become a Node since: this request is of an attempt before"
		default:
			v.approve, v.why = true, "the token of "+name+" asked for "+name
			if known {
				v.stale = &node
			}
		}
		out = append(out, v)
	}
	return out
}

func decided(c csr) bool {
	return slices.ContainsFunc(c.Status.Conditions, func(x condition) bool { return x.Type == "Approved" || x.Type == "Denied" || x.Type == "Failed" })
}

// tokenOf says whose token asked; ours is false for requests that kimage's
// tokens did not make.
func tokenOf(c csr) (pool bool, name string, ours bool) {
	if c.Spec.SignerName != kubeletSigner || !strings.HasPrefix(c.Spec.Username, tokenUser) {
		return false, "", false
	}
	found := 0
	for _, g := range c.Spec.Groups {
		if p, of, ok := group(g); ok {
			pool, name = p, of
			found++
		}
	}
	return pool, name, found == 1
}

// kubelet's usages, with RSA keys and with others.
var clientUsages = [...][]string{{"client auth", "digital signature", "key encipherment"}, {"client auth", "digital signature"}}

// nameAsked is the Node's name in a request that has the form of a kubelet's,
// as Kubernetes' own approver wants it.
func nameAsked(c csr) (string, error) {
	usages := slices.Sorted(slices.Values(c.Spec.Usages))
	if !slices.ContainsFunc(clientUsages[:], func(u []string) bool { return slices.Equal(u, usages) }) {
		return "", fmt.Errorf("it asks for the usages %s, and a kubelet asks for client auth", strings.Join(usages, ", "))
	}
	block, _ := pem.Decode(c.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return "", errors.New("it is not a PEM certificate request")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "", err
	}
	if err := r.CheckSignature(); err != nil {
		return "", errors.New("it is not signed by its own key")
	}
	if len(r.DNSNames)+len(r.EmailAddresses)+len(r.IPAddresses)+len(r.URIs) > 0 {
		return "", errors.New("it asks for further names")
	}
	name, ok := strings.CutPrefix(r.Subject.CommonName, nodeUser)
	if !ok || name == "" || !slices.Equal(r.Subject.Organization, []string{"system:nodes"}) {
		return "", errors.New("it does not ask to be a Node")
	}
	return name, nil
}

// mayAsk says whether the token of a machine, or pool, of the cluster may ask for name.
func mayAsk(name string, pool bool, of, cluster string, peers nodeconf.Peers) error {
	if !pool {
		if name != of {
			return fmt.Errorf("the token of %s asked for %s", of, name)
		}
		return nil
	}
	if peers.Has(false, name) || !inPool(name, cluster, of) {
		return fmt.Errorf("the token of pool %s asked for %s, which is no machine of the pool", of, name)
	}
	return nil
}

// approve judges what is asked now, and does it.
func (n *Node) approve(ctx context.Context, c *kubeapi.Client) error {
	var list struct{ Items []csr }
	if err := c.Get(ctx, csrPath, url.Values{"fieldSelector": {"spec.signerName=" + kubeletSigner}}, &list); err != nil {
		return fmt.Errorf("listing certificate requests: %w", err)
	}
	nodes := map[string]apiNode{}
	for _, r := range list.Items {
		if decided(r) {
			continue
		}
		if _, _, ours := tokenOf(r); !ours {
			continue
		}
		name, err := nameAsked(r)
		if err != nil {
			continue
		}
		var node apiNode
		switch err := c.Get(ctx, "/api/v1/nodes/"+url.PathEscape(name), nil, &node); {
		case err == nil:
			nodes[name] = node
		case !kubeapi.Is(err, 404):
			return fmt.Errorf("reading Node %s: %w", name, err)
		}
	}
	var errs []error
	for _, v := range judge(list.Items, nodes, n.Node.Cluster.Name, n.Roster().Peers) {
		errs = append(errs, n.execute(ctx, c, v))
	}
	return errors.Join(errs...)
}

// deletePods deletes what ran on a machine before it was imaged again. Its new
// kubelet would start it under the same name, from images that the new disk may
// lack.
func (n *Node) deletePods(ctx context.Context, c *kubeapi.Client, node string, before time.Time) error {
	var pods struct {
		Items []struct {
			Metadata struct {
				Name, Namespace, UID string
				CreationTimestamp    time.Time
			}
		}
	}
	if err := c.Get(ctx, "/api/v1/pods", url.Values{"fieldSelector": {"spec.nodeName=" + node}}, &pods); err != nil {
		return fmt.Errorf("reading what ran on %s: %w", node, err)
	}
	for _, p := range pods.Items {
		m := p.Metadata
		if !m.CreationTimestamp.Before(before) {
			continue
		}
		// One that cannot be deleted must not keep a machine from coming back.
		if err := c.DeleteNow(ctx, "/api/v1/namespaces/"+url.PathEscape(m.Namespace)+"/pods/"+url.PathEscape(m.Name), m.UID); err != nil && !kubeapi.Is(err, 409) {
			n.Logf("deleting the pod %s, whose machine was imaged again: %v", m.Name, err)
		}
	}
	return nil
}

// deleteNode deletes the Node, and the pods until before, of a machine that was imaged again.
func (n *Node) deleteNode(ctx context.Context, c *kubeapi.Client, node apiNode, before time.Time) error {
	name := node.Metadata.Name
	if err := n.deletePods(ctx, c, name, before); err != nil {
		return err
	}
	if err := c.Delete(ctx, "/api/v1/nodes/"+url.PathEscape(name), node.Metadata.UID); err != nil {
		return fmt.Errorf("deleting the stale Node %s: %w", name, err)
	}
	n.Logf("deleted the Node %s: its machine was imaged again", name)
	return nil
}

// execute deletes a stale Node and its pods, then approves or denies. All of it names the
// very object that was judged.
func (n *Node) execute(ctx context.Context, c *kubeapi.Client, v verdict) error {
	if v.approve && v.stale != nil {
		if err := n.deleteNode(ctx, c, *v.stale, v.csr.Metadata.CreationTimestamp); err != nil {
			return err
		}
	}
	kind, word := "Denied", "denied"
	if v.approve {
		kind, word = "Approved", "approved"
	}
	now, err := json.Marshal(n.Now().UTC().Truncate(time.Second))
	if err != nil {
		return err
	}
	err = c.Merge(ctx, csrPath+"/"+url.PathEscape(v.csr.Metadata.Name)+"/approval", object{
		"metadata": object{"resourceVersion": v.csr.Metadata.ResourceVersion},
		"status": object{"conditions": []any{object{"type": kind, "status": "True", "reason": "KimageToken", "message": v.why,
			"lastUpdateTime": json.RawMessage(now)}}}})
	switch {
	case kubeapi.Is(err, 409), kubeapi.Is(err, 404):
		return nil // another master was faster
	case err != nil:
		return fmt.Errorf("answering the certificate request %s: %w", v.csr.Metadata.Name, err)
	}
	n.Logf("%s the certificate request %s: %s", word, v.csr.Metadata.Name, v.why)
	return nil
}
