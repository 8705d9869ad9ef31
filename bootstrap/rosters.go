package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/kimage-project/kimage/bootstrap/balancer"
	"github.com/kimage-project/kimage/bootstrap/etcd"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// rosters finds the highest roster on this machine, and takes in a higher one.
type rosters struct {
	cluster nodeconf.Cluster
	files   []string // in which one may be; the last one is kept by this machine
	logf    func(string, ...any)
	// offer hands a higher one to who keeps the last file, and its order of
	// writes; nil: nobody, it is written here.
	offer func(nodeconf.SignedRoster)
	// mayWrite says why the disk must not be written; nil: it may be.
	mayWrite func() error

	mu   sync.Mutex // of take
	said string     // of take, the last failure: one that repeats is said once

	cache struct {
		sync.Mutex
		of   string // what the files looked like
		best report.SignedAndOpen
	}
}

func newRosters(c nodeconf.Cluster, logf func(string, ...any)) *rosters {
	return &rosters{cluster: c, logf: logf, files: []string{nodeconf.RosterFile, filepath.Join(balancer.StateDir, balancer.RosterFile)},
		mayWrite: func() error { return errors.New("it is not kept: this machine's disk is not known to be its own") }}
}

// open lets a higher roster be kept, now that the disk is known to be this
// machine's: by the agent of an etcd member, or else here.
func (r *rosters) open(keeper *etcd.Agent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if keeper != nil {
		r.offer = keeper.Offer
	}
	r.mayWrite = func() error { _, err := findData(); return err }
}

// highest is the zero value where no roster can be read. Signatures are
// verified again when a file has changed.
func (r *rosters) highest() report.SignedAndOpen {
	r.cache.Lock()
	defer r.cache.Unlock()
	of := ""
	for _, file := range r.files {
		if fi, err := os.Stat(file); err == nil {
			of += fmt.Sprint(file, fi.Size(), fi.ModTime().UnixNano(), fi.Sys().(*syscall.Stat_t).Ino, " ")
		}
	}
	if of != r.cache.of {
		r.cache.of, r.cache.best = of, r.read()
	}
	return r.cache.best
}

func (r *rosters) read() (best report.SignedAndOpen) {
	for _, file := range r.files {
		signed, err := readRoster(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var open nodeconf.Roster
		if err == nil {
			open, err = signed.Open(r.cluster.RosterKey, r.cluster.UID)
		}
		newer := err == nil
		if newer && best.Serial > 0 {
			newer, err = open.Newer(best.Roster)
		}
		if err != nil {
			r.logf("%s: %v", file, err)
		}
		if newer {
			best = report.SignedAndOpen{Signed: signed, Roster: open}
		}
	}
	return best
}

// take keeps a roster that another machine sent, if the operator signed it and
// it is higher than what this machine has.
func (r *rosters) take(signed nodeconf.SignedRoster, from string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := r.highest()
	if own.Serial > 0 && own.Signed.Digest() == signed.Digest() {
		return
	}
	open, err := signed.Open(r.cluster.RosterKey, r.cluster.UID)
	newer := err == nil
	if newer && own.Serial > 0 {
		newer, err = open.Newer(own.Roster)
	}
	if err == nil && newer {
		if r.offer != nil {
			r.offer(signed)
			return
		}
		err = r.write(signed)
	}
	failure := ""
	switch {
	case err != nil:
		if failure = fmt.Sprintf("the roster that %s has: %v", from, err); failure != r.said {
			r.logf("%s", failure)
		}
	case newer:
		r.logf("took a newer roster from %s: generation %d, serial %d", from, open.Generation, open.Serial)
	}
	r.said = failure
}

func (r *rosters) write(signed nodeconf.SignedRoster) error {
	if err := r.mayWrite(); err != nil {
		return err
	}
	data, err := json.Marshal(signed)
	if err != nil {
		return err
	}
	file := r.files[len(r.files)-1]
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(file, append(data, '\n'), 0o600)
}

func readRoster(file string) (s nodeconf.SignedRoster, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("reading %s: %w", file, err)
	}
	return s, nil
}
