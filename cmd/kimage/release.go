package main

import (
	"fmt"
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
	if known, err := metal.Known(dir, name); err != nil {
		return err
	} else if at < 0 && !(known && strings.Contains(name, "/")) { // machines of pools are POOL/MAC
		return nearest.Unknown("machine", name, names)
	}
	if at >= 0 && f.Nodes[at].Has(cluster.RoleEtcd) && !yes {
		if err := survives(cmd, u, f, name); err != nil {
			return fmt.Errorf("%s is not released: %w (--yes does it all the same)", name, err)
		}
	}
	if err := metal.Release(dir, name); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is released: it is installed once more when it next boots from the network\n", name)
	return nil
}

// survives says whether the etcd members are a quorum without one, by their agents' word.
func survives(cmd *cobra.Command, u *upFlags, f *cluster.File, without string) error {
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
	ready := 0
	for _, l := range lines {
		if l.Name != without && slices.Contains(l.Roles, cluster.RoleEtcd) && l.Phase == local.PhaseReady {
			ready++
		}
	}
	if quorum := members/2 + 1; ready < quorum {
		return fmt.Errorf("%d of the other etcd members are ready, and %d are a quorum (kimage status)", ready, quorum)
	}
	return nil
}
