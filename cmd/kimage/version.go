package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of kimage",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "kimage %s (%s)\n", images.Version, runtime.Version())
			return err
		},
	}
}
