package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/ignition"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/tree"
)

func newConfig() *cobra.Command {
	var file, output, identity, platform string
	var seeds, diff, asJSON bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Write what every machine is told at first boot",
		Long: `Writes a folder for every machine and pool of the cluster file: config.ign for
Ignition systems; user-data, meta-data and network-config for cloud-init
systems; and the operator's kubeconfig.

The first run makes the cluster's secrets beside the cluster file: back up
CLUSTER.secrets, commit CLUSTER.state. The configs hold secrets too; they can be
removed and made again, byte for byte.`,
		Example: `  kimage config -o config
  kimage config --seed             also a NoCloud volume per machine
  kimage config --diff             which machines must be booted anew; exits with 1 if any`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := readCluster(cmd, file)
			if err != nil {
				return err
			}
			if seeds && f.OS.FirstBoot != "cloud-init" {
				return fmt.Errorf("--seed: %s boots with Ignition, which reads no NoCloud volume: give config.ign to the machine (kimage config --help)", f.OS.Name)
			}
			if seeds {
				if err := doctor.Check(doctor.Seed); err != nil {
					return err
				}
			}
			open := state.Open
			if diff {
				open = state.OpenExisting
			}
			s, err := open(openState(cmd, f, identity))
			if err != nil {
				return err
			}
			defer s.Close()
			fresh := s.Fresh()
			if err := s.Ensure(); err != nil {
				return err
			}
			g, err := generator(f, s, platform)
			if err != nil {
				return err
			}
			machines, err := g.All()
			if err != nil {
				return err
			}
			changes, err := g.Compare(output, machines)
			if err != nil {
				return err
			}
			if diff {
				return tellDiff(cmd, output, changes, asJSON)
			}
			// Secrets first: a config whose secrets are lost is worthless.
			if err := s.Save(); err != nil {
				return err
			}
			if err := g.Write(cmd.Context(), output, machines, seeds); err != nil {
				return err
			}
			if fresh {
				fmt.Fprintln(cmd.ErrOrStderr(), madeSecrets(s, f))
			}
			if asJSON {
				return writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "directory": output, "machines": len(machines), "changes": changes})
			}
			return tellConfig(cmd, f, output, machines, changes)
		},
	}
	clusterFlag(cmd, &file)
	identityFlag(cmd, &identity)
	fl := cmd.Flags()
	fl.StringVarP(&output, "output", "o", "config", "directory for the configs; replaced as a whole")
	fl.BoolVar(&seeds, "seed", false, "also write a NoCloud volume (ISO, label CIDATA) for each machine")
	fl.BoolVar(&diff, "diff", false, "write nothing; say which machines' configs differ from those in the directory")
	fl.StringVar(&platform, "for", "", "platform whose size limit counts: "+strings.Join(ignition.Platforms(), ", ")+" (default: spec.platform)")
	fl.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// madeSecrets says what was made, and what to do with it.
func madeSecrets(s *state.Store, f *cluster.File) string {
	return fmt.Sprintf("made the secrets of cluster %s: back up %s (there is nothing else to back up), commit %s.state", s.Public.Name, s.Dir(), f.Stem())
}

// generator joins the cluster file with the facts of its operating system.
func generator(f *cluster.File, s *state.Store, platform string) (*ignition.Generator, error) {
	o, err := images.FindOS(f.OS.Name)
	if err != nil {
		return nil, err
	}
	c := ignition.Config{File: f, State: s, OS: ignition.OS(o.Config), Platform: platform}
	c.OS.User = o.User
	t, err := o.Activation()
	if err != nil {
		return nil, err
	}
	for _, e := range t.Entries() {
		a, err := activation(e)
		if err != nil {
			return nil, err
		}
		if !e.Mode.IsDir() {
			c.Activation = append(c.Activation, a)
		}
	}
	return ignition.New(c)
}

func activation(e tree.Entry) (ignition.Activation, error) {
	a := ignition.Activation{Path: "/" + e.Path, Mode: int(e.Mode.Perm()), Link: e.Target}
	if !e.Mode.IsRegular() {
		return a, nil
	}
	r, err := e.Open()
	if err != nil {
		return a, err
	}
	defer r.Close()
	a.Content, err = io.ReadAll(r)
	return a, err
}

func tellDiff(cmd *cobra.Command, output string, c ignition.Changes, asJSON bool) error {
	if c.First {
		return fmt.Errorf("%s holds no configs to compare with: run kimage config first", output)
	}
	if asJSON {
		if err := writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "directory": output, "changes": c}); err != nil {
			return err
		}
	} else {
		tellChanges(cmd.OutOrStdout(), c)
	}
	if c.Any() {
		return errNo
	}
	return nil
}

func tellChanges(w io.Writer, c ignition.Changes) {
	for _, x := range []struct {
		what string
		list []string
	}{{"new, boot it", c.Added}, {"changed, boot it anew", c.Changed}, {"gone", c.Removed}} {
		for _, m := range x.list {
			fmt.Fprintf(w, "  %s: %s\n", m, x.what)
		}
	}
}

func tellConfig(cmd *cobra.Command, f *cluster.File, output string, machines []ignition.Machine, c ignition.Changes) error {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "%s: %d configs for %s, and %s\n", output, len(machines), f.OS.FirstBoot, filepath.Join(output, ignition.Kubeconfig))
	if !c.First {
		tellChanges(w, c)
	}
	if fi, err := os.Stdout.Stat(); err == nil && fi.Mode()&fs.ModeCharDevice != 0 {
		fmt.Fprintf(w, "Next: kimage build -f %s\n", f.Path)
	}
	return nil
}
