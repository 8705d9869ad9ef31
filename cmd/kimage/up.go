package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	keep, paced                  bool
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

The machines run until kimage down, also when the terminal is closed. Given
again, kimage up boots those that were added to the cluster file, and from their
disks those that went off: one by itself, or all with this computer. Interrupted
before they are Ready, it removes the machines that it made and all that is theirs,
unless --keep is given; the cluster file and the cluster's secrets stay.`,
		Example: `  kimage up                              one machine
  kimage up --topology 3 -f three.yaml
  export KUBECONFIG=cluster.local/kubeconfig; kubectl get nodes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := u.run(cmd)
			if _, ok := errors.AsType[*remains](err); err != nil && !ok && cmd.Context().Err() != nil {
				return &remains{err, u.stays()}
			}
			return err
		},
	}
	clusterFlag(cmd, &u.file)
	identityFlag(cmd, &u.identity)
	f := cmd.Flags()
	f.StringVar(&u.topology, "topology", "1", "of a new cluster file: "+strings.Join(cluster.Topologies, ", ")+" (kimage cluster new --help)")
	f.StringVar(&u.osName, "os", "debian-13", "of a new cluster file: operating system (kimage list os)")
	f.StringVar(&u.kubernetes, "kubernetes", "", "of a new cluster file: Kubernetes version (default: newest)")
	f.StringVar(&u.image, "image", "", "raw or qcow2 image to boot (default: baked)")
	f.BoolVar(&u.keep, "keep", false, "keep the machines also when they do not become Ready")
	f.BoolVar(&u.paced, "paced", false, "of a new cluster whose machines are emulated: their time passes as fast as they get on, so that no deadline passes because this computer is slow or busy (always so where they have more processors than it)")
	f.DurationVar(&u.timeout, "timeout", time.Hour, "how long to wait until they are Ready")
	return cmd
}

func (u *upFlags) run(cmd *cobra.Command) error {
	if err := notVagrants(u.file); err != nil {
		return err
	}
	if err := u.clusterFile(cmd); err != nil {
		return err
	}
	f, err := readCluster(cmd, u.file)
	if err != nil {
		return err
	}
	l, err := localOf(u.file)
	if err != nil {
		return err
	}
	made, err := l.start(cmd, f, u)
	if err != nil {
		return err
	}
	if made != nil {
		defer made.Close()
	}
	stay := made == nil || u.keep
	if err := l.await(cmd, u.timeout, stay); err != nil {
		if stay {
			return runOn(err)
		}
		if left := l.undo(cmd.ErrOrStderr(), made); left != nil {
			return &remains{err, left.Error()}
		}
		return err
	}
	l.show(cmd)
	fmt.Fprintf(cmd.OutOrStdout(), "\nexport KUBECONFIG=%s\n", l.in("kubeconfig"))
	return nil
}

// remains is the error of a command that leaves something behind.
type remains struct {
	err  error
	what string
}

func (r *remains) Error() string { return r.err.Error() + "; " + r.what }
func (r *remains) Unwrap() error { return r.err }

// runOn is the error of a command that waited for machines which it leaves as they are.
func runOn(err error) error {
	if errors.Is(err, local.ErrNotRunning) {
		return &remains{err, "kimage up boots them from their disks again, kimage down discards them"}
	}
	return &remains{err, "the machines run on: kimage status, kimage down"}
}

// stays says what is there when the machines are removed: the cluster file and what makes
// the next machines the same cluster's.
func (u *upFlags) stays() string {
	if l, err := localOf(u.file); err == nil && l.exists() {
		return "the machines that were there are as they were: kimage status, kimage down"
	}
	stem := (&cluster.File{Path: u.file}).Stem()
	var there []string
	for _, file := range []string{u.file, stem + ".secrets", stem + ".state", filepath.Join(filepath.Dir(u.file), images.LockFile)} {
		if _, err := os.Stat(file); err == nil {
			there = append(there, file)
		}
	}
	if len(there) == 0 {
		return "nothing is left behind"
	}
	return strings.Join(there, ", ") + " stay: kimage up goes on with them"
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
	dir := filepath.Dir(u.file)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s cannot be written, there is no directory %s: make it, or name another file with -f", u.file, dir)
	}
	o := cluster.Outline{Topology: u.topology, Name: "demo", OS: u.osName, Kubernetes: u.kubernetes}
	text, err := newClusterFile(&o)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(u.file, []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s: topology %s, %s, Kubernetes %s\n", u.file, o.Topology, o.OS, o.Kubernetes)
	return nil
}

// start boots the machines, unless they run: fresh ones, or those that were there when
// this computer went off. made is the claim file, let go, if it made them: who takes them
// back claims by it.
func (l *localCluster) start(cmd *cobra.Command, f *cluster.File, u *upFlags) (made *os.File, err error) {
	claim, err := l.claim()
	if err != nil {
		return nil, err
	}
	defer func() {
		if made == nil {
			claim.Close()
		}
	}()
	if on, err := l.Running(); err != nil {
		return nil, err
	} else if on {
		fmt.Fprintln(cmd.ErrOrStderr(), "the machines are there already")
		return nil, l.follow(cmd, f, u)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if was, err := l.Spec(); err == nil {
		if err := was.Fits(l.Dir, 0); err != nil {
			return nil, err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "the machines were not ended by kimage down: they boot from their disks again (kimage down discards them)")
		if err := l.keepAPIPort(cmd.ErrOrStderr(), was); err != nil {
			return nil, err
		}
		if err := l.Start(cmd.Context(), program, "supervise", l.Dir); err != nil {
			return nil, err
		}
		return nil, l.follow(cmd, f, u)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.discard(io.Discard))
		}
	}()
	spec, s, err := l.prepare(cmd, f, u.identity, u.image, nil, u.paced)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if spec.APIPort, err = freePort(); err != nil {
		return nil, err
	}
	kubeconfig, err := s.KubeconfigAt(net.JoinHostPort("127.0.0.1", strconv.Itoa(spec.APIPort)))
	if err != nil {
		return nil, err
	}
	// Before machines.json, by which the machines are there.
	if err := atomicfile.Write(l.in("kubeconfig"), kubeconfig, 0o600); err != nil {
		return nil, err
	}
	if err := l.Write(spec); err != nil {
		return nil, err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "booting %d machines, %d MiB of memory\n", len(spec.Machines), spec.MemoryMiB())
	if err := l.Start(cmd.Context(), program, "supervise", l.Dir); err != nil {
		return nil, err
	}
	return claim, letGo(claim)
}

// switchOn boots the machines that went off by themselves from their disks again.
func (l *localCluster) switchOn(cmd *cobra.Command, now local.Spec) error {
	st, err := l.Status(cmd.Context())
	if err != nil {
		return err
	}
	off := local.Spec{}
	for _, m := range st.Machines {
		if x := now.Machine(m.Name); x != nil && !m.On {
			off.Machines = append(off.Machines, *x)
		}
	}
	if len(off.Machines) == 0 {
		return nil
	}
	if err := off.Fits(l.Dir, 0); err != nil {
		return err
	}
	for _, m := range off.Machines {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s was off: it boots from its disk again\n", m.Name)
		if err := l.SwitchOn(cmd.Context(), m.Name); err != nil {
			return err
		}
	}
	return nil
}

// follow boots the machines that are off, and those that the cluster file names by now
// and that do not run yet.
func (l *localCluster) follow(cmd *cobra.Command, f *cluster.File, u *upFlags) error {
	now, err := l.Spec()
	if err != nil {
		return err
	}
	if err := l.switchOn(cmd, now); err != nil {
		return err
	}
	plan, err := local.Plan(f, now.Accel)
	if err != nil {
		return err
	}
	for _, m := range now.Machines {
		if plan.Machine(m.Name) == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is no longer in %s, and runs until kimage down %s\n", m.Name, u.file, m.Name)
		}
	}
	added := slices.DeleteFunc(plan.Names(), func(name string) bool { return now.Machine(name) != nil })
	if len(added) == 0 {
		return nil
	}
	spec, s, err := l.prepare(cmd, f, u.identity, u.image, &now, false)
	if err != nil {
		return err
	}
	defer s.Close()
	more := local.Spec{}
	for _, name := range added {
		m := *spec.Machine(name)
		if m.Pool != "" { // the plan does not know who runs already
			if m.Address, err = now.FreeAddress(plan); err != nil {
				return err
			}
		}
		for _, x := range now.Machines {
			if x.Address == m.Address || x.MAC == m.MAC {
				return fmt.Errorf("%s is to have the address %s and the card %s, of which %s has one: give it others, or first kimage down %s", name, m.Address, m.MAC, x.Name, x.Name)
			}
		}
		more.Machines = append(more.Machines, m)
		now.Machines = append(now.Machines, m)
	}
	if err := more.Fits(l.Dir, 0); err != nil {
		return err
	}
	now.Machines = now.Machines[:len(now.Machines)-len(added)]
	for _, m := range more.Machines {
		fmt.Fprintf(cmd.ErrOrStderr(), "booting %s, which %s names by now\n", m.Name, u.file)
		before := now
		now.Machines = append(now.Machines[:len(now.Machines):len(now.Machines)], m)
		if err := l.Write(now); err != nil {
			return err
		}
		if err := l.Boot(cmd.Context(), m.Name); err != nil {
			// Else the next kimage up would think that it runs.
			return errors.Join(err, l.Write(before))
		}
	}
	return nil
}

// keepAPIPort has the API at the port that it was at, or at another if somebody else took
// that one meanwhile.
func (l *localCluster) keepAPIPort(w io.Writer, spec local.Spec) error {
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(spec.APIPort)))
	if err == nil {
		return ln.Close()
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	before := spec.APIPort
	if spec.APIPort, err = freePort(); err != nil {
		return err
	}
	kubeconfig, err := os.ReadFile(l.in("kubeconfig"))
	if err != nil {
		return err
	}
	kubeconfig = localServer.ReplaceAll(kubeconfig, fmt.Appendf(nil, "https://127.0.0.1:%d", spec.APIPort))
	if err := atomicfile.Write(l.in("kubeconfig"), kubeconfig, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(w, "port %d is somebody else's by now: the Kubernetes API is at 127.0.0.1:%d, as %s says; copies of it do not\n", before, spec.APIPort, l.in("kubeconfig"))
	return l.Write(spec)
}

// localServer is the API's address in the kubeconfig.
var localServer = regexp.MustCompile(`https://127\.0\.0\.1:[0-9]+`)

