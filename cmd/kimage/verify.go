package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/progress"
)

func newVerify() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Read an image again, and compare every digest in it",
		Long: `Reads an image (raw, qcow2 or fixed VHD) and compares what is in it with every
record of it: partition tables, file systems, the payload with its digest and its
hash tree, every program, the manifest, the bill of materials, the container images,
the files that were baked into the root. Each is a line, also what cannot be judged,
because nothing records it; the last one is the verdict.

It finds corruption and accidents. Who can write to an image can also change the
records in it; the one outside of it is NAME.json, which kimage build writes beside
it, and which is compared if it lies there.
Exits with 1 if anything differs, and with 2 if it cannot tell.`,
		Example: `  kimage verify out/debian-13-v1.37.2-amd64.raw
  kimage verify --json out/debian-13-v1.37.2-amd64.raw`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var report *progress.Reporter
			if !quiet {
				report = progress.New(os.Stderr, images.VerifyStages)
			}
			v, err := images.Verify(cmd.Context(), args[0], report)
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				err = writeJSON(cmd, v)
			case !quiet:
				_, err = fmt.Fprint(cmd.OutOrStdout(), v.String())
			case !v.Verified:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), v.Verdict())
			}
			if err == nil && !v.Verified {
				err = errNo
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&quiet, "quiet", false, "print nothing unless something differs")
	return cmd
}
