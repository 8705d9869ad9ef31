package main

import (
	"log"
	"os"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/local"
)

// newSupervise is what kimage up starts.
func newSupervise() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return local.Set{Dir: args[0]}.Supervise(cmd.Context(), log.New(os.Stderr, "", log.LstdFlags).Printf)
		},
	}
}
