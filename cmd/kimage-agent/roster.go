package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap"
)

// rosterPatience is how long the agent may take.
const rosterPatience = 2 * time.Minute

func newRoster() *cobra.Command {
	return &cobra.Command{
		Use:   "roster FILE",
		Short: "Give this machine, and by it the cluster, a newer list of machines",
		Long: `Give this machine a newer list of the cluster's machines: config/roster.json,
which kimage config writes and signs. One machine is enough, the others hear of
it. A machine that boots with a newer config brings the list along by itself;
this is for a change that boots none, as a cluster that only becomes smaller.

FILE may be - : ssh NODE sudo kimage-agent roster - < config/roster.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var data []byte
			var err error
			if args[0] == "-" {
				data, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), 1<<20))
			} else {
				data, err = os.ReadFile(args[0])
			}
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), rosterPatience)
			defer cancel()
			r, err := bootstrap.OfferRoster(ctx, data)
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "this machine has the roster of generation %d, serial %d: %d etcd members, %d masters\n", r.Generation, r.Serial, len(r.Members), len(r.Masters))
			}
			return err
		},
	}
}
