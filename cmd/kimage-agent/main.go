// Command kimage-agent runs on every node that kimage baked.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap"
	"github.com/kimage-project/kimage/bootstrap/install"
)

var errNotReady = errors.New("not ready")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	if install.IsInit() {
		root.SetArgs([]string{"install"})
	}
	err := root.ExecuteContext(ctx)
	switch {
	case errors.Is(err, errNotReady):
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "kimage-agent:", err)
		os.Exit(2)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{Use: "kimage-agent", Short: "Make a Kubernetes node of this machine", SilenceErrors: true, SilenceUsage: true}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		&cobra.Command{Use: "prepare", Short: "Apply the payload's settings, put Kubernetes' state on the data partition (at every boot)", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return bootstrap.Prepare(cmd.Context()) }},
		&cobra.Command{Use: "import", Short: "Import the container images of the node image", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return bootstrap.Import(cmd.Context()) }},
		&cobra.Command{Use: "grow", Short: "Grow the data partition to the end of the disk", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				g, err := bootstrap.Grow(cmd.Context())
				if err == nil {
					fmt.Printf("partition %d MiB, file system %d MiB, grown: %t\n", g.PartitionBytes>>20, g.FilesystemBytes>>20, g.Grown)
				}
				return err
			}},
		&cobra.Command{Use: "run", Short: "Make this machine a part of its cluster, and keep it one", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				err := bootstrap.Run(cmd.Context(), func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
				if cmd.Context().Err() != nil {
					return nil
				}
				return err
			}},
		newStatus(), newTimeline(), newBalance(), newRoster(), newInstall())
	return root
}
