package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/cluster"
)

const defaultClusterFile = "cluster.yaml"

// support is what this kimage can do for a cluster file.
func support() (cluster.Support, error) {
	oses, err := images.OSes()
	if err != nil {
		return cluster.Support{}, err
	}
	s := cluster.Support{Runtimes: images.Runtimes, Plugins: images.Networks, Components: components.CatalogueVersions}
	for _, o := range oses {
		s.OSes = append(s.OSes, cluster.OS{Name: o.Name, Aliases: o.Aliases, FirstBoot: o.FirstBoot})
	}
	s.Kubernetes, err = components.Versions()
	return s, err
}

// loadCluster reads the cluster file.
func loadCluster(name string) (*cluster.File, error) {
	s, err := support()
	if err != nil {
		return nil, err
	}
	return cluster.Read(name, s)
}

// readCluster reads the cluster file and tells its warnings.
func readCluster(cmd *cobra.Command, name string) (*cluster.File, error) {
	f, err := loadCluster(name)
	if err != nil {
		return nil, err
	}
	for _, w := range f.Warnings {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: warning: %s\n", name, w)
	}
	return f, nil
}

// clusterFlag adds -f.
func clusterFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVarP(name, "file", "f", defaultClusterFile, "cluster file")
}

// identityFlag adds --identity.
func identityFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "identity", os.Getenv("KIMAGE_AGE_IDENTITY"), "file with the age identity that the secrets are encrypted to (default: $KIMAGE_AGE_IDENTITY)")
}

// openState opens the secrets of f and says what they are told.
func openState(cmd *cobra.Command, f *cluster.File, identity string) state.Config {
	return state.Config{File: f, Identity: identity, Logf: func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }}
}

// fromClusterFile takes what an image needs from a cluster file; flags win.
func fromClusterFile(cmd *cobra.Command, name string, c *images.Config) error {
	f, err := readCluster(cmd, name)
	if err != nil {
		return err
	}
	spec := f.Cluster.Spec
	for flag, v := range map[string]struct {
		from string
		to   *string
	}{
		"os":         {f.OS.Name, &c.OS},
		"kubernetes": {spec.Kubernetes, &c.Kubernetes},
		"runtime":    {spec.Runtime, &c.Runtime},
		"network":    {spec.Network.Plugin, &c.Network},
	} {
		if !cmd.Flags().Changed(flag) {
			*v.to = v.from
		}
	}
	return nil
}
