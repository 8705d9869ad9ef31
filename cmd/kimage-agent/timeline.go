package main

import (
	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap"
	"github.com/kimage-project/kimage/pkg/atomicfile"
)

func newTimeline() *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "timeline", Short: "Draw how this machine came to be Ready since it booted, as one SVG", Args: cobra.NoArgs,
		Long: `Draws the way of this machine from power-on to Ready in this boot, as one SVG:
the stages of the boot, the units that matter or took long, the agent's phases
and what it waited for, etcd, the phases of kubeadm and the first pods.

It needs root, and reads systemd's properties and the journal: it can be drawn
as long as the journal has this boot. Before Ready it shows the way so far.`,
		Example: "  kimage-agent timeline -o timeline.svg\n  ssh NODE sudo kimage-agent timeline >NODE.svg",
		RunE: func(cmd *cobra.Command, _ []string) error {
			svg, err := bootstrap.Timeline(cmd.Context())
			if err != nil {
				return err
			}
			if file != "" {
				return atomicfile.Write(file, svg, 0o644)
			}
			_, err = cmd.OutOrStdout().Write(svg)
			return err
		}}
	cmd.Flags().StringVarP(&file, "output", "o", "", "write the SVG to this file (default: standard output)")
	return cmd
}
