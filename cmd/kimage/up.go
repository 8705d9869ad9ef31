package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/local"
)

type upFlags struct {
	file, identity, image        string
	topology, osName, kubernetes string
	keep                         bool
	timeout                      time.Duration
}

func newUp() *cobra.Command {
	var u upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a cluster on this computer",
		Long: `Boots every machine of the cluster file as a virtual machine on this computer, and
waits until the cluster is Ready. Without a cluster file it writes one; it bakes
the image and makes the configs as far as needed. No root, no bridge: the
machines have a network of their own, and a way out through this computer.

The machines run until kimage down, also when the terminal is closed. Interrupted
before they are Ready, it removes what it made, unless --keep is given.`,
		Example: `  kimage up                              one machine
  kimage up --topology 3 -f three.yaml
  export KUBECONFIG=cluster.local/kubeconfig; kubectl get nodes
  kimage status; kimage ssh k8s-01; kimage replace k8s-01; kimage down`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd) },
	}
	clusterFlag(cmd, &u.file)
	identityFlag(cmd, &u.identity)
	f := cmd.Flags()
	f.StringVar(&u.topology, "topology", "1", "of a new cluster file: "+strings.Join(cluster.Topologies, ", ")+" (kimage cluster new --help)")
	f.StringVar(&u.osName, "os", "debian-13", "of a new cluster file: operating system (kimage list os)")
	f.StringVar(&u.kubernetes, "kubernetes", "", "of a new cluster file: Kubernetes version (default: newest)")
	f.StringVar(&u.image, "image", "", "raw or qcow2 image to boot (default: baked)")
	f.BoolVar(&u.keep, "keep", false, "keep the machines also when they do not become Ready")
	f.DurationVar(&u.timeout, "timeout", time.Hour, "how long to wait until they are Ready")
	return cmd
}

func (u *upFlags) run(cmd *cobra.Command) error {
	if err := u.clusterFile(cmd); err != nil {
		return err
	}
	f, err := readCluster(cmd, u.file)
	if err != nil {
		return err
	}
	l, err := localOf(f)
	if err != nil {
		return err
	}
	running, err := l.Running()
	if err != nil {
		return err
	}
	if !running {
		fresh, err := l.start(cmd, u)
		if err != nil {
			return err
		}
		if fresh && !u.keep {
			defer func() {
				if err != nil {
					l.discard(cmd.ErrOrStderr())
				}
			}()
		}
		err = l.ready(cmd, u)
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "the machines are running already")
	return l.ready(cmd, u)
}

// clusterFile writes one if there is none.
func (u *upFlags) clusterFile(cmd *cobra.Command) error {
	if _, err := os.Stat(u.file); err == nil {
		for _, flag := range []string{"topology", "os", "kubernetes"} {
			if cmd.Flags().Changed(flag) {
				return fmt.Errorf("%s exists and says what runs: leave --%s out, or name another file with -f", u.file, flag)
			}
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s, err := support()
	if err != nil {
		return err
	}
	if _, err := images.FindOS(u.osName); err != nil {
		return err
	}
	kubernetes := u.kubernetes
	if kubernetes == "" {
		kubernetes = s.Kubernetes[0]
	}
	text, err := cluster.New(u.topology, "demo", u.osName, kubernetes)
	if err != nil {
		return err
	}
	if _, err := cluster.Parse([]byte(text), u.file, s); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s: topology %s, %s, Kubernetes %s\n", u.file, u.topology, u.osName, kubernetes)
	return atomicfile.Write(u.file, []byte(text), 0o644)
}

// start boots the machines: fresh ones, or those that were there when this computer
// went off.
func (l *localCluster) start(cmd *cobra.Command, u *upFlags) (fresh bool, err error) {
	program, err := os.Executable()
	if err != nil {
		return false, err
	}
	if _, err := l.Spec(); err == nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "the machines were not ended by kimage down: they boot from their disks again (kimage down discards them)\n")
		return false, l.Start(cmd.Context(), program, "supervise", l.Dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.discard(io.Discard))
		}
	}()
	spec, s, err := l.prepare(cmd, u.identity, u.image, nil)
	if err != nil {
		return false, err
	}
	defer s.Close()
	if err := l.Write(spec); err != nil {
		return false, err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "booting %d machines, %d MiB of memory\n", len(spec.Machines), spec.MemoryMiB())
	if err := l.Start(cmd.Context(), program, "supervise", l.Dir); err != nil {
		return false, err
	}
	st, err := l.Status(cmd.Context())
	if err != nil {
		return false, err
	}
	kubeconfig, err := s.KubeconfigAt(net.JoinHostPort("127.0.0.1", strconv.Itoa(st.APIPort)))
	if err != nil {
		return false, err
	}
	return true, atomicfile.Write(l.in("kubeconfig"), kubeconfig, 0o600)
}

// ready waits until all machines are, and shows the cluster.
func (l *localCluster) ready(cmd *cobra.Command, u *upFlags) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), u.timeout)
	defer cancel()
	if err := l.AwaitReady(ctx, cmd.ErrOrStderr()); err != nil {
		if cmd.Context().Err() == nil {
			l.tellConsoles(cmd.ErrOrStderr())
		}
		return err
	}
	if err := l.nodes(cmd.Context(), cmd.OutOrStdout()); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\nexport KUBECONFIG=%s\n", l.in("kubeconfig"))
	return nil
}

// tellConsoles shows what the machines that are not Ready last said.
func (l *localCluster) tellConsoles(w io.Writer) {
	const lines = 15
	spec, err := l.Spec()
	if err != nil {
		return
	}
	for _, m := range spec.Machines {
		if s := l.Screen(m.Name); s.Phase != local.PhaseReady {
			fmt.Fprintf(w, "\n%s: phase %q, %s; the end of its console (%s):\n%s\n", m.Name, s.Phase, s.Why, l.ConsoleFile(m.Name), l.ConsoleTail(m.Name, lines))
		}
	}
}

// discard ends the machines and removes all that up made but the cluster file and
// its secrets.
func (l *localCluster) discard(w io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.Remove(ctx); err != nil {
		return err
	}
	fmt.Fprintf(w, "ended the machines and removed %s\n", l.Dir)
	return nil
}
