package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// Facts is all that a member knows durably.
type Facts struct {
	Incarnation Incarnation
	Record      *Record                // the record that is held; nil: none
	Roster      *nodeconf.SignedRoster // the highest one that was verified; nil: none
	Cluster     Cluster
	Heard       map[string]Count // of the other machines, by name
	Data        bool             // a data directory of the incarnation's name is there, and whole
}

// Incarnation is one life of a member's data.
type Incarnation struct {
	ID         string `json:"id"` // random; empty: none yet. The name of the data directory.
	ClusterUID string `json:"clusterUID"`
	Node       string `json:"node"`
	Started    bool   `json:"started"` // etcd was started on its data: if the data is gone, it is lost
	Counter    uint64 `json:"counter"` // only ever counts up, to tell an older copy of the disk
	// Random, one for each of the last counts, the newest last: what is counted
	// after an older copy was put back are other counts, also where they are as high.
	Tags []string `json:"tags,omitempty"`
}

// keptTags is how many counts an agent can make unheard, and another still tells
// them from those of an older copy.
const keptTags = 64

// counted is the incarnation after one more count.
func (i Incarnation) counted(tag string) Incarnation {
	i.Counter++
	i.Tags = append(slices.Clone(i.Tags[max(0, len(i.Tags)-keptTags+1):]), tag[:min(len(tag), 8)])
	return i
}

// tag is that of a count; empty: it is not known any more, or not yet.
func (i Incarnation) tag(counter uint64) string {
	if back := i.Counter - counter; counter <= i.Counter && back < uint64(len(i.Tags)) {
		return i.Tags[len(i.Tags)-1-int(back)]
	}
	return ""
}

// Cluster says what the data belongs to. It is written before the data has its
// name, and counts only together with the data of its incarnation.
type Cluster struct {
	ID          string `json:"id"` // etcd's cluster ID, in hexadecimal
	Generation  int    `json:"generation"`
	Incarnation string `json:"incarnation"`

	Member  string `json:"member"`            // etcd's ID of this member, in hexadecimal
	Added   int64  `json:"added,omitempty"`   // the store's revision when it was added; 0: it founded
	Joining string `json:"joining,omitempty"` // the members to join, NAME=URL,...; empty: its data was seen to be whole
	Left    bool   `json:"left,omitempty"`    // its data was set aside: the cluster went on without it
}

// left says that a cluster of this generation has existed without this machine,
// so that none may be founded, whoever answers.
func (s State) left() bool {
	return s.Facts.Cluster.Left && s.Facts.Cluster.Generation == s.Roster.Generation
}

// lost says that the incarnation's data was used and is gone.
func (f Facts) lost() bool { return f.Incarnation.Started && !f.Data && !f.joining() }

// joining says that etcd makes the incarnation's data by itself, from the members
// that it joins. Until the agent has seen it whole nobody counts on it.
func (f Facts) joining() bool {
	return f.Cluster.Joining != "" && f.Cluster.Incarnation == f.Incarnation.ID
}

// held is the record that is held for this incarnation; nil: none. One that was
// held before the incarnation joined a cluster is none of that cluster's.
func (f Facts) held(name string) *Record {
	joined := f.Cluster.Added > 0 && f.Cluster.Incarnation == f.Incarnation.ID
	if f.Record == nil || joined || !f.Record.names(name, f.Incarnation.ID) {
		return nil
	}
	return f.Record
}

// Names of the facts' files, and of what lies beside them on the data partition.
const (
	incarnationFile = "incarnation.json"
	recordFile      = "record.json"
	rosterFile      = "roster.json"
	clusterFile     = "cluster.json"
	heardFile       = "heard.json"

	factsDir  = "agent"    // below the state directory
	dataDir   = "etcd"     // below the state directory: one directory for each incarnation's data
	partial   = ".partial" // ends the name of data that is being made
	asideHead = "aside-"   // begins the name of data that is kept and never started
)

// disk keeps the facts. What save and move did is durable when they return; an
// error of load means "unknown", never "nothing there".
type disk interface {
	load() (Facts, error)
	save(file string, content any) error
	move(from, to string) error // a data directory
}

