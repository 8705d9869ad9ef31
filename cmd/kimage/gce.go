package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/ignition"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/gce"
	"github.com/kimage-project/kimage/pkg/progress"
)

type gceFlags struct {
	file, identity, image string
	dryRun, inline, keep  bool
	asJSON                bool
	timeout               time.Duration
}

func newGCE() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gce",
		Short: "Run a cluster on Google Compute Engine",
		Long: `Makes of a baked image and a cluster file what Compute Engine runs: an image, an
instance template per machine and pool, instances with the addresses that the cluster
file gives them, a managed instance group per pool, and firewall rules of kimage cluster
ports. The cluster file says where:

  platform:
    gce:
      project: my-project
      zone: europe-west1-b
      bucket: my-project-kimage           made if it is not there
      serviceAccounts: {etcd: NAME@my-project.iam.gserviceaccount.com, master: ..., worker: ...}
      sources: [203.0.113.0/24]           from where people reach the cluster

Credentials are Google's Application Default Credentials. Every command can be run
again: what is there stays, what is missing is made, also after a crash. Only what
carries the cluster's labels is ever changed or deleted.

Configs hold secrets, and everything on a machine can read its metadata. So metadata
holds a stub, which fetches the config from the bucket as the role's service account, and
takes it only if its digest is the one in the stub.

Private endpoints of both APIs are named by KIMAGE_GCE_ENDPOINT (https://HOST).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newGCEPush(), newGCETemplates(), newGCEUp(), newGCEDown())
	return cmd
}

// common adds what all commands have.
func (g *gceFlags) common(cmd *cobra.Command) *cobra.Command {
	clusterFlag(cmd, &g.file)
	identityFlag(cmd, &g.identity)
	f := cmd.Flags()
	f.BoolVar(&g.dryRun, "dry-run", false, "print the calls that would change something, and make none of them")
	f.DurationVar(&g.timeout, "timeout", 20*time.Minute, "how long one of Google's operations may take")
	return cmd
}

func newGCEPush() *cobra.Command {
	var g gceFlags
	cmd := g.common(&cobra.Command{
		Use:   "push IMAGE",
		Short: "Make an image in the project of one that was baked",
		Long: `Uploads an image of kimage build --for gce to the bucket, makes an image of it with
family, architecture, guest OS features and labels, and deletes the upload. An image
with the same content is not uploaded again. An upload that was cut off goes on where
it ended.`,
		Example: `  kimage gce push out/debian-13-v1.37.2-amd64-gce.tar.gz
  kimage gce push out/debian-13-v1.37.2-amd64-gce.tar.gz --dry-run`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return g.push(cmd, args[0]) },
	})
	cmd.Flags().BoolVar(&g.asJSON, "json", false, "print one JSON object")
	return cmd
}

func newGCETemplates() *cobra.Command {
	var g gceFlags
	return g.configured(g.common(&cobra.Command{
		Use:   "templates",
		Short: "Make an instance template per machine and pool",
		Long: `Makes instance templates: disk, network and address, service account, Shielded VM
options, labels and user data. Each role's configs go to the bucket, where its service
account alone is let read them. kimage gce up does this too.

A template cannot be changed, so one whose machine has changed gets another name.`,
		Example: `  kimage gce templates
  kimage gce templates --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.make(cmd, 2, func(ctx context.Context, c *gce.Cloud, x gce.Cluster) error {
				names, err := c.Templates(ctx, x)
				if err == nil && !g.dryRun {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(names, "\n"))
				}
				return err
			})
		},
	}))
}

