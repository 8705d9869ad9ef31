package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func newKubeconfig() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Print the kubeconfig of the cluster of kimage up",
		Example: "  kimage kubeconfig > ~/.kube/demo",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := openLocal(file)
			if err != nil {
				return err
			}
			data, err := os.ReadFile(l.in("kubeconfig"))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s", data)
			return err
		},
	}
	clusterFlag(cmd, &file)
	return cmd
}
