package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/nearest"
)

func newDown() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "down [NODE...]",
		Short: "End the machines of kimage up, and remove them",
		Long: `Ends the cluster's machines on this computer and removes their disks, images,
configs and key. The cluster file and the cluster's secrets stay. With names it ends
and removes those machines alone, as if they were lost: kimage up boots them fresh, or
what the cluster file has in their place by then.`,
		Example: "  kimage down\n  kimage down k8s-02",
		RunE: func(cmd *cobra.Command, args []string) error {
			open := localOf
			if len(args) > 0 { // machines that are named have to be there
				open = openLocal
			}
			l, err := open(file)
			if err != nil {
				return err
			}
			if _, err := os.Stat(l.Dir); errors.Is(err, fs.ErrNotExist) {
				return nil // nothing to end
			}
			claim, err := l.claim()
			if err != nil {
				return err
			}
			defer claim.Close()
			if len(args) > 0 {
				return l.drop(cmd, args)
			}
			return l.discard(cmd.ErrOrStderr())
		},
	}
	clusterFlag(cmd, &file)
	return cmd
}

// drop ends some of the machines.
func (l *localCluster) drop(cmd *cobra.Command, names []string) error {
	now, err := l.Spec()
	if err != nil {
		return err
	}
	for _, name := range names {
		if now.Machine(name) == nil {
			return nearest.Unknown("machine", name, now.Names())
		}
	}
	for _, name := range names {
		now.Machines = slices.DeleteFunc(now.Machines, func(m local.Machine) bool { return m.Name == name })
		if err := l.Write(now); err != nil {
			return err
		}
		if err := l.Drop(cmd.Context(), name); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "ended %s and removed its disk\n", name)
	}
	return l.prune(now)
}