func newGCEUp() *cobra.Command {
	var g gceFlags
	return g.configured(g.common(&cobra.Command{
		Use:   "up",
		Short: "Run the cluster's machines",
		Long: `Makes all that the cluster file names and the project does not have yet: templates,
firewall rules, addresses, an instance per machine, a managed instance group per pool.
Machines that run are left as they are; of those that the cluster file wants otherwise
by now it says so. Run twice it changes nothing.`,
		Example: `  kimage gce up
  kimage gce up --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.make(cmd, 4, func(ctx context.Context, c *gce.Cloud, x gce.Cluster) error {
				notes, err := c.Up(ctx, x)
				for _, n := range notes {
					fmt.Fprintln(cmd.ErrOrStderr(), n)
				}
				return err
			})
		},
	}))
}

// configured adds what the commands have that make templates.
func (g *gceFlags) configured(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&g.image, "image", "", "image in the project, or projects/P/global/images/NAME (default: the newest that was pushed and fits the cluster file)")
	f.BoolVar(&g.inline, "inline", false, "put configs, secrets and all, into metadata: whatever runs on a machine, and who may read instances in the project, can read them")
	return cmd
}

func newGCEDown() *cobra.Command {
	var g gceFlags
	cmd := g.common(&cobra.Command{
		Use:   "down [NODE...]",
		Short: "Delete the cluster's machines, and all else that it has in the project",
		Long: `Deletes what carries the cluster's labels: groups, instances and their disks,
templates, addresses, firewall rules, images, configs, and the bucket if kimage made it
and nothing else is in it. With names it deletes those machines alone: kimage gce up
makes them anew. The cluster file and the cluster's secrets stay.`,
		Example: `  kimage gce down
  kimage gce down k8s-02
  kimage gce down --keep-images`,
		RunE: func(cmd *cobra.Command, args []string) error { return g.down(cmd, args) },
	})
	cmd.Flags().BoolVar(&g.keep, "keep-images", false, "keep the images that were pushed")
	return cmd
}

// on is the cluster's place on Compute Engine.
func (g *gceFlags) on(cmd *cobra.Command, f *cluster.File, s *state.Store, stages int) (*gce.Cloud, error) {
	c := gce.Config{Cluster: s.Public.Name, ID: s.UID, Endpoint: os.Getenv("KIMAGE_GCE_ENDPOINT"), Operation: g.timeout, Report: progress.New(os.Stderr, stages)}
	if p := f.Cluster.Spec.Platform.GCE; p != nil {
		c.GCE = *p
	}
	if g.dryRun {
		c.DryRun = cmd.OutOrStdout()
	}
	return gce.New(c)
}

// open reads the cluster file and its secrets, of which a dry run makes none to last.
func (g *gceFlags) open(cmd *cobra.Command) (*cluster.File, *state.Store, error) {
	f, err := readCluster(cmd, g.file)
	if err != nil {
		return nil, nil, err
	}
	s, err := state.Open(openState(cmd, f, g.identity))
	if err != nil {
		return nil, nil, err
	}
	if err := s.Ensure(); err != nil {
		s.Close()
		return nil, nil, err
	}
	return f, s, nil
}

func (g *gceFlags) save(cmd *cobra.Command, f *cluster.File, s *state.Store) error {
	if g.dryRun {
		return nil
	}
	fresh := s.Fresh()
	if err := s.Save(); err != nil {
		return err
	}
	if fresh {
		fmt.Fprintln(cmd.ErrOrStderr(), madeSecrets(s, f))
	}
	return nil
}

// goesOn says of an error that the same command goes on from there.
func (g *gceFlags) goesOn(err error) error {
	if err == nil || g.dryRun {
		return err
	}
	return &remains{err, "what was done stays: the same command goes on from there, kimage gce down removes it"}
}

func (g *gceFlags) push(cmd *cobra.Command, file string) error {
	if err := gce.CheckImage(file); err != nil {
		return err
	}
	m, err := images.BesideArtifact(file)
	if err != nil {
		return err
	}
	f, s, err := g.open(cmd)
	if err != nil {
		return err
	}
	defer s.Close()
	if m.For != "gce" {
		return fmt.Errorf("%s was baked for %s: kimage build --for gce -f %s bakes one that Compute Engine boots", file, m.For, f.Path)
	}
	if err := fits(&images.Installable{OS: m.OS, Kubernetes: m.Kubernetes, Runtime: m.Runtime, Network: m.Network, Arch: m.Arch}, f); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	c, err := g.on(cmd, f, s, 3)
	if err != nil {
		return err
	}
	if err := g.save(cmd, f, s); err != nil {
		return err
	}
	p, err := c.Push(cmd.Context(), gce.Image{File: file, OS: m.OS, Kubernetes: m.Kubernetes, Runtime: m.Runtime, Network: m.Network, Arch: m.Arch, ID: m.ImageID})
	if err != nil || g.dryRun {
		return g.goesOn(err)
	}
	if g.asJSON {
		return writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "image": p})
	}
	did := "made"
	if p.There {
		did = "it is there already"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, family %s: %s\n", p.Name, p.Family, did)
	return err
}

// make has act work on all that the cluster file says.
func (g *gceFlags) make(cmd *cobra.Command, stages int, act func(context.Context, *gce.Cloud, gce.Cluster) error) error {
	f, s, err := g.open(cmd)
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := g.on(cmd, f, s, stages)
	if err != nil {
		return err
	}
	x := gce.Cluster{FirstBoot: f.OS.FirstBoot, Ports: f.Ports(), Inline: g.inline}
	if x.Machines, err = gceMachines(f, s); err != nil {
		return err
	}
	spec := f.Cluster.Spec
	if x.Image, err = c.FindImage(cmd.Context(), g.image, gce.Image{OS: f.OS.Name, Kubernetes: spec.Kubernetes, Runtime: spec.Runtime, Network: spec.Network.Plugin}); err != nil {
		return err
	}
	if g.inline {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: --inline: secrets are in metadata, where whatever runs on a machine can read them")
	}
	if len(c.Sources) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "spec.platform.gce.sources is empty: nobody outside the cluster's own machines reaches it")
	}
	if err := g.save(cmd, f, s); err != nil {
		return err
	}
	return g.goesOn(act(cmd.Context(), c, x))
}

// gceMachines renders what every machine is told.
func gceMachines(f *cluster.File, s *state.Store) (out []gce.Machine, err error) {
	// The bucket takes a config of any size; metadata's limit is looked at if they go there.
	gen, err := generator(f, s, "metal")
	if err != nil {
		return nil, err
	}
	configs, err := gen.All()
	if err != nil {
		return nil, err
	}
	for i, t := range f.Targets() {
		config := configs[i].Files["user-data"]
		if f.OS.FirstBoot == gce.Ignition {
			config = configs[i].Files[ignition.ConfigFile]
		}
		out = append(out, gce.Machine{Target: t, Config: config, Boot: configs[i].Boot})
	}
	return out, nil
}

func (g *gceFlags) down(cmd *cobra.Command, names []string) error {
	f, err := readCluster(cmd, g.file)
	if err != nil {
		return err
	}
	s, err := state.OpenExisting(openState(cmd, f, g.identity))
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := g.on(cmd, f, s, 7)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return g.goesOn(c.Drop(cmd.Context(), names))
	}
	return g.goesOn(c.Down(cmd.Context(), g.keep))
}
