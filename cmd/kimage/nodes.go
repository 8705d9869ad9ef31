package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// nodes shows the Nodes as the API server has them.
func (l *localCluster) nodes(ctx context.Context, out io.Writer) error {
	conf, err := kubeapi.ReadKubeconfig(l.in("kubeconfig"))
	if err != nil {
		return err
	}
	conf.Timeout = time.Minute
	c, err := kubeapi.New(conf)
	if err != nil {
		return err
	}
	defer c.Close()
	var list struct{ Items []kubeapi.Object }
	if err := c.Get(ctx, "/api/v1/nodes", url.Values{}, &list); err != nil {
		return fmt.Errorf("asking the API server for its Nodes: %w", err)
	}
	t := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATUS\tROLES\tVERSION\tINTERNAL-IP")
	for _, n := range list.Items {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", kubeapi.Text(n, "metadata", "name"), condition(n, "Ready"), rolesOf(n), kubeapi.Text(n, "status", "nodeInfo", "kubeletVersion"), internalIP(n))
	}
	return t.Flush()
}

func condition(n kubeapi.Object, kind string) string {
	all, _ := kubeapi.Field(n, "status", "conditions").([]any)
	for _, x := range all {
		if c, _ := x.(kubeapi.Object); kubeapi.Text(c, "type") == kind && kubeapi.Text(c, "status") == "True" {
			return kind
		}
	}
	return "Not" + kind
}

func rolesOf(n kubeapi.Object) string {
	labels, _ := kubeapi.Field(n, "metadata", "labels").(kubeapi.Object)
	var roles []string
	for k := range labels {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return cmp.Or(strings.Join(roles, ","), "<none>")
}

func internalIP(n kubeapi.Object) string {
	all, _ := kubeapi.Field(n, "status", "addresses").([]any)
	for _, x := range all {
		if a, _ := x.(kubeapi.Object); kubeapi.Text(a, "type") == "InternalIP" {
			return kubeapi.Text(a, "address")
		}
	}
	return "-"
}
