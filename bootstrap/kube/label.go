package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// label gives Nodes the labels that they may not give themselves: their roles,
// and what else Kubernetes' admission plugin NodeRestriction keeps for others.
func (n *Node) label(ctx context.Context, c *kubeapi.Client) error {
	var list struct{ Items []struct{ Metadata metadata } }
	// Version 0 is the API server's cache: this is asked every few seconds.
	if err := c.Metadata(ctx, "/api/v1/nodes", url.Values{"resourceVersion": {"0"}}, &list); err != nil {
		return fmt.Errorf("listing Nodes: %w", err)
	}
	var errs []error
	peers := n.Roster().Peers
	for _, node := range list.Items {
		missing := missingLabels(node.Metadata, n.Node.Cluster.Name, peers)
		if len(missing) == 0 {
			continue
		}
		err := c.Merge(ctx, "/api/v1/nodes/"+url.PathEscape(node.Metadata.Name), object{
			"metadata": object{"uid": node.Metadata.UID, "labels": missing}})
		if kubeapi.Is(err, 404) || kubeapi.Is(err, 409) {
			continue // gone, or another of the same name
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("labelling Node %s: %w", node.Metadata.Name, err))
		}
	}
	return errors.Join(errs...)
}

// missingLabels are those that the cluster file wants and the Node lacks.
func missingLabels(node metadata, cluster string, peers nodeconf.Peers) map[string]string {
	missing := map[string]string{}
	for k, v := range wantedLabels(node.Name, cluster, peers) {
		if have, ok := node.Labels[k]; !ok || have != v {
			missing[k] = v
		}
	}
	return missing
}

func wantedLabels(name, cluster string, peers nodeconf.Peers) map[string]string {
	for _, p := range peers.Nodes {
		if p.Name == name {
			return p.Labels
		}
	}
	for _, p := range peers.Pools {
		if inPool(name, cluster, p.Name) {
			return p.Labels
		}
	}
	return nil
}
