package ignition

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/seed"
)

// SeedFile is the NoCloud volume beside the files that it holds.
const SeedFile = "seed.iso"

// Kubeconfig is the operator's, in the output directory.
const Kubeconfig = "kubeconfig"

// RosterFile is the signed roster in the output directory: every machine's config
// has it, and a running machine can be given it.
const RosterFile = "roster.json"

// index is the output's own description; a directory without one is not ours.
const indexFile = "machines.json"

type index struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"` // ConfigIndex
	ClusterUID string            `json:"clusterUID"`
	Machines   map[string]string `json:"machines"` // directory to digest of what first boot reads
}

// Changes compares an output directory with what would be written now.
type Changes struct {
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	Changed []string `json:"changed"` // must be booted anew
	First   bool     `json:"-"`       // there was no output to compare with
}

// Any says whether a machine must be booted anew, or came, or went.
func (c Changes) Any() bool { return len(c.Added)+len(c.Removed)+len(c.Changed) > 0 }

// Compare says which machines' configs differ from those in dir.
func (g *Generator) Compare(dir string, machines []Machine) (Changes, error) {
	old, err := readIndex(dir)
	if err != nil {
		return Changes{}, err
	}
	c := Changes{Added: []string{}, Removed: []string{}, Changed: []string{}, First: old == nil}
	if old == nil {
		return c, nil
	}
	if old.ClusterUID != g.state.UID {
		return c, fmt.Errorf("%s holds the configs of another cluster (%s): choose another directory with -o, or remove it", dir, old.ClusterUID)
	}
	for _, m := range machines {
		switch digest, ok := old.Machines[m.Dir]; {
		case !ok:
			c.Added = append(c.Added, m.Dir)
		case digest != m.Boot:
			c.Changed = append(c.Changed, m.Dir)
		}
		delete(old.Machines, m.Dir)
	}
	c.Removed = append(c.Removed, slices.Sorted(maps.Keys(old.Machines))...)
	return c, nil
}

// readIndex returns nil for a directory that is empty or not there.
func readIndex(dir string) (*index, error) {
	data, err := os.ReadFile(filepath.Join(dir, indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) > 0 {
			return nil, fmt.Errorf("%s holds something that kimage config did not write: choose another directory with -o", dir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var i index
	if err := json.Unmarshal(data, &i); err != nil || i.Kind != "ConfigIndex" {
		return nil, fmt.Errorf("%s is not what kimage config wrote: remove %s, which can be made again", filepath.Join(dir, indexFile), dir)
	}
	return &i, nil
}

// Write puts everything into dir, which appears, or is replaced, as a whole.
func (g *Generator) Write(ctx context.Context, dir string, machines []Machine, seeds bool) error {
	if _, err := readIndex(dir); err != nil {
		return err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("output directory: %w", err)
	}
	// Beside the final name: same file system. Leavings of a killed run go first.
	staging := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".staging")
	tmp, err := atomicfile.NewTempDir(staging)
	if err != nil {
		return fmt.Errorf("output directory: %w", err)
	}
	defer os.Remove(staging) // if it is empty
	defer tmp.Remove()
	if err := g.fill(ctx, tmp.Path, machines, seeds); err != nil {
		return err
	}
	if err := syncFS(tmp.Path); err != nil {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp.Path, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(tmp.Path, dir)
	}
	if err != nil {
		return fmt.Errorf("naming %s: %w", dir, err)
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

func (g *Generator) fill(ctx context.Context, dir string, machines []Machine, seeds bool) error {
	i := index{APIVersion: cluster.APIVersion, Kind: "ConfigIndex", ClusterUID: g.state.UID, Machines: map[string]string{}}
	kubeconfig, err := g.state.Kubeconfig()
	if err != nil {
		return err
	}
	for _, kind := range []string{"nodes", "pools"} {
		if err := os.Mkdir(filepath.Join(dir, kind), 0o700); err != nil {
			return err
		}
	}
	for name, data := range map[string][]byte{".gitignore": []byte("# Secrets, and made again by kimage config.\n*\n"), Kubeconfig: kubeconfig, RosterFile: g.roster} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	for _, m := range machines {
		at := filepath.Join(dir, filepath.FromSlash(m.Dir))
		if err := os.MkdirAll(at, 0o700); err != nil {
			return err
		}
		for name, data := range m.Files {
			if err := os.WriteFile(filepath.Join(at, name), data, 0o600); err != nil {
				return err
			}
		}
		if seeds {
			if err := seed.Write(ctx, filepath.Join(at, SeedFile), m.Files); err != nil {
				return err
			}
		}
		i.Machines[m.Dir] = m.Boot
	}
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, indexFile), append(data, '\n'), 0o600)
}

// syncFS makes a whole new directory durable at once: one call instead of one
// per file.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
