package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/local"
)

// TestPruneByLink: an image that machines boot from stays, by whatever path they know it.
func TestPruneByLink(t *testing.T) {
	top := t.TempDir()
	dir, link := filepath.Join(top, "real"), filepath.Join(top, "link")
	images := filepath.Join(dir, "cluster.local/images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"used.raw", "unused.raw"} {
		write(t, images, name, name)
	}
	l, err := localOf(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	now := local.Spec{Machines: []local.Machine{{Name: "a", Image: filepath.Join(link, "cluster.local/images/used.raw")}}}
	lost := local.Spec{Machines: []local.Machine{{Name: "a", Image: filepath.Join(top, "gone.raw")}}}
	for _, c := range []struct {
		now  local.Spec
		want string
	}{{lost, "[unused.raw used.raw]"}, {now, "[used.raw]"}} {
		if err := l.prune(c.now); err != nil {
			t.Fatal(err)
		}
		if got := listing(t, images); got != c.want {
			t.Errorf("left are %s, not %s", got, c.want)
		}
	}
}

// TestUndo: what one kimage made it takes back, unless another works on it, or has made
// it anew.
func TestUndo(t *testing.T) {
	l, err := localOf(filepath.Join(t.TempDir(), "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	claim := func() *os.File {
		t.Helper()
		f, err := l.claim()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	made := claim()
	if err := letGo(made); err != nil {
		t.Fatal(err)
	}
	other := claim()
	if err := l.undo(io.Discard, made); !errors.Is(err, errClaimed) {
		t.Errorf("while another works on it: %v", err)
	}
	if err := l.discard(io.Discard); err != nil {
		t.Fatal(err)
	}
	other.Close()
	again := claim()
	if err := letGo(again); err != nil {
		t.Fatal(err)
	}
	if err := l.undo(io.Discard, made); !errors.Is(err, errRemoved) {
		t.Errorf("after another made it anew: %v", err)
	}
	if _, err := os.Stat(l.in(claimFile)); err != nil {
		t.Error(err)
	}
	if err := l.undo(io.Discard, again); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its own: %v", err)
	}
}

// TestLocalLines: all machines are listed that run, and all that the cluster file names.
func TestLocalLines(t *testing.T) {
	dir := newClusterDir(t, "--topology", "3", "--os", "debian-13")
	l, err := localOf(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write(local.Spec{Machines: []local.Machine{{Name: "k8s-02"}, {Name: "k8s-09"}}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []map[string]string{
		{"k8s-02": "off: kimage up", "k8s-09": "off: kimage up", "k8s-01": "not made: kimage up", "k8s-03": "not made: kimage up"},
		{"k8s-02": "off: kimage up", "k8s-09": "off: kimage up"}, // the file is wrong by now
	} {
		lines, err := l.lines(t.Context())
		if err != nil || len(lines) != len(want) {
			t.Errorf("%v, %+v", err, lines)
		}
		for _, line := range lines {
			if line.ready() || want[line.Name] == "" || !strings.Contains(line.Why, want[line.Name]) {
				t.Errorf("%+v", line)
			}
		}
		write(t, dir, "cluster.yaml", "nonsense")
	}
}

// TestLocalLine: a master's word counts, also of a machine of a pool, which has given
// itself another name; but not one from before it was switched on.
func TestLocalLine(t *testing.T) {
	l, err := localOf(filepath.Join(t.TempDir(), "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	crowd := local.Machine{Name: "crowd-1", Pool: "crowd", UUID: "0fc63daf-8483-4772-8e79-3d69d8477de4"}
	name, err := kube.PoolNameOf("crowd", crowd.UUID, "", "")
	if err != nil {
		t.Fatal(err)
	}
	since := time.Date(2026, 11, 26, 11, 7, 6, 0, time.UTC)
	later := since.Add(time.Minute)
	heard := map[string]report.Machine{}
	for _, node := range []string{"k8s-01", name} {
		heard[node] = report.Machine{Name: node, Heard: &later, Report: &report.Report{Phase: "ready"}}
	}
	for _, c := range []struct {
		name  string
		m     local.Machine
		since time.Time
		want  string
	}{
		{"a node", local.Machine{Name: "k8s-01"}, since, "ready"},
		{"a pool's", crowd, since, "ready"},
		{"switched on since", crowd, later.Add(time.Minute), ""},
	} {
		got := l.line(c.m, local.MachineStatus{On: true, Since: c.since}, heard, "k8s-01")
		if got.Phase != c.want || got.Name != c.m.Name {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestRunOn: of machines that nobody runs it is not said that they run.
func TestRunOn(t *testing.T) {
	for err, want := range map[error]string{
		local.ErrNotRunning:     "the machines are not running; kimage up boots them from their disks again, kimage down discards them",
		errors.New("not Ready"): "not Ready; the machines run on: kimage status, kimage down",
	} {
		if got := runOn(err).Error(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

// TestStays: what an interrupted up says is there, is there.
func TestStays(t *testing.T) {
	dir := t.TempDir()
	u := upFlags{file: filepath.Join(dir, "cluster.yaml")}
	is := func(want string) {
		t.Helper()
		if got := u.stays(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	is("nothing is left behind")
	write(t, dir, "cluster.yaml", "")
	write(t, dir, "kimage.lock", "")
	is(u.file + ", " + filepath.Join(dir, "kimage.lock") + " stay: kimage up goes on with them")
	l, err := localOf(u.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Write(local.Spec{}); err != nil {
		t.Fatal(err)
	}
	is("the machines that were there are as they were: kimage status, kimage down")
}
