package main

import (
	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/nearest"
)

func newLogs() *cobra.Command {
	var file string
	var console bool
	cmd := &cobra.Command{
		Use:     "logs NODE",
		Short:   "Print what a machine of kimage up has logged",
		Long:    "Prints the journal of kimage's agent, the kubelet, etcd and the runtime; with --console all\nthat the machine wrote to its console, also of one that is off or has no network.",
		Example: "  kimage logs k8s-01\n  kimage logs --console k8s-01",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLocal(file)
			if err != nil {
				return err
			}
			if console {
				spec, err := l.Spec()
				if err != nil {
					return err
				}
				if spec.Machine(args[0]) == nil {
					return nearest.Unknown("machine", args[0], spec.Names())
				}
				return l.CopyConsole(cmd.OutOrStdout(), args[0])
			}
			m, err := l.machine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return l.ssh(m, []string{"sudo journalctl --no-pager -o short-precise -u kimage-agent -u kimage-balancer -u etcd -u containerd -u kubelet"})
		},
	}
	clusterFlag(cmd, &file)
	cmd.Flags().BoolVar(&console, "console", false, "the console, since the machine was made")
	return cmd
}
