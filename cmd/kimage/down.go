package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
)

func newDown() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End the machines of kimage up, and remove them",
		Long: `Ends the cluster's machines on this computer and removes their disks, images,
configs and key. The cluster file and the cluster's secrets stay.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := localOf(file)
			if err != nil {
				return err
			}
			if _, err := os.Stat(l.Dir); errors.Is(err, fs.ErrNotExist) {
				return nil // nothing to end
			}
			release, err := l.claim()
			if err != nil {
				return err
			}
			defer release()
			return l.discard(cmd.ErrOrStderr())
		},
	}
	clusterFlag(cmd, &file)
	return cmd
}
