// Command kimage bakes immutable Kubernetes node images.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/local"
)

// Exit status of every command.
const (
	statusNo           = 1 // differs, not verified, not ready
	statusCouldNotTell = 2 // usage, network, missing tool, bad input
)

// errNo is what a command returns whose answer is no, after it has said so.
var errNo = errors.New("no")

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNo):
		return statusNo
	case ctx.Err() != nil:
		if r, ok := errors.AsType[*remains](err); ok {
			fmt.Fprintf(os.Stderr, "kimage: interrupted; %s\n", r.what)
			return statusCouldNotTell
		}
		fmt.Fprintln(os.Stderr, "kimage: interrupted; nothing is left behind")
		return statusCouldNotTell
	}
	if wrong, ok := errors.AsType[*cluster.Problems](err); ok && len(wrong.All) > 1 {
		fmt.Fprintln(os.Stderr, wrong)
		return statusCouldNotTell
	}
	// One line, however many things are wrong.
	fmt.Fprintf(os.Stderr, "kimage: %s\n", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
	if errors.Is(err, local.ErrNotReady) {
		return statusNo
	}
	return statusCouldNotTell
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "kimage",
		Short: "Bake immutable Kubernetes node images",
		Long: `kimage bakes Linux images with kubelet, container runtime, CNI plugins and the
container images of the control plane, from a stock image or from packages:
no virtual machine, no container engine, no root.

  kimage build --os debian-13     one image, ready for kubeadm init without a network
  kimage cluster new              a cluster file to begin with
  kimage config                   what each of its machines is told at first boot
  kimage up                       a cluster on this computer
  kimage serve --interface eth1   machines that boot from the network are installed
  kimage gce up                   a cluster on Google Compute Engine`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newBuild(), newLock(), newInspect(), newVerify(), newDiff(), newCluster(), newConfig(), newSecrets(), newUp(), newDown(), newStatus(), newKubeconfig(), newSSH(), newConsole(), newLogs(), newReplace(), newServe(), newGCE(), newSupervise(), newVagrant(), newList(), newDoctor(), newCache(), newVersion())
	return root
}
