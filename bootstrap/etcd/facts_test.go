package etcd

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

func mounted() error { return nil }

// putData makes what looks like etcd's data.
func putData(t *testing.T, state, name string) {
	t.Helper()
	for _, f := range []string{"member/wal/0.wal", "member/snap/db"} {
		p := filepath.Join(state, dataDir, name, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLoad: nothing there is one finding, and everything that is not understood another.
func TestLoad(t *testing.T) {
	incarnation := func(t *testing.T, dir string) {
		d := &stateDisk{dir: dir, mounted: mounted}
		if _, err := d.load(); err != nil {
			t.Fatal(err)
		}
		if err := d.save(incarnationFile, Incarnation{ID: "i1", Started: true}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name    string
		mounted func() error
		put     func(t *testing.T, dir string)
		data    bool
		lost    bool
		unknown string // in the error; empty: none
	}{
		{name: "empty disk"},
		{name: "not mounted", mounted: func() error { return errors.New("KIMAGE is not mounted") }, unknown: "not mounted"},
		{name: "data", put: func(t *testing.T, dir string) { incarnation(t, dir); putData(t, dir, "i1") }, data: true},
		{name: "data is gone", put: incarnation, lost: true},
		{name: "data without an incarnation", put: func(t *testing.T, dir string) { putData(t, dir, "i1") }, unknown: "knows nothing"},
		{name: "data of another incarnation", put: func(t *testing.T, dir string) { incarnation(t, dir); putData(t, dir, "i2") }, unknown: "knows nothing"},
		{name: "data that was set aside, and half made", put: func(t *testing.T, dir string) {
			incarnation(t, dir)
			putData(t, dir, "aside-i0")
			putData(t, dir, "i1.abc.partial")
		}, lost: true},
		{name: "emptied data", put: func(t *testing.T, dir string) {
			incarnation(t, dir)
			if err := os.MkdirAll(filepath.Join(dir, dataDir, "i1", "member"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, unknown: "remove the directory too"},
		{name: "half a fact", put: func(t *testing.T, dir string) {
			incarnation(t, dir)
			if err := os.WriteFile(filepath.Join(dir, factsDir, recordFile), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, unknown: "needs a person"},
		{name: "a fact that cannot be read", put: func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Join(dir, factsDir, incarnationFile), 0o700); err != nil {
				t.Fatal(err)
			}
		}, unknown: "is a directory"},
		{name: "a file where data is kept", put: func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, dataDir), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, unknown: "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.put != nil {
				c.put(t, dir)
			}
			if c.mounted == nil {
				c.mounted = mounted
			}
			before, _ := filepath.Glob(dir + "/*")
			f, err := (&stateDisk{dir: dir, mounted: c.mounted}).load()
			if (err != nil) != (c.unknown != "") || err != nil && !strings.Contains(err.Error(), c.unknown) {
				t.Errorf("got error %v, want %q", err, c.unknown)
			}
			if f.Data != c.data || f.lost() != c.lost {
				t.Errorf("got data %t, lost %t", f.Data, f.lost())
			}
			after, _ := filepath.Glob(dir + "/*")
			if c.unknown == "not mounted" && len(before) != len(after) {
				t.Errorf("wrote %v", after)
			}
		})
	}
}

// TestToldIsDurable has strace watch a member that is proposed a record: file
// and directory are synced, in this order, before the answer.
func TestToldIsDurable(t *testing.T) {
	if dir := os.Getenv("KIMAGE_TEST_TOLD"); dir != "" {
		s := newSim(t, 1, 1)
		m := newAgent(Config{Name: "a", Cluster: s.cluster, Roster: s.rosters[0]}, &stateDisk{dir: dir, mounted: mounted}).member
		for _, step := range []func(State) error{
			func(s0 State) error { return m.takeRoster(s0, s.rosters[0]) },
			m.renew,
		} {
			if err := step(m.observe()); err != nil {
				t.Fatal(err)
			}
		}
		rec := compose(s.roster(), s.rosters[0].Digest(), map[string]string{"a": m.status().Incarnation})
		st, err := m.accept(rec)
		if err != nil || st.Record == nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("TOLD\n")
		return
	}
	need.Program(t, "strace", "strace")
	dir := t.TempDir()
	log := filepath.Join(t.TempDir(), "strace")
	cmd := exec.Command("strace", "-f", "-y", "-s", "8", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,write", "-o", log, os.Args[0], "-test.run=^TestToldIsDurable$")
	cmd.Env = append(os.Environ(), "KIMAGE_TEST_TOLD="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	for _, want := range []string{
		`fsync\(\d+<[^>]*/agent/\.record\.json[^>]*>\) += 0`,
		`rename(at2?)?\(.*/agent/record\.json"`,
		`fsync\(\d+<[^>]*/agent>\) += 0`,
		`write\(1<[^>]*>, "TOLD`,
	} {
		at := regexp.MustCompile(want).FindIndex(data[last:])
		if at == nil {
			t.Fatalf("not synced before it is told: no %s after\n%s", want, data[:last])
		}
		last += at[1]
	}
}
