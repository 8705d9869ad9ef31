package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/doctor"
)

func newDoctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say which programs are missing, and which package has them",
		Long: `Checks for the programs that kimage calls. Exits with 1 if something is missing
that every build needs; what only some builds need is shown, too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			groups := []struct {
				title string
				needs []doctor.Need
			}{
				{"every build", doctor.Bake},
				{"--base packages", doctor.BasePackages},
				{"--components source", slices.Concat(doctor.Source, doctor.SourceImages)},
				{"kimage config --seed", doctor.Seed},
				{"vagrant up with libvirt", doctor.Libvirt},
				{"booting an image here", doctor.Boot},
				{"a cluster here (kimage up)", doctor.Run},
				{"machines elsewhere (kimage serve)", doctor.Serve},
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			var packages []string
			for _, g := range groups {
				missing := doctor.Missing(g.needs)
				for _, n := range g.needs {
					state := "ok"
					if slices.Contains(missing, n) {
						state = "MISSING, package " + n.Package
						if !slices.Contains(packages, n.Package) {
							packages = append(packages, n.Package)
						}
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", g.title, n.Name(), state, n.Why)
				}
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if len(packages) > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "\nTo get everything on Debian or Ubuntu: apt-get install %s\n", strings.Join(packages, " "))
			}
			if len(doctor.Missing(doctor.Bake)) > 0 {
				return errNo
			}
			return nil
		},
	}
}
