package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/nearest"
)

func newReplace() *cobra.Command {
	var u upFlags
	var yes bool
	cmd := &cobra.Command{
		Use:   "replace NODE",
		Short: "Destroy a machine and boot it fresh",
		Long: `Of a cluster of kimage up: destroys a machine with its disk and boots a fresh one of
its name, as the cluster file now describes it, with an image baked now. The others
take it in again. The only etcd member of a cluster is the cluster: it is replaced
only with --yes, and a new cluster begins.

Of machines that kimage serve installs: releases one, so that it is installed once
more when it next boots from the network. An etcd member is released only if the
others' agents say that they are a quorum without it, or with --yes.`,
		Example: "  kimage replace k8s-02",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir, ok, err := serveDir(u.file); err != nil {
				return err
			} else if ok {
				return releaseMachine(cmd, &u, dir, args[0], yes)
			}
			l, err := openLocal(u.file)
			if err != nil {
				return err
			}
			if err := l.replace(cmd, &u, args[0], yes); err != nil {
				return err
			}
			if err := l.await(cmd, u.timeout, true); err != nil {
				return runOn(err)
			}
			l.show(cmd)
			return nil
		},
	}
	clusterFlag(cmd, &u.file)
	identityFlag(cmd, &u.identity)
	cmd.Flags().StringVar(&u.image, "image", "", "raw or qcow2 image to boot (default: baked)")
	cmd.Flags().BoolVar(&yes, "yes", false, "also where what the cluster knows may be lost with the machine")
	cmd.Flags().DurationVar(&u.timeout, "timeout", time.Hour, "how long to wait until it is Ready")
	return cmd
}

// replace destroys a machine and boots it fresh.
func (l *localCluster) replace(cmd *cobra.Command, u *upFlags, name string, yes bool) error {
	claim, err := l.claim()
	if err != nil {
		return err
	}
	defer claim.Close()
	now, err := l.Spec()
	if err != nil {
		return err
	}
	old := now.Machine(name)
	if old == nil {
		return nearest.Unknown("machine", name, now.Names())
	}
	members := 0
	for _, m := range now.Machines {
		if slices.Contains(m.Roles, cluster.RoleEtcd) {
			members++
		}
	}
	if members == 1 && slices.Contains(old.Roles, cluster.RoleEtcd) && !yes {
		return fmt.Errorf("%s is the only etcd member: with its disk all that the cluster knows is lost, and a new cluster begins; --yes does it", name)
	}
	if on, err := l.Running(); err != nil {
		return err
	} else if !on {
		return fmt.Errorf("%w: kimage up -f %s", local.ErrNotRunning, u.file)
	}
	f, err := readCluster(cmd, u.file)
	if err != nil {
		return err
	}
	spec, s, err := l.prepare(cmd, f, u.identity, u.image, &now, false)
	if err != nil {
		return err
	}
	defer s.Close()
	next := spec.Machine(name)
	if next == nil {
		return fmt.Errorf("%s is no longer in %s", name, u.file)
	}
	if next.Pool != "" {
		next.Address = old.Address // the others keep theirs as well
	}
	*old = *next
	if err := l.Write(now); err != nil {
		return err
	}
	if err := l.Boot(cmd.Context(), name); err != nil {
		return err
	}
	return l.prune(now)
}
