package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap"
)

func newStatus() *cobra.Command {
	var asJSON, all bool
	var wait string
	var timeout time.Duration
	cmd := &cobra.Command{Use: "status", Short: "Say whether this node is what its image promises, and how far it is; exits with 1 if not", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait != "" && wait != bootstrap.PhaseReady {
				return fmt.Errorf("--wait %s: it can wait for ready only", wait)
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			if all {
				return clusterStatus(ctx, cmd.OutOrStdout(), asJSON, wait != "")
			}
			s := bootstrap.Observe(ctx)
			for wait != "" && !s.OK && ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Second):
					s = bootstrap.Observe(ctx)
				}
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if err := enc.Encode(s); err != nil {
					return err
				}
			} else if err := showStatus(s); err != nil {
				return err
			}
			if !s.OK {
				return errNotReady
			}
			return nil
		}}
	cmd.Flags().BoolVar(&all, "cluster", false, "on a master: what its agent heard of every machine of the cluster file")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().StringVar(&wait, "wait", "", "wait until the node, or with --cluster every machine, is this: ready")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "of --wait (default: none)")
	return cmd
}

func showStatus(s bootstrap.Status) error {
	fmt.Printf("imageID %s, %s, Kubernetes %s\n", s.ImageID, s.OS, s.Kubernetes)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	for _, c := range []struct {
		name string
		bootstrap.Check
	}{{"payload merged", s.Merged}, {"payload verified", s.Verified}, {"data partition grown", s.Grown}, {"runtime answers", s.Runtime}, {"images present", s.Images}} {
		mark := "yes"
		if !c.OK {
			mark = "NO"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.name, mark, c.Detail)
	}
	if n := s.Node; n != nil {
		fmt.Fprintf(w, "%s\t%s\tsince %s %s\n", n.Node, n.Phase, n.Since.Local().Format(time.DateTime), n.Why)
		if n.Took != nil {
			fmt.Fprintf(w, "\t\t%s\n", n.Took)
		}
	}
	return w.Flush()
}
