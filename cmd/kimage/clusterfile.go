package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/images"
)

// fromClusterFile takes what an image needs from a cluster file; flags win.
func fromClusterFile(cmd *cobra.Command, name string, c *images.Config) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("cluster file: %w", err)
	}
	var file struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		Spec       struct {
			Kubernetes string `yaml:"kubernetes"`
			OS         string `yaml:"os"`
			Runtime    string `yaml:"runtime"`
			Network    struct {
				Plugin string `yaml:"plugin"`
			} `yaml:"network"`
		} `yaml:"spec"`
	}
	// What concerns machines and not images is not looked at.
	if err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&file); err != nil {
		return fmt.Errorf("cluster file %s: %w", name, err)
	}
	if file.APIVersion != images.APIVersion || file.Kind != "Cluster" {
		return fmt.Errorf("cluster file %s: expected apiVersion %s and kind Cluster, got %q and %q", name, images.APIVersion, file.APIVersion, file.Kind)
	}
	for flag, v := range map[string]struct {
		from string
		to   *string
	}{
		"os":         {file.Spec.OS, &c.OS},
		"kubernetes": {file.Spec.Kubernetes, &c.Kubernetes},
		"runtime":    {file.Spec.Runtime, &c.Runtime},
		"network":    {file.Spec.Network.Plugin, &c.Network},
	} {
		if v.from != "" && !cmd.Flags().Changed(flag) {
			*v.to = v.from
		}
	}
	return nil
}
