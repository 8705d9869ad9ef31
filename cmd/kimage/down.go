package main

import (
	"errors"
	"io/fs"

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
			f, err := loadCluster(file)
			if err != nil {
				return err
			}
			l, err := localOf(f)
			if err != nil {
				return err
			}
			if _, err := l.Spec(); errors.Is(err, fs.ErrNotExist) {
				if on, err := l.Running(); err != nil || !on {
					return err // nothing to end
				}
			}
			return l.discard(cmd.ErrOrStderr())
		},
	}
	clusterFlag(cmd, &file)
	return cmd
}
