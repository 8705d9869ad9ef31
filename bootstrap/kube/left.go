package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// leftFor is how long the Node of a machine whose name left the roster may not be
// Ready before it is deleted: what ran there runs elsewhere by then (Kubernetes
// evicts it after five minutes).
const leftFor = 10 * time.Minute

// sweep deletes the Nodes of machines that are no longer the cluster's, once they
// have been off for leftFor; nothing else ever would. It returns which entries of
// what left, each KIND:NAME, have none any more.
//
// That a machine is not Ready is no proof that it is off. That its name left the
// signed list is its owner's word that it will not come back under it.
func (n *Node) sweep(ctx context.Context, c *kubeapi.Client, left []string, peers nodeconf.Peers) (gone []string, err error) {
	if len(left) == 0 {
		return nil, nil
	}
	var nodes struct{ Items []apiNode }
	if err := c.Get(ctx, "/api/v1/nodes", nil, &nodes); err != nil {
		return nil, fmt.Errorf("listing Nodes: %w", err)
	}
	stale, gone := swept(left, nodes.Items, n.Node.Cluster.Name, peers, n.Now())
	var errs []error
	for _, node := range stale {
		err := c.Delete(ctx, "/api/v1/nodes/"+url.PathEscape(node.Metadata.Name), node.Metadata.UID)
		switch {
		case err == nil:
			n.Logf("deleted the Node %s: its name left the cluster, and it was not Ready for %s", node.Metadata.Name, leftFor)
		case !kubeapi.Is(err, 409): // another of the same name
			errs = append(errs, fmt.Errorf("deleting the Node %s, which left the cluster: %w", node.Metadata.Name, err))
		}
	}
	return gone, errors.Join(errs...)
}

// swept says which Nodes are deleted, and which entries of left have none. It is pure.
func swept(left []string, nodes []apiNode, cluster string, peers nodeconf.Peers, now time.Time) (stale []apiNode, gone []string) {
	for _, entry := range left {
		kind, name, _ := parseEntry(entry)
		mine := slices.DeleteFunc(slices.Clone(nodes), func(node apiNode) bool {
			of := node.Metadata.Name
			was := of == name
			if kind == kindOf(true) {
				was = inPool(of, cluster, name)
			}
			return !was || listed(of, cluster, peers)
		})
		if len(mine) == 0 {
			gone = append(gone, entry)
		}
		for _, node := range mine {
			if now.Sub(node.readyUntil(now)) >= leftFor {
				stale = append(stale, node)
			}
		}
	}
	return stale, gone
}

// listed says whether a Node of that name is one of the cluster's machines.
func listed(name, cluster string, peers nodeconf.Peers) bool {
	return peers.Has(false, name) || slices.ContainsFunc(peers.Pools, func(p nodeconf.Peer) bool { return inPool(name, cluster, p.Name) })
}

// readyUntil is since when a Node has not been Ready: since it was made, if it does
// not say. Of one that is Ready it is now.
func (n apiNode) readyUntil(now time.Time) time.Time {
	until := n.Metadata.CreationTimestamp
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type != "Ready":
		case c.Status == "True":
			return now
		case !c.Since.IsZero():
			until = c.Since
		}
	}
	return until
}
