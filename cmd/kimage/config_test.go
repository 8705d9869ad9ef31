package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// in runs kimage in a directory.
func in(t *testing.T, dir string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := command(args...)
	cmd.Dir = dir
	return finish(t, cmd)
}

// inOK runs a command that must succeed.
func inOK(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, errOut, status := in(t, dir, args...)
	if status != 0 {
		t.Fatalf("kimage %s: status %d: %s", strings.Join(args, " "), status, errOut)
	}
	return out
}

// newClusterDir is a directory with a cluster file.
func newClusterDir(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	text := inOK(t, dir, append([]string{"cluster", "new"}, args...)...)
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func replaceIn(t *testing.T, file, old, replacement string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(data), old, replacement, 1)
	if changed == string(data) {
		t.Fatalf("%s has no %q", file, old)
	}
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		fmt.Fprintf(&b, "%s %x\n", strings.TrimPrefix(p, dir), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestConfig: the way of a user, from nothing to configs and back.
func TestConfig(t *testing.T) {
	for _, test := range []struct{ topology, os, file string }{{"6", "coreos-stable", "config.ign"}, {"3", "debian-13", "user-data"}} {
		t.Run(test.os, func(t *testing.T) {
			dir := newClusterDir(t, "--topology", test.topology, "--os", test.os)
			if _, errOut, status := in(t, dir, "config", "--diff"); status != 2 || !strings.Contains(errOut, "no secrets yet") {
				t.Errorf("--diff before the first run: status %d, %s", status, errOut)
			}
			_, errOut, status := in(t, dir, "config", "-o", "config")
			if status != 0 || !strings.Contains(errOut, "back up cluster.secrets") {
				t.Fatalf("status %d: %s", status, errOut)
			}
			for _, p := range []string{"config/nodes/k8s-01/" + test.file, "config/pools", "config/kubeconfig", "cluster.secrets/ca.key", "cluster.state"} {
				if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
					t.Error(err)
				}
			}
			before := snapshot(t, dir)
			if err := os.RemoveAll(filepath.Join(dir, "config")); err != nil {
				t.Fatal(err)
			}
			inOK(t, dir, "config")
			if snapshot(t, dir) != before {
				t.Error("rm -rf config; kimage config gives other bytes")
			}
			if out, _, status := in(t, dir, "config", "--diff"); status != 0 || out != "" {
				t.Errorf("--diff: status %d, %q", status, out)
			}
			replaceIn(t, filepath.Join(dir, "cluster.yaml"), "  - name: k8s-02\n", "  - name: k8s-02\n    machine: {labels: {a: b}}\n")
			out, _, status := in(t, dir, "config", "--diff")
			if status != 1 || !strings.Contains(out, "nodes/k8s-02: changed, boot it anew") || strings.Contains(out, "k8s-03") {
				t.Errorf("--diff: status %d, %q", status, out)
			}
			var asJSON struct {
				APIVersion string
				Changes    struct{ Added, Removed, Changed []string }
			}
			out, _, status = in(t, dir, "config", "--diff", "--json")
			if err := json.Unmarshal([]byte(out), &asJSON); err != nil || status != 1 || asJSON.APIVersion == "" || fmt.Sprint(asJSON.Changes.Changed) != "[nodes/k8s-02]" {
				t.Errorf("--json: %v, status %d, %s", err, status, out)
			}
		})
	}
}

func TestConfigSeed(t *testing.T) {
	dir := newClusterDir(t, "--topology", "1", "--os", "debian-13")
	inOK(t, dir, "config", "--seed")
	seed := filepath.Join(dir, "config/nodes/k8s-01/seed.iso")
	first, err := os.ReadFile(seed)
	if err != nil {
		t.Fatal(err)
	}
	inOK(t, dir, "config", "--seed")
	if second, err := os.ReadFile(seed); err != nil || !bytes.Equal(first, second) {
		t.Errorf("two volumes differ, %v", err)
	}
	if out, err := exec.Command("blkid", "-p", "-o", "value", "-s", "LABEL", seed).Output(); err != nil || string(out) != "CIDATA\n" {
		t.Errorf("%s, %v", out, err)
	}
	other := newClusterDir(t, "--os", "flatcar-stable")
	if _, errOut, status := in(t, other, "config", "--seed"); status != 2 || !strings.Contains(errOut, "reads no NoCloud volume") {
		t.Errorf("status %d, %s", status, errOut)
	}
}

// TestConfigRefuses: one clear line each, exit 2, nothing half-written.
func TestConfigRefuses(t *testing.T) {
	commands := [][]string{{"config"}, {"config", "--diff"}, {"secrets", "show"}, {"secrets", "encrypt"}, {"secrets", "rotate", "join"}, {"secrets", "rotate", "etcd"}, {"secrets", "rotate", "kubeconfig"}}
	t.Run("state without secrets", func(t *testing.T) {
		dir := newClusterDir(t)
		inOK(t, dir, "config")
		if err := os.RemoveAll(filepath.Join(dir, "cluster.secrets")); err != nil {
			t.Fatal(err)
		}
		before := snapshot(t, dir)
		for _, args := range commands {
			if _, errOut, status := in(t, dir, args...); status != 2 || !strings.Contains(errOut, "put its secrets back from your backup") {
				t.Errorf("%v: status %d, %s", args, status, errOut)
			}
		}
		if snapshot(t, dir) != before {
			t.Error("something was written")
		}
	})
	t.Run("no cluster file", func(t *testing.T) {
		dir := t.TempDir()
		for _, args := range append(commands, []string{"cluster", "check"}, []string{"cluster", "show", "a"}, []string{"cluster", "ports"}) {
			if _, errOut, status := in(t, dir, args...); status != 2 || !strings.Contains(errOut, "kimage cluster new prints one") {
				t.Errorf("%v: status %d, %s", args, status, errOut)
			}
		}
	})
	t.Run("problems", func(t *testing.T) {
		dir := newClusterDir(t)
		replaceIn(t, filepath.Join(dir, "cluster.yaml"), "roles: [etcd, master, worker]", "roles: [etcd, control-plane]")
		replaceIn(t, filepath.Join(dir, "cluster.yaml"), "runtime: containerd", "runtime: rkt")
		_, errOut, status := in(t, dir, "cluster", "check")
		if status != 2 || strings.Count(errOut, "\n") != 3 || !strings.Contains(errOut, "did you mean master?") || !strings.Contains(errOut, "rkt was archived") {
			t.Errorf("status %d, %s", status, errOut)
		}
	})
	t.Run("output cannot be written", func(t *testing.T) {
		dir := newClusterDir(t)
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, errOut, status := in(t, dir, "config", "-o", "file/config"); status != 2 || strings.Count(errOut, "\n") > 2 {
			t.Errorf("status %d, %s", status, errOut)
		}
	})
	t.Run("too large for the platform", func(t *testing.T) {
		dir := newClusterDir(t, "--topology", "8")
		text := "  pools:\n"
		for i := range 400 {
			text += fmt.Sprintf("  - {name: pool-%d, roles: [worker]}\n", i)
		}
		f, err := os.OpenFile(filepath.Join(dir, "cluster.yaml"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		f.Close()
		_, errOut, status := in(t, dir, "config", "--for", "aws")
		if status != 2 || !regexp.MustCompile(`config of k8s-01: user-data has \d+ bytes, and aws takes 16384`).MatchString(errOut) {
			t.Errorf("status %d, %s", status, errOut)
		}
	})
}

func TestClusterCommands(t *testing.T) {
	dir := newClusterDir(t, "--topology", "6", "--os", "coreos-stable")
	if out := inOK(t, dir, "cluster", "check"); !strings.Contains(out, "6 machines and 0 pools, flatcar-stable, Kubernetes v1.37.2") {
		t.Error(out)
	}
	replaceIn(t, filepath.Join(dir, "cluster.yaml"), "  machine:\n", "  roles: {worker: {labels: {disk: ssd}}}\n  machine:\n    ntp: [time.example]\n")
	out := inOK(t, dir, "cluster", "show", "k8s-01")
	for _, want := range []string{"k8s-01, machine: master, worker, 172.17.8.101", "labels.disk", "cluster.yaml:16", "spec.roles.worker", "cluster.yaml:18", "[time.example]"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, errOut, status := in(t, dir, "cluster", "show", "k8s-1"); status != 2 || !strings.Contains(errOut, "did you mean k8s-01") {
		t.Errorf("status %d, %s", status, errOut)
	}
	if out := inOK(t, dir, "cluster", "ports"); !strings.Contains(out, "2380") || !strings.Contains(out, "8472") || strings.Contains(out, "SSH") {
		t.Error(out)
	}
}

// TestSchema: a foreign validator accepts every topology by the schema, and
// refuses what the schema can tell.
func TestSchema(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "schema.json"), []byte(inOK(t, dir, "cluster", "schema")), 0o644); err != nil {
		t.Fatal(err)
	}
	const judge = "import json,sys,yaml,jsonschema\ns=json.load(open('schema.json'))\njsonschema.Draft202012Validator.check_schema(s)\nv=jsonschema.Draft202012Validator(s)\n" +
		"errors=[e.message for e in v.iter_errors(yaml.safe_load(sys.stdin))]\nprint(errors)\nsys.exit(1 if errors else 0)\n"
	valid := func(text string) (bool, string) {
		cmd := exec.Command("/usr/bin/python3", "-c", judge)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		if _, ok := err.(*exec.ExitError); err != nil && !ok {
			t.Fatal(err)
		}
		return err == nil, string(out)
	}
	for _, shape := range []string{"1", "3", "6", "8"} {
		text := inOK(t, dir, "cluster", "new", "--topology", shape)
		if !strings.HasPrefix(text, "# yaml-language-server: $schema=") {
			t.Error("no line for editors")
		}
		if ok, out := valid(text); !ok {
			t.Errorf("topology %s: %s", shape, out)
		}
		for old, bad := range map[string]string{"kind: Cluster": "kind: Klaster", "  os: ": "  oss: ", "plugin: flannel": "plugin: weave", "nodes: [172": "nodes: {a: b}\n    x: [172", "name: demo": "nam: demo"} {
			if ok, _ := valid(strings.Replace(text, old, bad, 1)); ok {
				t.Errorf("topology %s with %q is accepted", shape, bad)
			}
		}
	}
}

// TestExamples: every example that README and the help texts show is run.
func TestExamples(t *testing.T) {
	f := fixtures(t)
	var lines []string
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		lines = append(lines, strings.Split(c.Example, "\n")...)
		lines = append(lines, strings.Split(c.Long, "\n")...)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
	readme, err := os.Open("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	defer readme.Close()
	for sc := bufio.NewScanner(readme); sc.Scan(); {
		lines = append(lines, sc.Text())
	}
	dir := newClusterDir(t, "--topology", "3", "--os", "debian-13")
	inOK(t, dir, "config")
	cache, older := t.TempDir(), t.TempDir()
	if err := writeMirror(older, "1.36", "amd64"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(f.base, filepath.Join(dir, "debian-13-generic-amd64.qcow2")); err != nil {
		t.Fatal(err)
	}
	// What other examples are about.
	if err := os.MkdirAll(filepath.Join(dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	inOK(t, dir, append([]string{"build", "--os", "debian-13"}, here(f, nil, older, cache)...)...)
	var ran []string
	for _, line := range lines {
		text, ok := strings.CutPrefix(line, "  ")
		text = strings.TrimSpace(text)
		if !ok || !strings.HasPrefix(text, "kimage ") || slices.Contains(ran, text) {
			continue
		}
		ran = append(ran, text)
		// What follows two spaces explains; a redirection is the shell's.
		text, _, _ = strings.Cut(text, "  ")
		text, to, redirected := strings.Cut(text, " > ")
		args := strings.Fields(text)[1:]
		if slices.Contains([]string{"up", "down", "status", "ssh", "console", "logs", "kubeconfig", "replace", "serve", "gce"}, args[0]) || slices.Contains(args, "fetch") {
			// Machines are booted elsewhere, and no vendor is here: that such a line is
			// understood is enough.
			if err := understood(args); err != nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if args[0] == "build" || args[0] == "lock" {
			args = here(f, args, older, cache)
		}
		out, errOut, status := in(t, dir, args...)
		if status != 0 && !(status == 1 && (args[0] == "doctor" || args[0] == "diff" || slices.Contains(args, "--diff"))) {
			t.Errorf("%s: status %d: %s", text, status, errOut)
		}
		if redirected && to != "cluster.yaml" {
			if err := os.WriteFile(filepath.Join(dir, to), []byte(out), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(ran) < 15 {
		t.Errorf("only %d examples were found: %q", len(ran), ran)
	}
}

// understood says whether a command line is one, without running it.
func understood(args []string) error {
	cmd, rest, err := newRoot().Find(args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// here makes the example of a build one that works here: from the small base
// and the small mirrors. Everything else it says stays.
func here(f fixture, args []string, older, cache string) []string {
	mirror := f.mirror
	if slices.Contains(args, "1.36") {
		mirror = older
	}
	for i, a := range args {
		switch a {
		case "/srv/mirror":
			args[i] = mirror
		case "--offline":
			args[i] = "--quiet" // a mirror's files are read, and the fixture's base is not in the cache
		}
	}
	if !slices.Contains(args, "--components") {
		args = append(args, "--components", mirror)
	}
	if base := f.base; !slices.Contains(args, "--base") {
		if slices.Contains(args, "coreos-stable") {
			base = f.flatcar
		}
		args = append(args, "--base", base)
	}
	if args = append(args, "--cache", cache); len(args) == 0 || args[0] != "lock" {
		args = append(args, "--agent", f.agent)
	}
	return args
}
