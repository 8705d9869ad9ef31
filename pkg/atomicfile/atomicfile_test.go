package atomicfile

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestNothingUnderTheFinalNameBeforeCommit(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "a"), 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("half"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); err == nil {
		t.Error("the final name exists before Commit")
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	f.Abort() // as a deferred call does
	if fi, err := os.Stat(filepath.Join(dir, "a")); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", fi, err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "a"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	f.Abort()
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestMain: the test program is also the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ATOMICFILE_TEST_DIR"); dir != "" {
		if _, err := Create(filepath.Join(dir, "killed"), 0o644); err != nil {
			os.Exit(1)
		}
		if _, err := NewTempDir(filepath.Join(dir, "scratch")); err != nil {
			os.Exit(1)
		}
		os.WriteFile(filepath.Join(dir, "ready"), nil, 0o644)
		time.Sleep(time.Minute)
	}
	os.Exit(m.Run())
}

func TestSweepAfterKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ATOMICFILE_TEST_DIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	count := func() (n int) {
		a, _ := filepath.Glob(filepath.Join(dir, ".killed*"))
		b, _ := filepath.Glob(filepath.Join(dir, "scratch", "*"))
		return len(a) + len(b)
	}
	// A living process's work is left alone.
	Sweep(dir)
	mine, err := NewTempDir(filepath.Join(dir, "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	mine.Remove()
	if n := count(); n != 2 {
		t.Errorf("%d of the living process's two things are left", n)
	}
	cmd.Process.Kill()
	cmd.Wait()
	Sweep(dir)
	if mine, err = NewTempDir(filepath.Join(dir, "scratch")); err != nil {
		t.Fatal(err)
	}
	mine.Remove()
	if n := count(); n != 0 {
		t.Errorf("%d things of the killed process are left", n)
	}
}
