package gce

import (
	"context"
	"fmt"
	"strings"

	"github.com/kimage-project/kimage/pkg/nearest"
)

// Down deletes all that is the cluster's, in the order in which nothing refers any more
// to what goes. Images and the bucket may be kept.
func (c *Cloud) Down(ctx context.Context, keepImages bool) error {
	kinds := []kind{groups, instances, templates, addresses, firewalls}
	if !keepImages {
		kinds = append(kinds, images)
	}
	for _, k := range kinds {
		c.Report.Stage("deleting %s", k.name)
		if err := c.removeAll(ctx, k, func(placed) bool { return true }); err != nil {
			return err
		}
	}
	c.Report.Stage("deleting configs in gs://%s", c.Bucket)
	objects, err := c.objects(ctx)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if err := c.removeObject(ctx, o); err != nil {
			return err
		}
	}
	if err := c.setGrants(ctx, nil); err != nil {
		return err
	}
	return c.removeBucket(ctx)
}

// removeAll deletes those of a kind that are meant.
func (c *Cloud) removeAll(ctx context.Context, k kind, meant func(placed) bool) error {
	all, err := c.list(ctx, k)
	if err != nil {
		return err
	}
	for _, x := range all {
		if !meant(x) {
			continue
		}
		if err := c.remove(ctx, k, x.place, x.Name); err != nil {
			return err
		}
	}
	return nil
}

// Drop deletes some machines by their names in the cluster file, with their addresses;
// Up makes them anew.
func (c *Cloud) Drop(ctx context.Context, names []string) error {
	meant := map[string]bool{}
	for _, n := range names {
		meant[name(c.Cluster, n)] = true
	}
	var have []string
	seen := map[string]bool{}
	for _, k := range []kind{groups, instances} {
		all, err := c.list(ctx, k)
		if err != nil {
			return err
		}
		for _, x := range all {
			seen[x.Name] = true
			have = append(have, strings.TrimPrefix(x.Name, name(c.Cluster)+"-"))
		}
	}
	for _, n := range names {
		if !seen[name(c.Cluster, n)] {
			return fmt.Errorf("project %s: %w", c.Project, nearest.Unknown("machine", n, have))
		}
	}
	for _, k := range []kind{groups, instances, addresses} {
		if err := c.removeAll(ctx, k, func(x placed) bool { return meant[x.Name] }); err != nil {
			return err
		}
	}
	return nil
}
