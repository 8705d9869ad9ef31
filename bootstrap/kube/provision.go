package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// The record is a ConfigMap that says what provisioning did. It is written
// last: where it is, init and all that follows it was finished once.
const (
	recordName = "kimage"
	recordPath = "/api/v1/namespaces/kube-system/configmaps/" + recordName
	recordKey  = "/registry/configmaps/kube-system/" + recordName // in etcd
)

// record is the ConfigMap's data.
type record struct {
	tokens     []string // grant.entry of all tokens that were granted to what the roster lists; one whose Secret is deleted stays so
	roster     string   // "GENERATION.SERIAL" of the newest by which they were
	left       []string // KIND:NAME of what left the roster, and may have Nodes still
	network    string   // plugin whose manifest was applied
	kubernetes string   // to which all that kubeadm made was brought
}

func (r record) object() kubeapi.Object {
	return kubeapi.Object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": recordName, "namespace": "kube-system"},
		"data": object{"tokens": strings.Join(r.tokens, " "), "roster": r.roster, "left": strings.Join(r.left, " "), "network": r.network, "kubernetes": r.kubernetes}}
}

// due is what has to be granted and revoked, if all are the tokens of what the
// roster lists: those of who left it go, and with a new join key those of the old
// one. A master with an older roster than the record's does neither.
func (r record) due(all []grant, roster nodeconf.Roster) (grants []grant, revoked []string) {
	if r.newerThan(roster) {
		return nil, nil
	}
	for _, g := range all {
		if !slices.Contains(r.tokens, g.entry()) {
			grants = append(grants, g)
		}
	}
	for _, entry := range r.tokens {
		kind, name, id := parseEntry(entry)
		of := func(g grant) bool { return kindOf(g.pool) == kind && g.name == name }
		renewed := slices.ContainsFunc(grants, func(g grant) bool { return of(g) && g.id != id })
		if renewed || !slices.ContainsFunc(all, of) {
			revoked = append(revoked, entry)
		}
	}
	return grants, revoked
}

// took is the record after that. It keeps the entries of an older join key: a
// master that still has it would grant them again.
func (r *record) took(grants []grant, roster nodeconf.Roster) {
	if r.newerThan(roster) {
		return
	}
	stays := func(entry string) bool {
		kind, name, _ := parseEntry(entry)
		return roster.Peers.Has(kind == kindOf(true), name)
	}
	r.tokens = slices.DeleteFunc(r.tokens, func(entry string) bool {
		if stays(entry) {
			return false
		}
		kind, name, _ := parseEntry(entry)
		r.left = append(r.left, kind+":"+name)
		return true
	})
	r.left = slices.DeleteFunc(r.left, stays)
	slices.Sort(r.left)
	r.left = slices.Compact(r.left)
	for _, g := range grants {
		r.tokens = append(r.tokens, g.entry())
	}
	slices.Sort(r.tokens)
	r.roster = fmt.Sprintf("%d.%d", roster.Generation, roster.Serial)
}

// newerThan says whether tokens were granted by a newer roster.
func (r record) newerThan(roster nodeconf.Roster) bool {
	var generation, serial int
	fmt.Sscanf(r.roster, "%d.%d", &generation, &serial)
	return cmp.Or(cmp.Compare(generation, roster.Generation), cmp.Compare(serial, roster.Serial)) > 0
}

func parseEntry(entry string) (kind, name, id string) {
	kind, rest, _ := strings.Cut(entry, ":")
	name, id, _ = strings.Cut(rest, ":")
	return kind, name, id
}

// keep is what masters do for others for as long as they run. Workers, and
// masters, keep the resolvers of their pods.
func (n *Node) keep(ctx context.Context) error {
	if err := errors.Join(n.SyncResolver(), n.tidy()); err != nil {
		return err
	}
	if !n.master() {
		return nil
	}
	renewed := n.renew(ctx) // first: this master's own credentials may have ended
	c, err := n.adminClient()
	if err != nil {
		return errors.Join(renewed, err)
	}
	return errors.Join(renewed, n.provision(ctx, c), n.forbidAutoApproval(ctx, c), n.approve(ctx, c), n.label(ctx, c))
}

