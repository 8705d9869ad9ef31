package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/nearest"
)

func newCluster() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Write, check and explain the cluster file",
		Long: `One file, cluster.yaml, describes a cluster: its Kubernetes, its networks and its
machines. These commands make one to begin with, find everything that is wrong
with it, and say what it means for one machine.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newClusterNew(), newClusterCheck(), newClusterShow(), newClusterPorts(), newClusterSchema())
	return cmd
}

func newClusterNew() *cobra.Command {
	var o cluster.Outline
	var subnet string
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Print a cluster file to begin with",
		Long: `Prints a cluster file for one of four topologies:

  1   one machine that does everything
  3   three machines: all etcd members and workers, two of them masters
  6   two masters that are workers, one worker, three etcd members
  8   two masters, three workers, three etcd members`,
		Example: "  kimage cluster new --topology 6 --os coreos-stable > cluster.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if subnet != "" {
				var err error
				if o.Subnet, err = netip.ParsePrefix(subnet); err != nil {
					return fmt.Errorf("--subnet %s: no network (such as 172.17.8.0/24)", subnet)
				}
			}
			text, err := newClusterFile(&o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Topology, "topology", "1", "1, 3, 6 or 8")
	f.IntVar(&o.Workers, "workers", 0, "workers besides those of the topology")
	f.StringVar(&o.Name, "name", "demo", "name of the cluster")
	f.StringVar(&o.OS, "os", "debian-13", "operating system (kimage list os)")
	f.StringVar(&o.Kubernetes, "kubernetes", "", "Kubernetes version (default: newest)")
	f.StringVar(&o.Plugin, "network", "flannel", "network plugin: flannel or none")
	f.StringVar(&subnet, "subnet", "", "IPv4 network of the machines (default: 172.17.8.0/24)")
	return cmd
}

// newClusterFile is the text of a cluster file to begin with, which is right whatever
// was asked for. It fills in the Kubernetes version.
func newClusterFile(o *cluster.Outline) (string, error) {
	s, err := support()
	if err != nil {
		return "", err
	}
	if _, err := images.FindOS(o.OS); err != nil {
		return "", err
	}
	if o.Kubernetes == "" {
		o.Kubernetes = s.Kubernetes[0]
	}
	text, err := cluster.New(*o)
	if err != nil {
		return "", err
	}
	_, err = cluster.Parse([]byte(text), "the new cluster file", s)
	return text, err
}

func newClusterCheck() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Say everything that is wrong with a cluster file",
		Example: "  kimage cluster check -f cluster.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := readCluster(cmd, file)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: right: %d machines and %d pools, %s, Kubernetes %s, %s, %s\n",
				file, len(f.Nodes), len(f.Pools), f.OS.Name, f.Cluster.Spec.Kubernetes, f.Cluster.Spec.Runtime, f.Cluster.Spec.Network.Plugin)
			return err
		},
	}
	clusterFlag(cmd, &file)
	return cmd
}

func newClusterShow() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show NODE",
		Short:   "Show a machine's effective settings, and the line that each came from",
		Example: "  kimage cluster show k8s-01",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := readCluster(cmd, file)
			if err != nil {
				return err
			}
			var names []string
			for _, t := range f.Targets() {
				if t.Name != args[0] {
					names = append(names, t.Name)
					continue
				}
				if asJSON {
					return writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "name": t.Name, "pool": t.Pool, "roles": t.Roles, "addresses": t.Addresses, "settings": t.Settings})
				}
				return showTarget(cmd, f, t)
			}
			return nearest.Unknown("machine", args[0], names)
		},
	}
	clusterFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func showTarget(cmd *cobra.Command, f *cluster.File, t cluster.Target) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	kind := "machine"
	if t.Pool {
		kind = fmt.Sprintf("pool of %d", t.Size)
	}
	fmt.Fprintf(w, "%s, %s: %s", t.Name, kind, strings.Join(t.Roles, ", "))
	if len(t.Addresses) > 0 {
		fmt.Fprintf(w, ", %s", strings.Join(t.Addresses, ", "))
	}
	fmt.Fprintln(w)
	for _, s := range t.Settings {
		fmt.Fprintf(w, "  %s\t%s\t%s:%d\t%s\n", s.Path, s.Value, f.Path, s.Line, s.From)
	}
	if len(t.Settings) == 0 {
		fmt.Fprintln(w, "  nothing is set: all defaults")
	}
	return w.Flush()
}

func newClusterPorts() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ports",
		Short: "List the ports that must be open between machines",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := readCluster(cmd, file)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "ports": f.Ports()})
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "TO\tPORT\tPROTOCOL\tFROM\tWHAT")
			for _, p := range f.Ports() {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", p.To, p.Port, p.Protocol, p.From, p.What)
			}
			return w.Flush()
		},
	}
	clusterFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func newClusterSchema() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the JSON Schema of the cluster file, for editors",
		Example: "  kimage cluster schema > " + cluster.SchemaFile,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := support()
			if err != nil {
				return err
			}
			data, err := cluster.Schema(s)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
}

func writeJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
