package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/progress"
)

func newDiff() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Show what two images have that is not the same",
		Long: `Compares two images (raw, qcow2 or fixed VHD; the format is not compared): options,
base and its packages, components, container images, the payload's files, partitions.
In the list, - is in A alone, + in B alone, and ~ in both and not the same.

What the images say of themselves is compared, and the payloads' files if the payloads
differ; kimage verify finds out whether an image is what it says. State that a booted
disk has collected is not compared.
Exits with 0 if the images are the same, 1 if they differ, 2 if it cannot tell.`,
		Example: `  kimage diff out/debian-13-v1.37.2-amd64.raw images/debian-13-v1.36.5-amd64.qcow2`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var report *progress.Reporter
			if !quiet {
				report = progress.New(os.Stderr, 0)
			}
			d, err := images.Diff(cmd.Context(), args[0], args[1], report)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd, d)
			} else if !quiet {
				_, err = fmt.Fprint(cmd.OutOrStdout(), d.String())
			}
			if err == nil && !d.Same {
				err = errNo
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&quiet, "quiet", false, "print nothing: the exit status says whether they differ")
	return cmd
}
