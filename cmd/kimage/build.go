package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/images/vendors"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/progress"
)

//go:embed agent
var agents embed.FS

func newBuild() *cobra.Command {
	var c images.Config
	m := &madeOf{Config: &c}
	var asJSON, quiet, locked bool
	cmd := &cobra.Command{
		Use:   "build --os NAME",
		Short: "Bake a node image",
		Long: `Bakes a disk image: the operating system, a read-only payload with Kubernetes,
runtime, CNI plugins, etcd and the agent, and the container images that kubeadm wants.

The same inputs give the same bytes. What was fetched or built is cached; the
second build of an image takes seconds.`,
		Example: `  kimage build --os debian-13
  kimage build --os coreos-stable --for gce
  kimage build --os debian-13 --kubernetes 1.36 --network none --format raw,qcow2 -o images
  kimage build --os debian-13 --base debian-13-generic-amd64.qcow2
  kimage build --os debian-13 --components /srv/mirror --offline`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := m.complete(cmd); err != nil {
				return err
			}
			if locked {
				c.LockMode = images.LockFixed
			}
			if !quiet {
				c.Report = progress.New(os.Stderr, images.Stages)
			}
			c.Checksums = asJSON
			result, err := bake(cmd.Context(), c, m.cacheDir)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(result)
			}
			if !quiet {
				fmt.Fprint(cmd.OutOrStdout(), result.Receipt())
			}
			return nil
		},
	}
	m.flags(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&c.Formats, "format", nil, "disk formats (default the platform's, raw for metal): "+strings.Join(images.Formats, ", "))
	f.StringVar(&c.Agent, "agent", "", "file with kimage-agent for --arch (default: the one inside kimage)")
	f.StringVar(&c.Name, "name", "", "name of the image (default: OS-KUBERNETES-ARCH, and -PLATFORM with --for)")
	f.StringVarP(&c.Output, "output", "o", "out", "directory for what is made")
	f.BoolVar(&locked, "locked", false, "fail if the lock does not pin everything already")
	f.BoolVar(&asJSON, "json", false, "print one JSON object that describes the result, with checksums (some seconds more)")
	f.BoolVar(&quiet, "quiet", false, "print nothing but errors")
	return cmd
}

// madeOf is what images are made from, and the flags that say it.
type madeOf struct {
	*images.Config
	clusterFile, cacheDir string
}

func (m *madeOf) flags(cmd *cobra.Command) {
	f, c := cmd.Flags(), m.Config
	f.StringVar(&c.OS, "os", "", "operating system (kimage list os), or an OS file of your own")
	f.StringVar(&c.Kubernetes, "kubernetes", "", "Kubernetes version, or a minor version for its newest patch (default: newest of kimage list kubernetes)")
	f.StringVar(&c.Runtime, "runtime", "containerd", "container runtime")
	f.StringVar(&c.Network, "network", "flannel", "network plugin: flannel or none")
	f.StringVar(&c.Arch, "arch", "amd64", "processor architecture")
	f.StringVar(&c.For, "for", "", "platform, which chooses the vendor's image and the format: "+strings.Join(vendors.Platforms, ", ")+" (default metal)")
	f.StringVar(&c.Base, "base", "auto", "where the operating system comes from: auto, vendor, packages, FILE or URL (raw, qcow2 or fixed VHD, also .gz .xz .zst .bz2), or a mirror's DIR")
	f.StringVar(&c.Mirror, "mirror", os.Getenv("KIMAGE_MIRROR"), "directory or URL where vendors' hosts are, MIRROR/HOST/PATH (default $KIMAGE_MIRROR, or the hosts themselves)")
	f.StringVar(&c.Components, "components", "auto", "where programs and container images come from: auto, release, source, or a mirror's DIR or URL")
	f.StringVar(&c.Images, "images", "all", "container images to preload: all, control-plane or none")
	f.StringVar(&c.AptMirror, "apt-mirror", "", "Debian archive (default: the one this machine's apt is set to)")
	f.StringVar(&c.Lock, "lock", "", "file that pins what goes in (default: "+images.LockFile+" beside the cluster file, or here)")
	f.StringVar(&m.cacheDir, "cache", "", "cache directory (default: $KIMAGE_CACHE or ~/.cache/kimage)")
	f.BoolVar(&c.Offline, "offline", false, "use nothing but the cache")
	f.StringVarP(&m.clusterFile, "file", "f", "", "cluster file that says os, kubernetes, runtime and network")
}

// complete adds what the cluster file says, and where the lock lies.
func (m *madeOf) complete(cmd *cobra.Command) error {
	if m.Lock == "" {
		m.Lock = filepath.Join(filepath.Dir(m.clusterFile), images.LockFile)
	}
	if m.clusterFile == "" {
		return nil
	}
	return fromClusterFile(cmd, m.clusterFile, m.Config)
}

// bake builds an image with the agent inside kimage, unless c names another.
func bake(ctx context.Context, c images.Config, cacheDir string) (result *images.Result, err error) {
	err = withBuilder(c, cacheDir, func(b *images.Builder) (err error) {
		result, err = b.Build(ctx)
		return err
	})
	return result, err
}

// withBuilder has do use a builder for c.
func withBuilder(c images.Config, cacheDir string, do func(*images.Builder) error) error {
	var err error
	if c.Cache, err = cache.Open(cacheDir, c.Report.Logf); err != nil {
		return err
	}
	if c.Agent == "" {
		scratch, err := c.Cache.Scratch()
		if err != nil {
			return err
		}
		defer scratch.Remove()
		if c.Agent, err = embeddedAgent(scratch, c.Arch); err != nil {
			return err
		}
	}
	b, err := images.New(c)
	if err != nil {
		return err
	}
	return do(b)
}

// embeddedAgent writes the agent that kimage carries to scratch; empty: this
// kimage was built without.
func embeddedAgent(scratch *atomicfile.TempDir, arch string) (string, error) {
	data, err := agents.ReadFile("agent/kimage-agent-" + arch)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	file := filepath.Join(scratch.Path, "kimage-agent")
	return file, os.WriteFile(file, data, 0o755)
}
