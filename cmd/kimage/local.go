package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/ignition"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/nearest"
	"github.com/kimage-project/kimage/pkg/progress"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// localCluster are the machines of a cluster file on this computer. All of it but the
// secrets lies in one directory beside the file:
//
//	NAME.local/machines.json ...   see package local
//	NAME.local/images/             what the machines boot
//	NAME.local/config/             what they are told at first boot
//	NAME.local/key                 by which kimage logs in
//	NAME.local/kubeconfig          the operator's, for this computer
//	NAME.local/claim               locked by who makes, changes or removes it
type localCluster struct {
	local.Set
	path string // of the cluster file, which need not be right any more
}

func localOf(path string) (*localCluster, error) {
	dir, err := filepath.Abs((&cluster.File{Path: path}).Stem() + ".local")
	return &localCluster{local.Set{Dir: dir}, path}, err
}

// exists says whether kimage up made machines.
func (l *localCluster) exists() bool {
	_, err := l.Spec()
	return !errors.Is(err, fs.ErrNotExist)
}

// notVagrants is an error where Vagrant has the machines of a cluster file: others of the
// same names and secrets would be taken for them.
func notVagrants(path string) error {
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), vagrantFile)); err == nil {
		return fmt.Errorf("the machines of %s are Vagrant's: vagrant up, vagrant ssh NODE, vagrant destroy", path)
	}
	return nil
}

// openLocal is the cluster of -f, which has local machines.
func openLocal(path string) (*localCluster, error) {
	if err := notVagrants(path); err != nil {
		return nil, err
	}
	l, err := localOf(path)
	if err != nil {
		return nil, err
	}
	if _, err := l.Spec(); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no machines on this computer: kimage up -f %s", path, path)
	} else if err != nil {
		return nil, err
	}
	return l, nil
}

const claimFile = "claim"

var (
	errClaimed = errors.New("another kimage works on it")
	errRemoved = errors.New("another kimage has removed it")
)

// claim keeps others from making, changing or removing the machines until the file is
// closed.
func (l *localCluster) claim() (*os.File, error) {
	if entries, err := os.ReadDir(l.Dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(l.in(claimFile)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s was not made by kimage up: move it away, or give the cluster file another name", l.Dir)
		}
	}
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(l.in(claimFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = l.hold(f)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, errRemoved) { // just now
		return l.claim()
	}
	return nil, err
}

// hold claims by a claim file that is open. It is the machines' own only if it is still
// where it was: who held it before may have removed all, and another made all anew.
func (l *localCluster) hold(f *os.File) error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w: wait until it has ended", l.Dir, errClaimed)
	}
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(l.in(claimFile)); err != nil || !os.SameFile(mine, now) {
		return fmt.Errorf("%s: %w", l.Dir, errRemoved)
	}
	return nil
}

