package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/nearest"
)

func newReplace() *cobra.Command {
	var u upFlags
	cmd := &cobra.Command{
		Use:   "replace NODE",
		Short: "Destroy a machine of kimage up and boot it fresh",
		Long: `Destroys a machine with its disk and boots a fresh one of its name, as the cluster
file now describes it, with an image baked now. The cluster repairs itself.`,
		Example: "  kimage replace k8s-01",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLocal(u.file)
			if err != nil {
				return err
			}
			name := args[0]
			now, err := l.Spec()
			if err != nil {
				return err
			}
			if now.Machine(name) == nil {
				var names []string
				for _, m := range now.Machines {
					names = append(names, m.Name)
				}
				return nearest.Unknown("machine", name, names)
			}
			spec, s, err := l.prepare(cmd, u.identity, u.image, &now)
			if err != nil {
				return err
			}
			defer s.Close()
			next := spec.Machine(name)
			if next == nil {
				return fmt.Errorf("%s is no longer in %s", name, u.file)
			}
			*now.Machine(name) = *next
			if err := l.Write(now); err != nil {
				return err
			}
			if err := l.Replace(cmd.Context(), name); err != nil {
				return err
			}
			if err := l.prune(now); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), u.timeout)
			defer cancel()
			if err := l.AwaitReady(ctx, cmd.ErrOrStderr()); err != nil {
				l.tellConsoles(cmd.ErrOrStderr())
				return err
			}
			return l.nodes(cmd.Context(), cmd.OutOrStdout())
		},
	}
	clusterFlag(cmd, &u.file)
	identityFlag(cmd, &u.identity)
	cmd.Flags().StringVar(&u.image, "image", "", "raw or qcow2 image to boot (default: baked)")
	cmd.Flags().DurationVar(&u.timeout, "timeout", time.Hour, "how long to wait until it is Ready")
	return cmd
}
