package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap/balancer"
)

func newBalance() *cobra.Command {
	return &cobra.Command{Use: "balance", Short: "Serve 127.0.0.1:7445, the API servers, and on masters 127.0.0.1:7446, etcd", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
			n, err := balancer.NewNode(balancer.NodeConfig{Logf: logf})
			if err != nil {
				return err
			}
			if n == nil {
				logf("this machine is neither master nor worker: nothing to balance")
				return nil
			}
			return n.Run(cmd.Context())
		}}
}