// stateDisk is the state directory on KIMAGE.
type stateDisk struct {
	dir      string
	mounted  func() error
	prepared bool
}

// prepare makes the directories, once. A process that was killed between a
// rename and its fsync leaves what can be read and is not yet durable: nothing
// is told before it is.
func (d *stateDisk) prepare() error {
	if d.prepared {
		return nil
	}
	for _, sub := range []string{factsDir, dataDir} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o700); err != nil {
			return err
		}
	}
	for _, p := range []string{filepath.Join(factsDir, incarnationFile), filepath.Join(factsDir, recordFile), filepath.Join(factsDir, rosterFile),
		filepath.Join(factsDir, clusterFile), filepath.Join(factsDir, heardFile), factsDir, dataDir, ".", ".."} {
		if err := syncPath(filepath.Join(d.dir, p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	atomicfile.Sweep(filepath.Join(d.dir, factsDir))
	d.prepared = true
	return nil
}

func (d *stateDisk) load() (Facts, error) {
	var f Facts
	if err := d.mounted(); err != nil {
		return Facts{}, err
	}
	if err := d.prepare(); err != nil {
		return Facts{}, err
	}
	f.Record, f.Roster = new(Record), new(nodeconf.SignedRoster)
	for _, r := range []struct {
		file    string
		to      any
		nothing func()
	}{
		{incarnationFile, &f.Incarnation, func() {}},
		{recordFile, f.Record, func() { f.Record = nil }},
		{rosterFile, f.Roster, func() { f.Roster = nil }},
		{clusterFile, &f.Cluster, func() {}},
		{heardFile, &f.Heard, func() {}},
	} {
		data, err := os.ReadFile(filepath.Join(d.dir, factsDir, r.file))
		if errors.Is(err, fs.ErrNotExist) {
			r.nothing()
			continue
		}
		if err != nil {
			return Facts{}, err
		}
		if err := json.Unmarshal(data, r.to); err != nil {
			return Facts{}, fmt.Errorf("reading %s: %w: the disk needs a person; imaging the machine again is one way out", filepath.Join(d.dir, factsDir, r.file), err)
		}
	}
	var err error
	if f.Data, err = d.data(f.Incarnation.ID, f.joining()); err != nil {
		return Facts{}, err
	}
	return f, nil
}

// data says whether the incarnation's data is there. All that it does not know
// is an error; data that etcd is making is not there yet.
func (d *stateDisk) data(incarnation string, joining bool) (bool, error) {
	all := filepath.Join(d.dir, dataDir)
	entries, err := os.ReadDir(all)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	found := false
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasSuffix(name, partial), strings.HasPrefix(name, asideHead):
		case name != incarnation:
			return false, fmt.Errorf("%s is data of which this agent knows nothing: move it away or, if it is etcd's, keep it and ask for help", filepath.Join(all, name))
		default:
			err := whole(filepath.Join(all, name))
			if err != nil && !joining {
				return false, err
			}
			found = err == nil
		}
	}
	return found, nil
}

// whole looks for what etcd needs. Without a log etcd would start as a member
// that never was, under the ID of this one.
func whole(dir string) error {
	wal, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err == nil && len(wal) == 0 {
		err = fs.ErrNotExist
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "member", "snap", "db"))
	}
	if err != nil {
		return fmt.Errorf("%s is there and is not etcd's data (%w): if its content was removed, remove the directory too, and the member counts as one that lost its data", dir, err)
	}
	return nil
}

func (d *stateDisk) save(file string, content any) error {
	if err := d.mounted(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("BUG: encoding %s: %w", file, err)
	}
	return atomicfile.Write(filepath.Join(d.dir, factsDir, file), append(data, '\n'), 0o600)
}

func (d *stateDisk) move(from, to string) error {
	if err := d.mounted(); err != nil {
		return err
	}
	all := filepath.Join(d.dir, dataDir)
	if err := os.Rename(filepath.Join(all, from), filepath.Join(all, to)); err != nil {
		return err
	}
	return atomicfile.SyncDir(all)
}

// syncPath makes a file's content, or a directory's names, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// syncTree makes a directory and all below it durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(path)
	})
}