// provision makes what init does not: tokens and the rights of their users, and
// the network. Each is made once; what people change or delete later stays.
func (n *Node) provision(ctx context.Context, c *kubeapi.Client) error {
	var old struct{ Data map[string]string }
	if err := c.Get(ctx, recordPath, nil, &old); err != nil && !kubeapi.Is(err, 404) {
		return fmt.Errorf("reading what was provisioned: %w", err)
	}
	r := record{tokens: strings.Fields(old.Data["tokens"]), roster: old.Data["roster"], left: strings.Fields(old.Data["left"]), network: old.Data["network"], kubernetes: old.Data["kubernetes"]}
	roster := n.Roster()
	all, err := n.grants(roster.Peers)
	if err != nil {
		return err
	}
	first := len(old.Data) == 0
	grants, revoked := r.due(all, roster)
	var gone []string
	var unswept error // keeps nothing else from being done
	if !r.newerThan(roster) {
		gone, unswept = n.sweep(ctx, c, r.left, roster.Peers)
		r.left = slices.DeleteFunc(r.left, func(entry string) bool { return slices.Contains(gone, entry) })
	}
	own := n.Node.Image.Kubernetes
	if !first && len(grants)+len(revoked)+len(gone) == 0 && r.network != "" && !newer(own, r.kubernetes) {
		return unswept
	}
	switch {
	case first:
		r.kubernetes = own
	case newer(own, r.kubernetes):
		if r.kubernetes, err = n.follow(ctx, c); err != nil {
			return err
		}
	}
	if r.network == "" { // first: this machine's Node waits for it
		if r.network, err = n.applyNetwork(ctx, c); err != nil {
			return err
		}
	}
	if first || old.Data["kubernetes"] != r.kubernetes {
		if err := n.rights(ctx, c); err != nil {
			return err
		}
	}
	if err := n.grant(ctx, c, grants, revoked); err != nil {
		return err
	}
	r.took(grants, roster)
	if err := c.Apply(ctx, r.object()); err != nil {
		return err
	}
	n.Logf("provisioned %d tokens, revoked %d, network %s, Kubernetes %s", len(grants), len(revoked), r.network, r.kubernetes)
	return unswept
}

// follow brings the cluster to this image's version, now that a master of it is
// up, and returns the cluster's.
func (n *Node) follow(ctx context.Context, c *kubeapi.Client) (string, error) {
	version, err := n.bringAlong(ctx, c)
	if err != nil || version != n.Node.Image.Kubernetes {
		return version, err // another master's business
	}
	// After an init over what etcd held, the Node and its pods are those of the
	// image before.
	if d, _ := n.done(); d != nil && d.By == string(Init) {
		if err := n.deletePods(ctx, c, n.Name, d.At); err != nil {
			return "", err
		}
	}
	err = c.Merge(ctx, "/api/v1/nodes/"+n.Name, object{"metadata": object{"labels": object{versionLabel: version}}})
	if err != nil && !kubeapi.Is(err, 404) {
		return "", err
	}
	return version, n.followDNS(ctx, c)
}

// rights lets the users of tokens ask.
func (n *Node) rights(ctx context.Context, c *kubeapi.Client) error {
	for _, o := range joinRights() {
		if err := c.Apply(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// autoApproval is what kubeadm makes: requests by its own tokens are approved
// whatever the name.
const autoApproval = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kubeadm:node-autoapprove-bootstrap"

// forbidAutoApproval leaves only a kubelet that renews its own certificate to be
// approved automatically. kubeadm makes the binding again in every first init,
// of which there may be two, and in every upgrade.
func (n *Node) forbidAutoApproval(ctx context.Context, c *kubeapi.Client) error {
	err := c.Get(ctx, autoApproval, nil, nil)
	if kubeapi.Is(err, 404) {
		return nil
	}
	if err == nil {
		err = c.Delete(ctx, autoApproval, "")
	}
	if err != nil {
		return fmt.Errorf("removing kubeadm's automatic approval: %w", err)
	}
	n.Logf("removed kubeadm's automatic approval of certificates")
	return nil
}

// grant makes tokens known, and others unknown.
func (n *Node) grant(ctx context.Context, c *kubeapi.Client, grants []grant, revoked []string) error {
	for _, g := range grants {
		if err := c.Apply(ctx, g.secret()); err != nil {
			return err
		}
	}
	for _, entry := range revoked {
		kind, name, id := parseEntry(entry)
		if err := c.Delete(ctx, "/api/v1/namespaces/kube-system/secrets/bootstrap-token-"+url.PathEscape(id), ""); err != nil {
			return fmt.Errorf("revoking a token of the %s %s: %w", kind, name, err)
		}
	}
	return nil
}

// adminClient talks to the cluster as kubeadm's administrator.
func (n *Node) adminClient() (*kubeapi.Client, error) {
	conf, err := n.kubeconfig(adminConf)
	if err != nil {
		return nil, err
	}
	if n.clients.admin != nil && n.clients.adminFrom == string(conf.Cert) {
		return n.clients.admin, nil
	}
	conf.Changed = func(method, path string) { n.tellChanged(method + " " + path) }
	c, err := kubeapi.New(conf)
	if err != nil {
		return nil, err
	}
	if n.clients.admin != nil {
		n.clients.admin.Close()
	}
	n.clients.admin, n.clients.adminFrom = c, string(conf.Cert)
	return c, nil
}
