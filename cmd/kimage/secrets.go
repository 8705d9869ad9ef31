package main

import (
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/pkg/cluster"
)

func newSecrets() *cobra.Command {
	var file, identity string
	cmd := &cobra.Command{
		Use:   "secrets",
		Short: "Show, encrypt and rotate the cluster's secrets",
		Long: `The secrets lie in CLUSTER.secrets beside the cluster file and are the only thing
to back up. No command prints a private key or a token.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	// with opens what is there, and gives it to do.
	with := func(do func(cmd *cobra.Command, s *state.Store, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			f, err := readCluster(cmd, file)
			if err != nil {
				return err
			}
			s, err := state.OpenExisting(openState(cmd, f, identity))
			if err != nil {
				return err
			}
			defer s.Close()
			return do(cmd, s, args)
		}
	}
	var asJSON bool
	show := &cobra.Command{Use: "show", Short: "List the secrets with fingerprints and ends, not contents", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, s *state.Store, _ []string) error {
			if asJSON {
				return writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "name": s.Public.Name, "uid": s.UID, "fingerprints": s.Fingerprints,
					"generation": s.Roster.Generation, "serial": s.Roster.Serial, "certificates": s.Certificates()})
			}
			return showSecrets(cmd, s)
		})}
	show.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	encrypt := &cobra.Command{Use: "encrypt", Short: "Encrypt the secrets to the recipients of spec.secrets.encryptTo, with age", Args: cobra.NoArgs,
		RunE: with(func(cmd *cobra.Command, s *state.Store, _ []string) error {
			n, err := s.Encrypt()
			if err == nil {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d files encrypted\n", s.Dir(), n)
			}
			return err
		})}
	rotate := &cobra.Command{Use: "rotate join|kubeconfig|etcd", Short: "Make some secrets anew",
		Long: `Makes some secrets anew; then run kimage config.

  join         the key of all bootstrap tokens: configs made before can no longer join
  kubeconfig   the operator's certificate
  etcd         the certificates of etcd members and of etcd's clients; machines keep
               working with the old ones until they are booted with their new configs

Authorities are not rotated.`,
		ValidArgs: []string{"join", "kubeconfig", "etcd"}, Args: cobra.ExactArgs(1),
		RunE: with(func(cmd *cobra.Command, s *state.Store, args []string) error {
			if err := s.Rotate(args[0]); err != nil {
				return err
			}
			if err := s.Save(); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s made anew; run kimage config\n", s.Dir(), args[0])
			return err
		})}
	for _, sub := range []*cobra.Command{show, encrypt, rotate} {
		clusterFlag(sub, &file)
		identityFlag(sub, &identity)
		cmd.AddCommand(sub)
	}
	return cmd
}

func showSecrets(cmd *cobra.Command, s *state.Store) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "cluster %s, %s, roster generation %d, serial %d\n\n", s.Public.Name, s.UID, s.Roster.Generation, s.Roster.Serial)
	fmt.Fprintln(w, "SECRET\tFINGERPRINT")
	for _, name := range slices.Sorted(maps.Keys(s.Fingerprints)) {
		fmt.Fprintf(w, "%s\t%s\n", name, s.Fingerprints[name])
	}
	fmt.Fprintln(w, "\t\nCERTIFICATE\tEND")
	for _, c := range s.Certificates() {
		fmt.Fprintf(w, "%s\t%s\n", c.Name, c.NotAfter.Format("2006-01-02"))
	}
	return w.Flush()
}
