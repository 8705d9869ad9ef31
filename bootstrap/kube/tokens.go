package kube

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// JoinGroup is the group of every machine that has a token and no certificate
// yet. kubeadm's own group is not used: its requests are approved for any name.
const JoinGroup = "system:bootstrappers:kimage"

// tokenGroup is the group of one machine's, or one pool's, token: it says for
// which names a certificate may be asked.
func tokenGroup(pool bool, name string) string {
	return JoinGroup + ":" + kindOf(pool) + ":" + name
}

func kindOf(pool bool) string {
	if pool {
		return "pool"
	}
	return "node"
}

func tokenDescription(pool bool, name string) string {
	return "joins " + kindOf(pool) + " " + name
}

// group undoes tokenGroup.
func group(g string) (pool bool, name string, ok bool) {
	rest, ok := strings.CutPrefix(g, JoinGroup+":")
	if !ok {
		return false, "", false
	}
	kind, name, ok := strings.Cut(rest, ":")
	return kind == "pool", name, ok && name != "" && (kind == "node" || kind == "pool")
}

// grant is the token of a machine or pool, to be known by the cluster.
type grant struct {
	pool bool
	name string
	id   string
	key  string
}

// entry is how the record remembers a token.
func (g grant) entry() string { return kindOf(g.pool) + ":" + g.name + ":" + g.id }

// grants derives the tokens of every name in the roster.
func (n *Node) grants(peers nodeconf.Peers) ([]grant, error) {
	data, err := os.ReadFile(n.pki(nodeconf.JoinKey))
	if err != nil {
		return nil, fmt.Errorf("reading what first boot wrote (give the machine its config again: kimage config): %w", err)
	}
	key := bytes.TrimSpace(data) // as the operator's side derives tokens
	var all []grant
	add := func(pool bool, peers []nodeconf.Peer) {
		for _, p := range peers {
			id, secret, _ := strings.Cut(nodeconf.Token(key, pool, p.Name), ".")
			all = append(all, grant{pool, p.Name, id, secret})
		}
	}
	add(false, peers.Nodes)
	add(true, peers.Pools)
	return all, nil
}

// secret is the token as the API server looks for it
// (https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/#bootstrap-token-secret-format).
// It has no end: a machine that dies in three years is simply booted again.
func (g grant) secret() kubeapi.Object {
	data := object{}
	for k, v := range map[string]string{"token-id": g.id, "token-secret": g.key, "usage-bootstrap-authentication": "true",
		"auth-extra-groups": JoinGroup + "," + tokenGroup(g.pool, g.name), "description": tokenDescription(g.pool, g.name)} {
		data[k] = base64.StdEncoding.EncodeToString([]byte(v))
	}
	return kubeapi.Object{"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "data": data,
		"metadata": object{"name": "bootstrap-token-" + g.id, "namespace": "kube-system"}}
}

// joinRights are what a machine may do with its token: ask for a certificate,
// and read what kubeadm join and fetchImages read.
func joinRights() []kubeapi.Object {
	const rbac = "rbac.authorization.k8s.io"
	subjects := []any{object{"apiGroup": rbac, "kind": "Group", "name": JoinGroup}}
	clusterBinding := func(name, role string) kubeapi.Object {
		return kubeapi.Object{"apiVersion": rbac + "/v1", "kind": "ClusterRoleBinding", "metadata": object{"name": name},
			"roleRef": object{"apiGroup": rbac, "kind": "ClusterRole", "name": role}, "subjects": subjects}
	}
	return []kubeapi.Object{
		clusterBinding("kimage:node-bootstrapper", "system:node-bootstrapper"),
		// kubeadm join refuses while a Ready Node has the machine's name; for the
		// others see fetchImages.
		{"apiVersion": rbac + "/v1", "kind": "ClusterRole", "metadata": object{"name": "kimage:join"},
			"rules": []any{object{"apiGroups": []any{""}, "resources": []any{"nodes"}, "verbs": []any{"get"}},
				object{"apiGroups": []any{"apps"}, "resources": []any{"daemonsets"}, "verbs": []any{"get"}, "resourceNames": []any{proxySet.name, flannelSet.name}}}},
		clusterBinding("kimage:join", "kimage:join"),
		{"apiVersion": rbac + "/v1", "kind": "Role", "metadata": object{"name": "kimage:join", "namespace": "kube-system"},
			"rules": []any{object{"apiGroups": []any{""}, "resources": []any{"configmaps"}, "verbs": []any{"get"},
				"resourceNames": []any{"kubeadm-config", "kubelet-config", "kube-proxy", recordName}}}},
		{"apiVersion": rbac + "/v1", "kind": "RoleBinding", "metadata": object{"name": "kimage:join", "namespace": "kube-system"},
			"roleRef": object{"apiGroup": rbac, "kind": "Role", "name": "kimage:join"}, "subjects": subjects},
	}
}
