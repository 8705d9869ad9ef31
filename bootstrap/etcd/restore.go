package etcd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/kimage-project/kimage/pkg/run"
)

// revisionBump is how far a seed's revision is raised: further than the lost
// cluster can have gone on after the snapshot, so that no client sees a
// revision twice.
const revisionBump = "1000000000"

// buckets are those of an etcd database without content.
const buckets = "key meta lease alarm cluster members members_removed auth authUsers authRoles"

// restore makes the data directory of a record beside its name, and returns
// what it is called. etcd's own tool writes it, offline: an etcd that makes its
// own data as a new cluster and is killed in its first moments can be left with
// a log that never elects again.
func (a *Agent) restore(ctx context.Context, rec Record) (string, error) {
	all := filepath.Join(a.cfg.State, dataDir)
	if err := sweep(all); err != nil {
		return "", err
	}
	name := rec.incarnation(a.cfg.Name) + "." + strings.ToLower(rand.Text()[:8]) + partial
	dir := filepath.Join(all, name)
	seed := filepath.Join(all, "seed."+strings.ToLower(rand.Text()[:8])+partial)
	defer os.Remove(seed)
	if rec.Seed == "" {
		if err := writeEmptySeed(seed); err != nil {
			return "", err
		}
	} else {
		seed = filepath.Join(a.cfg.State, rec.Seed+".db")
		if err := checkSeed(seed, rec.Seed); err != nil {
			return "", err
		}
	}
	if err := run.Run(ctx, run.Cmd{Argv: append([]string{a.cfg.Etcdutl}, restoreArgs(rec, a.cfg.Name, seed, dir)...)}); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	if err := whole(dir); err != nil {
		return "", fmt.Errorf("BUG: etcdutl ended well: %w", err)
	}
	return name, syncTree(dir)
}

// restoreArgs are etcdutl's arguments.
func restoreArgs(rec Record, name, seed, dir string) []string {
	argv := []string{"snapshot", "restore", seed,
		"--data-dir", dir,
		"--name", name,
		"--initial-cluster", rec.InitialCluster(),
		"--initial-advertise-peer-urls", rec.peerURL(name),
		"--initial-cluster-token", rec.Token(),
	}
	if rec.Seed == "" {
		return append(argv, "--skip-hash-check") // it has none, and nothing in it
	}
	return append(argv, "--bump-revision", revisionBump, "--mark-compacted")
}

// sweep removes what killed runs left half made.
func sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "*"+partial))
	if err != nil {
		return err
	}
	for _, p := range left {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	return nil
}

// writeEmptySeed writes an etcd database without content: the same bytes on
// every machine.
func writeEmptySeed(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, PageSize: 4096})
	if err != nil {
		return fmt.Errorf("making an empty database: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range strings.Fields(buckets) {
			if _, err := tx.CreateBucket([]byte(b)); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, db.Close())
}

// checkSeed compares a snapshot with the digest in the roster.
func checkSeed(path, digest string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the snapshot that the cluster starts from is not here yet: copy it to %s", path)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("%s is not the snapshot of the roster but has sha256 %s: copy the right one there", path, got)
	}
	return nil
}
