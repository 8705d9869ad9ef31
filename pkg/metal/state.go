package metal

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// What is remembered of a machine, and survives a restart.
type record struct {
	MAC    string    `json:"mac"`
	UUID   string    `json:"uuid,omitempty"`
	Serial string    `json:"serial,omitempty"`
	State  string    `json:"state"` // "": nothing was written; writing, installed
	Image  string    `json:"image,omitempty"`
	Since  time.Time `json:"since"`
	Window string    `json:"window,omitempty"` // the release that was used up last

	released bool // there is one that was not used
}

// States of a record.
const (
	writing   = "writing"
	installed = "installed"
)

const (
	recordsFile = "installed.json"
	releasesDir = "released"
)

// load reads what is remembered.
func load(dir string) (map[string]record, error) {
	records := map[string]record{}
	data, err := os.ReadFile(filepath.Join(dir, recordsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return records, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &records); err != nil {
		return nil, fmt.Errorf("reading %s: %w: put it back from a backup, or move it away: then machines are known by what is on their disks", filepath.Join(dir, recordsFile), err)
	}
	return records, nil
}

func save(dir string, records map[string]record) error {
	data, err := json.MarshalIndent(records, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, recordsFile), append(data, '\n'), 0o644)
}

// releaseFile is where a machine's release lies. Names of pools' machines have a slash.
func releaseFile(dir, name string) string {
	return filepath.Join(dir, releasesDir, fmt.Sprintf("%x", name))
}

// Release lets the machine called name be written over, once. The server need not run.
func Release(dir, name string) error {
	if err := os.MkdirAll(filepath.Join(dir, releasesDir), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(releaseFile(dir, name), []byte(rand.Text()), 0o644)
}

// Pending are the machines whose disk is being written, or will be.
func Pending(dir string) (map[string]bool, error) {
	records, err := load(dir)
	if err != nil {
		return nil, err
	}
	pending := map[string]bool{}
	for name, r := range records {
		pending[name] = r.State == writing
	}
	all, err := filepath.Glob(filepath.Join(dir, releasesDir, "*"))
	for _, file := range all {
		if name, err := hex.DecodeString(filepath.Base(file)); err == nil {
			if w, err := window(dir, string(name)); err == nil && w != records[string(name)].Window {
				pending[string(name)] = true
			}
		}
	}
	return pending, err
}

// window is the release that lies there; "": there is none.
func window(dir, name string) (string, error) {
	data, err := os.ReadFile(releaseFile(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}
