package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/progress"
)

func newLock() *cobra.Command {
	var c images.Config
	m := &madeOf{Config: &c}
	var update, check bool
	cmd := &cobra.Command{
		Use:   "lock --os NAME",
		Short: "Pin what images are made from",
		Long: `Finds what an image would be made from (its base, programs and container images)
and pins it in ` + images.LockFile + `: by URL, version and digest, and by signer where one
signs. Every bake does that for what is not pinned yet, and fails if what is
pinned is not so any more. Commit the file: the same lock gives the same image.`,
		Example: `  kimage lock --os coreos-stable
  kimage lock --os coreos-stable --update
  kimage lock --os coreos-stable --check`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := m.complete(cmd); err != nil {
				return err
			}
			switch {
			case update && check:
				return errors.New("--update or --check, not both")
			case update:
				c.LockMode = images.LockUpdate
			case check:
				c.LockMode = images.LockFixed
			}
			c.Report = progress.New(os.Stderr, images.LockStages)
			changed := false
			err := withBuilder(c, m.cacheDir, func(b *images.Builder) (err error) {
				changed, err = b.Lock(cmd.Context())
				return err
			})
			switch {
			case check && errors.Is(err, images.ErrLock):
				fmt.Fprintln(cmd.OutOrStdout(), err)
				return errNo
			case err != nil:
				return err
			case changed:
				fmt.Fprintln(cmd.OutOrStdout(), c.Lock, "is written: commit it")
			default:
				fmt.Fprintln(cmd.OutOrStdout(), c.Lock, "pins it all already")
			}
			return nil
		},
	}
	cmd.AddCommand(newLockFetch())
	m.flags(cmd)
	cmd.Flags().BoolVar(&update, "update", false, "pin what is current now in place of what was")
	cmd.Flags().BoolVar(&check, "check", false, "change nothing; exit status 1 if not all is pinned, or not so any more")
	return cmd
}

func newLockFetch() *cobra.Command {
	var c images.Config
	m := &madeOf{Config: &c}
	var output string
	cmd := &cobra.Command{
		Use:   "fetch --os NAME -o DIR",
		Short: "Fetch all that images are made from, for a site without a way out",
		Long: `Writes the vendor's image, the programs, the container images and the lock that
pins them to a directory. Without a network the same image is baked by kimage
build with --base DIR --components DIR --lock DIR/` + images.LockFile + ` --offline.`,
		Example: `  kimage lock fetch --os coreos-stable -o mirror`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := m.complete(cmd); err != nil {
				return err
			}
			c.Report = progress.New(os.Stderr, images.MirrorStages)
			return withBuilder(c, m.cacheDir, func(b *images.Builder) error { return b.Mirror(cmd.Context(), output) })
		},
	}
	m.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "mirror", "directory for what is fetched")
	return cmd
}
