package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func newKubeconfig() *cobra.Command {
	var file, identity string
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the operator's kubeconfig",
		Long: `Prints the operator's kubeconfig: of the cluster of kimage up, which is reached on
this computer, or of the one that runs elsewhere, by the secrets beside its file.`,
		Example: "  kimage kubeconfig > ~/.kube/demo",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := kubeconfigOf(cmd, file, identity)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s", data)
			return err
		},
	}
	clusterFlag(cmd, &file)
	identityFlag(cmd, &identity)
	return cmd
}

func kubeconfigOf(cmd *cobra.Command, file, identity string) ([]byte, error) {
	l, err := localOf(file)
	if err != nil {
		return nil, err
	}
	if l.exists() {
		return os.ReadFile(l.in("kubeconfig"))
	}
	s, _, err := openOperator(cmd, file, identity)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.Kubeconfig()
}