// freePort is one of this computer's that nobody listens on.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// await waits until all machines are Ready; of those that are not it tells why. What
// will not stay is told at greater length, for it is all that will be known.
func (l *localCluster) await(cmd *cobra.Command, timeout time.Duration, stay bool) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	err := l.AwaitReady(ctx, cmd.ErrOrStderr())
	if err != nil && cmd.Context().Err() == nil {
		l.tellConsoles(cmd.Context(), cmd.ErrOrStderr(), stay)
		if !stay {
			fmt.Fprintln(cmd.ErrOrStderr(), "\n--keep keeps machines that do not become Ready, to look into them")
		}
		if spec, err := l.Spec(); err == nil && spec.Accel != "kvm" && !spec.Pacing() {
			fmt.Fprintln(cmd.ErrOrStderr(), "a computer that is slow or busy needs new machines by kimage up --paced")
		}
	}
	return err
}

// show shows the cluster's Nodes. An API server that is slow to list them undoes
// nothing.
func (l *localCluster) show(cmd *cobra.Command) {
	const patience, pause = 3 * time.Minute, 2 * time.Second
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		err := l.nodes(cmd.Context(), cmd.OutOrStdout())
		if err == nil {
			return
		}
		if cmd.Context().Err() != nil || time.Now().After(end) {
			fmt.Fprintf(cmd.ErrOrStderr(), "all machines are Ready; %v\n", err)
			return
		}
	}
}

