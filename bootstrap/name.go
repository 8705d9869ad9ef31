package bootstrap

import (
	"context"
	"maps"
	"time"

	"github.com/kimage-project/kimage/bootstrap/gce"
	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// nodeName is what this machine is called. On Compute Engine it asks the metadata server
// first: a pool's machine has its instance's name there, as the cloud's own controllers want
// it, and c gets what else is known there. Afterwards that server is closed to pods.
func nodeName(ctx context.Context, c *nodeconf.Config, logf func(string, ...any)) (string, error) {
	if !gce.Here("") {
		return lastName(*c)
	}
	instance, err := askInstance(ctx, gce.Ask, logf)
	if err != nil {
		return "", err
	}
	learn(c, instance)
	for first := true; ; first = false {
		err := gce.Close(ctx)
		if err == nil {
			break
		}
		if first { // a pod must not be first
			logf("%v; the machine joins when that is done", err)
		}
		if err := sleep(ctx, pauseMoving); err != nil {
			return "", err
		}
	}
	if name := instance.Name; c.Node.Name == "" && gce.InGroup(name, c.Cluster.Name, c.Node.Pool) {
		return name, nil
	}
	return lastName(*c)
}

// lastName is what this machine is called as far as it can tell by itself: a pool's machine
// may have been told on Compute Engine what it is called.
func lastName(c nodeconf.Config) (string, error) {
	if c.Node.Name != "" {
		return c.Node.Name, nil
	}
	if o, err := readOwner(); err == nil && o != nil && gce.InGroup(o.Node, c.Cluster.Name, c.Node.Pool) {
		return o.Node, nil
	}
	return kube.PoolName(c.Node.Pool, "")
}

// askInstance asks until there is an answer: without one a pool's machine would get another
// name than at its last start.
func askInstance(ctx context.Context, ask func(context.Context) (gce.Instance, error), logf func(string, ...any)) (gce.Instance, error) {
	for last := ""; ; {
		instance, err := ask(ctx)
		if err == nil {
			return instance, nil
		}
		if err.Error() != last {
			last = err.Error()
			logf("%v; trying again", err)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return instance, err
		}
	}
}

// learn puts into c what the metadata server knows and the cluster file does not say.
func learn(c *nodeconf.Config, i gce.Instance) {
	labels := map[string]string{"topology.kubernetes.io/zone": i.Zone, "topology.kubernetes.io/region": i.Region()}
	maps.Copy(labels, c.Node.Labels)
	c.Node.Labels = labels
	if len(c.Node.Addresses) == 0 {
		c.Node.Addresses = []string{i.Address}
	}
}
