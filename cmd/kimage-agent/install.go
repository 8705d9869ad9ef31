package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap/install"
)

func newInstall() *cobra.Command {
	return &cobra.Command{Use: "install", Short: "Install this machine over the network (as the first process of what kimage serve has machines boot)", Args: cobra.ArbitraryArgs,
		DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			if !install.IsInit() {
				return errors.New("this writes a disk, and does it only as the first process of what a machine booted from kimage serve")
			}
			install.Run()
			return nil
		}}
}
