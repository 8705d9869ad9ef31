package etcd

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/run"
)

// spin explores the model completely, or to a depth of most steps, and returns
// what it says.
func spin(t *testing.T, file, most string, macros ...string) string {
	t.Helper()
	for _, program := range []string{"spin", "gcc"} {
		need.Program(t, program, "spin gcc")
	}
	model, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for _, argv := range [][]string{
		append(append([]string{"spin", "-a"}, macros...), model),
		{"gcc", "-O2", "-w", "-DSAFETY", "-DNOREDUCE", "-DMEMLIM=2000", "-o", "pan", "pan.c"},
	} {
		if err := run.Run(ctx, run.Cmd{Argv: argv, Dir: dir}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := run.Output(ctx, run.Cmd{Argv: []string{filepath.Join(dir, "pan"), "-m" + most}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

var (
	spinErrors = regexp.MustCompile(`errors: (\d+)`)
	spinStates = regexp.MustCompile(`(\d+) states, stored`)
)

func number(t *testing.T, re *regexp.Regexp, out string) string {
	t.Helper()
	found := re.FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("no %v in what Spin says:\n%s", re, out)
	}
	return found[1]
}

// TestModel has Spin look at every state of the models.
func TestModel(t *testing.T) {
	if testing.Short() {
		need.Missing(t, "the patience for a minute or more (-short)")
	}
	for _, c := range []struct {
		file   string
		macros []string
	}{{"founding.pml", []string{"-DLOSSES=2"}}, {"repair.pml", []string{"-DLOSSES=2"}}, {"repair.pml", []string{"-DLOSSES=2", "-DALONE"}}} {
		out := spin(t, c.file, "1000000", c.macros...)
		t.Logf("%s %v: %s states, none of them unsafe or stuck", c.file, c.macros, number(t, spinStates, out))
		if number(t, spinErrors, out) != "0" || regexp.MustCompile(`max search depth too small|Search not completed`).MatchString(out) {
			t.Error(out)
		}
	}
}

// TestModelMutations breaks one rule of a model at a time.
func TestModelMutations(t *testing.T) {
	if testing.Short() {
		need.Missing(t, "the patience for a minute or more (-short)")
	}
	for _, macro := range []string{"MAJORITY", "KEEP", "UNSYNCED", "CACHED", "AGAIN", "FIXED", "NEW", "FIRST", "ALONE"} {
		t.Run(macro, func(t *testing.T) {
			most := "1000000"
			if macro == "CACHED" {
				most = "200" // the split is not deep, and there are many more states
			}
			found(t, spin(t, "founding.pml", most, "-DLOSSES=1", "-D"+macro))
		})
	}
	for _, macros := range [][]string{{"-DNOPROOF", "-DALONE"}, {"-DJOINER", "-DALONE"}, {"-DLATE"}, {"-DANYID"}, {"-DKEPT"}} {
		t.Run("repair"+strings.Join(macros, ""), func(t *testing.T) {
			found(t, spin(t, "repair.pml", "1000000", append(macros, "-DLOSSES=2")...))
		})
	}
}

// found logs what Spin found, which must be something.
func found(t *testing.T, out string) {
	t.Helper()
	if number(t, spinErrors, out) == "0" {
		t.Errorf("Spin finds nothing:\n%s", out)
	}
	t.Logf("found after %s states: %s", number(t, spinStates, out), regexp.MustCompile(`assertion violated.{0,40}`).FindString(out))
}