// tellConsoles shows what the machines that are not Ready last said, and of those that
// went off what qemu did; if all did, what their supervisor did.
func (l *localCluster) tellConsoles(ctx context.Context, w io.Writer, stay bool) {
	lines := 40
	if stay {
		lines = 15
	}
	spec, err := l.Spec()
	if err != nil {
		return
	}
	on := map[string]bool{}
	switch st, err := l.Status(ctx); {
	case errors.Is(err, local.ErrNotRunning):
		fmt.Fprintf(w, "\nthe machines' supervisor has ended; it said: %s\n", lastOf(l.SupervisorLog(), lines))
	case err != nil:
		fmt.Fprintf(w, "\n%v\n", err)
		return
	default:
		for _, m := range st.Machines {
			on[m.Name] = m.On
		}
	}
	for _, m := range spec.Machines {
		console, at := l.ConsoleTail(m.Name, lines), ""
		if stay {
			at = " (" + l.ConsoleFile(m.Name) + ")"
		}
		switch s := l.Screen(m.Name); {
		case !on[m.Name]:
			fmt.Fprintf(w, "\n%s is off; qemu said: %s\nThe end of its console%s:\n%s\n", m.Name, lastOf(l.QEMULog(m.Name), lines), at, console)
		case s.Phase != local.PhaseReady:
			fmt.Fprintf(w, "\n%s: phase %q, %s; the end of its console%s:\n%s\n", m.Name, s.Phase, s.Why, at, console)
		}
	}
}

// lastOf is the last lines of a log.
func lastOf(file string, lines int) string {
	data, _ := os.ReadFile(file)
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "nothing"
	}
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// undo discards what start made, and nothing that others made or work on by now.
func (l *localCluster) undo(w io.Writer, made *os.File) error {
	if err := l.hold(made); err != nil {
		return fmt.Errorf("%w; what is there stays: kimage status, kimage down", err)
	}
	return l.discard(w)
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
