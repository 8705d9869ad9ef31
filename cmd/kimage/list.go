package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/images/components"
)

func newList() *cobra.Command {
	var asJSON bool
	var kubernetes, network, arch string
	kinds := []string{"os", "kubernetes", "runtimes", "networks", "formats", "downloads"}
	cmd := &cobra.Command{
		Use:   "list [" + strings.Join(kinds, "|") + "]",
		Short: "List what can be baked",
		Long: `Lists operating systems, Kubernetes versions, runtimes, network plugins and
formats. How far a system is tested: vendor (its own image booted to Ready),
lookalike (its partition table and first boot, with another userland), render
(its first-boot config is accepted). $KIMAGE_OS_PATH is a directory with OS
files of your own. "downloads" lists every file and container image that --components
release fetches: a mirror holds each at MIRROR/HOST/PATH, an image at
MIRROR/REGISTRY/v2/NAME/manifests/TAG and .../blobs/DIGEST.`,
		ValidArgs: kinds,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			oses, err := images.OSes()
			if err != nil {
				return err
			}
			versions, err := components.Versions()
			if err != nil {
				return err
			}
			lists := map[string][]string{"kubernetes": versions, "runtimes": images.Runtimes, "networks": images.Networks, "formats": images.Formats}
			if asJSON {
				all := map[string]any{"apiVersion": images.APIVersion, "os": oses}
				for k, v := range lists {
					all[k] = v
				}
				return json.NewEncoder(cmd.OutOrStdout()).Encode(all)
			}
			if len(args) == 1 && args[0] == "downloads" {
				return listDownloads(cmd, kubernetes, network, arch)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			if len(args) == 0 || args[0] == "os" {
				fmt.Fprintln(w, "OS\tALSO\tSYSTEM\tARCH\tFIRST BOOT\tFOR\tTESTED")
				for _, o := range oses {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", o.Name, strings.Join(o.Aliases, ", "), o.Title, strings.Join(o.Arches, ", "), o.FirstBoot, strings.Join(o.Vendor.For(), " "), o.Tested)
				}
			}
			for _, kind := range kinds[1:5] {
				if len(args) == 0 {
					fmt.Fprintf(w, "%s\t%s\n", kind, strings.Join(lists[kind], ", "))
				} else if args[0] == kind {
					fmt.Fprintln(w, strings.Join(lists[kind], "\n"))
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().StringVar(&kubernetes, "kubernetes", "", "downloads: of this version (default: newest)")
	cmd.Flags().StringVar(&network, "network", "flannel", "downloads: with this network plugin")
	cmd.Flags().StringVar(&arch, "arch", "amd64", "downloads: for this architecture")
	return cmd
}

func listDownloads(cmd *cobra.Command, kubernetes, network, arch string) error {
	downloads, refs, err := components.Downloads(kubernetes, network, arch)
	if err != nil {
		return err
	}
	for _, d := range downloads {
		fmt.Fprintln(cmd.OutOrStdout(), d)
	}
	for _, ref := range refs {
		fmt.Fprintln(cmd.OutOrStdout(), ref)
	}
	return nil
}