// letGo lets others claim, and keeps the file open.
func letGo(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

// machine is a local machine that is on.
func (l *localCluster) machine(ctx context.Context, name string) (local.MachineStatus, error) {
	st, err := l.Status(ctx)
	if errors.Is(err, local.ErrNotRunning) {
		return local.MachineStatus{}, fmt.Errorf("%w: kimage up -f %s", err, l.path)
	}
	if err != nil {
		return local.MachineStatus{}, err
	}
	var names []string
	for _, m := range st.Machines {
		if m.Name == name {
			if !m.On {
				return m, fmt.Errorf("%s is off: kimage up -f %s boots it from its disk again", name, l.path)
			}
			return m, nil
		}
		names = append(names, m.Name)
	}
	return local.MachineStatus{}, nearest.Unknown("machine", name, names)
}

// forMachine has a command act on a machine that is on, which its first argument
// names; the others are passed on.
func forMachine(cmd *cobra.Command, act func(*cobra.Command, *localCluster, local.MachineStatus, []string) error) *cobra.Command {
	var file string
	clusterFlag(cmd, &file)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		l, err := openLocal(file)
		if err != nil {
			return err
		}
		m, err := l.machine(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return act(cmd, l, m, args[1:])
	}
	return cmd
}

func (l *localCluster) in(name ...string) string {
	return filepath.Join(append([]string{l.Dir}, name...)...)
}

// key is by which kimage logs in, made at the first use.
func (l *localCluster) key() (qemu.Key, error) {
	data, err := os.ReadFile(l.in("key"))
	if err == nil {
		return qemu.ParseKey(data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return qemu.Key{}, err
	}
	key, err := qemu.NewKey()
	if err != nil {
		return key, err
	}
	return key, atomicfile.Write(l.in("key"), key.PEM, 0o600)
}

// needs are the programs that local machines take.
func (l *localCluster) needs(f *cluster.File) error {
	groups := [][]doctor.Need{doctor.Run}
	if f.OS.FirstBoot == "cloud-init" {
		groups = append(groups, doctor.Seed)
	}
	return doctor.Check(groups...)
}

// bake makes the image of the cluster file, and returns its path. An image has its
// own name: machines that were made from another one go on with theirs.
func (l *localCluster) bake(ctx context.Context, f *cluster.File, platform, format string) (string, error) {
	c := l.baked(f, platform, format)
	result, err := bake(ctx, c, "")
	if err != nil {
		return "", err
	}
	made := result.Artifacts[0].Path
	image := l.in("images", result.ImageID+strings.TrimPrefix(filepath.Base(made), c.Name))
	if _, err := os.Stat(image); err == nil {
		return image, os.Remove(made)
	}
	return image, os.Rename(made, image)
}

// baked is what the cluster file wants an image of.
func (l *localCluster) baked(f *cluster.File, platform, format string) images.Config {
	spec := f.Cluster.Spec
	return images.Config{OS: f.OS.Name, Kubernetes: spec.Kubernetes, Runtime: spec.Runtime, Network: spec.Network.Plugin, Arch: "amd64", For: platform, Formats: []string{format},
		Base: "auto", Mirror: os.Getenv("KIMAGE_MIRROR"), Lock: filepath.Join(filepath.Dir(l.path), images.LockFile), Components: "auto", Images: "all", Name: "new", Output: l.in("images"), Report: progress.New(os.Stderr, images.Stages)}
}

// prune removes the baked images that no machine boots from any more. A file is told by
// itself, not by its path: who started the machines may have come here by a link. While
// a machine's is not found, nobody can say that it is none of these.
func (l *localCluster) prune(now local.Spec) error {
	var used []fs.FileInfo
	for _, m := range now.Machines {
		fi, err := os.Stat(m.Image)
		if err != nil {
			return nil
		}
		used = append(used, fi)
	}
	all, err := filepath.Glob(l.in("images", "*.raw"))
	if err != nil {
		return err
	}
	for _, image := range all {
		fi, err := os.Stat(image)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(used, func(u fs.FileInfo) bool { return os.SameFile(u, fi) }) {
			if err := os.Remove(image); err != nil {
				return err
			}
		}
	}
	return nil
}

// configure writes what the machines are told, and names it in the spec. The file's
// machines let kimage's own key in besides those that the file names. made says what is
// to be known of secrets that are new.
func (l *localCluster) configure(cmd *cobra.Command, f *cluster.File, identity string, spec *local.Spec, made func(*state.Store, *cluster.File) string) (*state.Store, error) {
	key, err := l.key()
	if err != nil {
		return nil, err
	}
	for _, targets := range [][]cluster.Target{f.Nodes, f.Pools} {
		for i := range targets {
			ssh := &targets[i].Machine.SSH
			ssh.AuthorizedKeys = append(ssh.AuthorizedKeys[:len(ssh.AuthorizedKeys):len(ssh.AuthorizedKeys)], key.Public)
		}
	}
	if spec.Accel == "tcg" {
		unhurried(&f.Cluster.Spec, spec.Pacing())
	}
	s, err := state.Open(openState(cmd, f, identity))
	if err != nil {
		return nil, err
	}
	fresh := s.Fresh()
	if err := l.writeConfig(cmd.Context(), f, s); err != nil {
		s.Close()
		return nil, err
	}
	if fresh {
		fmt.Fprintln(cmd.ErrOrStderr(), made(s, f))
	}
	for i := range spec.Machines {
		m := &spec.Machines[i]
		dir := l.in("config", "nodes", m.Name)
		if m.Pool != "" {
			dir = l.in("config", "pools", m.Pool)
		}
		if f.OS.FirstBoot == "cloud-init" {
			m.Seed = filepath.Join(dir, ignition.SeedFile)
		} else {
			m.FwCfg = map[string]string{}
			for _, key := range ignitionKeys {
				m.FwCfg[key] = filepath.Join(dir, ignition.ConfigFile)
			}
		}
	}
	return s, nil
}

// ignitionKeys are where Ignition looks for its config in QEMU's firmware configuration:
// Fedora CoreOS' and Flatcar's.
var ignitionKeys = []string{"opt/com.coreos/config", "opt/org.flatcar-linux/config"}

// unhurried lets the control plane of emulated machines be slow, where the file does
// not say how fast it is to be: by its own times it gives up being the leader, ends
// itself, and all that its start costs is due again. If the machines are paced, whose
// processors are one thread here, nothing is gained by running on several: a
// Go program that may use one looks for work on others less often, and a master that is
// Ready takes a sixth less.
func unhurried(spec *cluster.Spec, paced bool) {
	set := func(o *cluster.Object, key string, value any) {
		if *o == nil {
			*o = cluster.Object{}
		}
		if _, is := (*o)[key]; !is {
			(*o)[key] = value
		}
	}
	var args []any
	for _, x := range [][2]string{{"leader-elect-lease-duration", "120s"}, {"leader-elect-renew-deadline", "100s"}, {"leader-elect-retry-period", "15s"}} {
		args = append(args, map[string]any{"name": x[0], "value": x[1]})
	}
	components := map[string]map[string]any{"controllerManager": {"extraArgs": args}, "scheduler": {"extraArgs": args}, "apiServer": {}}
	for component, fields := range components {
		if paced {
			fields["extraEnvs"] = []any{map[string]any{"name": "GOMAXPROCS", "value": "1"}}
		}
		if len(fields) > 0 {
			set(&spec.Kubeadm, component, fields)
		}
	}
	set(&spec.Kubelet, "nodeLeaseDurationSeconds", 120)
	set(&spec.Kubelet, "nodeStatusUpdateFrequency", "20s")
}

func (l *localCluster) writeConfig(ctx context.Context, f *cluster.File, s *state.Store) error {
	if err := s.Ensure(); err != nil {
		return err
	}
	g, err := generator(f, s, "qemu")
	if err != nil {
		return err
	}
	machines, err := g.All()
	if err != nil {
		return err
	}
	if err := s.Save(); err != nil {
		return err
	}
	return g.Write(ctx, l.in("config"), machines, f.OS.FirstBoot == "cloud-init")
}

// accelerator is kvm where guests run with it.
func accelerator(cmd *cobra.Command) (string, error) {
	err := qemu.KVM(cmd.Context())
	switch {
	case err == nil:
		return "kvm", nil
	case cmd.Context().Err() != nil:
		return "", err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "KVM cannot be used (%v): the machines' processors are emulated, ten times as slow\n", err)
	return "tcg", nil
}

// prepare makes everything that machines boot from. image names a baked image; empty:
// it is baked. now are the machines that run; nil: there are none yet, and paced is what
// they will be.
func (l *localCluster) prepare(cmd *cobra.Command, f *cluster.File, identity, image string, now *local.Spec, paced bool) (spec local.Spec, s *state.Store, err error) {
	if err := l.needs(f); err != nil {
		return spec, nil, err
	}
	accel := ""
	if now != nil {
		accel, paced = now.Accel, now.Paced
	} else if accel, err = accelerator(cmd); err != nil {
		return spec, nil, err
	}
	if spec, err = local.Plan(f, accel); err != nil {
		return spec, nil, err
	}
	o, err := images.FindOS(f.OS.Name)
	if err != nil {
		return spec, nil, err
	}
	spec.User, spec.Paced = o.User, paced
	switch {
	case now != nil:
	case spec.Crowded():
		fmt.Fprintf(cmd.ErrOrStderr(), "%d emulated machines share %d processors: their time passes more slowly than here, and it takes at least %d minutes until they are Ready\n", len(spec.Machines), runtime.NumCPU(), 5*len(spec.Machines))
	case spec.Pacing():
		fmt.Fprintln(cmd.ErrOrStderr(), "the machines' time passes as fast as they get on, more slowly than here")
	}
	const imageMiB = 1024
	if now == nil {
		err = spec.Fits(l.Dir, imageMiB)
	}
	if err != nil {
		return spec, nil, err
	}
	if image == "" {
		if image, err = l.bake(cmd.Context(), f, "qemu", "raw"); err != nil {
			return spec, nil, err
		}
	} else if image, err = filepath.Abs(image); err != nil {
		return spec, nil, err
	} else if _, err := os.Stat(image); err != nil {
		return spec, nil, err
	}
	for i := range spec.Machines {
		spec.Machines[i].Image, spec.Machines[i].Format = image, "raw"
		if strings.HasSuffix(image, ".qcow2") {
			spec.Machines[i].Format = "qcow2"
		}
	}
	s, err = l.configure(cmd, f, identity, &spec, madeSecrets)
	return spec, s, err
}
