package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/metal"
	"github.com/kimage-project/kimage/pkg/nearest"
)

// serveDir is what kimage serve keeps of the cluster of -f. A cluster that has machines on
// this computer is not that of its machines elsewhere.
func serveDir(file string) (dir string, served bool, err error) {
	if dir, err = filepath.Abs((&cluster.File{Path: file}).Stem() + ".serve"); err != nil {
		return "", false, err
	}
	l, err := localOf(file)
	if err != nil || l.exists() {
		return dir, false, err
	}
	_, missing := os.Stat(dir)
	return dir, missing == nil, nil
}

// releaseMachine lets kimage serve install a machine once more.
func releaseMachine(cmd *cobra.Command, u *upFlags, dir, name string, yes bool) error {
	for _, flag := range []string{"image", "timeout"} {
		if cmd.Flags().Changed(flag) {
			return fmt.Errorf("--%s is for machines of kimage up: kimage serve writes the image that it was started with", flag)
		}
	}
	f, err := readCluster(cmd, u.file)
	if err != nil {
		return err
	}
	var names []string
	at := -1
	for i, t := range f.Nodes {
		if names = append(names, t.Name); t.Name == name {
			at = i
		}
	}
	if at < 0 && !ofPool(f, name) {
		return nearest.Unknown("machine", name, names)
	}
	if at >= 0 && f.Nodes[at].Has(cluster.RoleEtcd) && !yes {
		if err := survives(cmd, u, f, dir, name); err != nil {
			return fmt.Errorf("%s is not released: %w (--yes does it all the same)", name, err)
		}
	}
	if err := metal.Release(dir, name); errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: it belongs to whoever runs kimage serve", err)
	} else if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is released: it is installed once more when it next boots from the network\n", name)
	return nil
}

// ofPool says whether a name is that of a pool's machine: POOL/MAC.
func ofPool(f *cluster.File, name string) bool {
	pool, mac, _ := strings.Cut(name, "/")
	_, err := net.ParseMAC(mac)
	return err == nil && slices.ContainsFunc(f.Pools, func(t cluster.Target) bool { return t.Name == pool })
}

// survives says whether the etcd members are a quorum without one, by their agents' word.
func survives(cmd *cobra.Command, u *upFlags, f *cluster.File, dir, without string) error {
	members := 0
	for _, t := range f.Nodes {
		if t.Has(cluster.RoleEtcd) {
			members++
		}
	}
	if members == 1 {
		return fmt.Errorf("it is the only etcd member, and with its disk all that the cluster knows is lost")
	}
	r, err := openRemote(cmd, u.file, u.identity)
	if err != nil {
		return err
	}
	lines, err := r.lines(cmd.Context())
	if err != nil {
		return fmt.Errorf("nobody says whether etcd has a quorum without it: %w", err)
	}
	pending, err := metal.Pending(dir)
	if err != nil {
		return err
	}
	ready := 0
	for _, l := range lines {
		if l.Name != without && !pending[l.Name] && slices.Contains(l.Roles, cluster.RoleEtcd) && l.Phase == local.PhaseReady {
			ready++
		}
	}
	if quorum := members/2 + 1; ready < quorum {
		return fmt.Errorf("%d of the other etcd members are ready and not about to be installed again, and %d are a quorum (kimage status)", ready, quorum)
	}
	return nil
}
