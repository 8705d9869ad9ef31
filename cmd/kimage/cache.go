package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/progress"
)

func newCache() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show the cache and its size",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cache.Open(dir, nil)
			if err != nil {
				return err
			}
			usage, err := c.Usage()
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), c.Root)
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', tabwriter.AlignRight)
			for _, u := range usage {
				fmt.Fprintf(w, "%s\t%d entries\t%s\t\n", u.Kind, u.Entries, progress.FormatBytes(u.Bytes))
			}
			return w.Flush()
		},
	}
	cmd.PersistentFlags().StringVar(&dir, "cache", "", "cache directory (default: $KIMAGE_CACHE or ~/.cache/kimage)")
	cmd.AddCommand(&cobra.Command{
		Use:   "clean [KIND...]",
		Short: "Remove entries (all, or of the kinds that are named); the next build fetches or builds them again",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := cache.Open(dir, func(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) })
			if err != nil {
				return err
			}
			return c.Clean(args...)
		},
	})
	return cmd
}
