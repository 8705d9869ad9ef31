package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// vagrantDir is a directory with this repository's Vagrantfile.
func vagrantDir(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../Vagrantfile")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "Vagrantfile", string(data))
	return dir
}

// TestVagrantfile: the edit that people know from elsewhere sets the operating system,
// and what comes out is still right by Ruby's and Vagrant's own word.
func TestVagrantfile(t *testing.T) {
	vagrant := need.Program(t, "vagrant", "vagrant")
	need.Program(t, "ruby", "ruby")
	dir := vagrantDir(t)
	before, err := os.ReadFile(filepath.Join(dir, "Vagrantfile"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(regexp.MustCompile(`(?m)\$os =.*`).FindAll(before, -1)); n != 1 {
		t.Errorf("%d lines match the edit", n)
	}
	run := func(env []string, argv ...string) string {
		t.Helper()
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), append(env, "VAGRANT_HOME="+filepath.Join(dir, "home"), "VAGRANT_DEFAULT_PROVIDER=libvirt", "VAGRANT_CHECKPOINT_DISABLE=1")...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
		}
		return string(out)
	}
	run(nil, "sed", "-i", `s/\$os =.*/\$os = \"coreos-stable\"/g`, "Vagrantfile")
	run(nil, "ruby", "-c", "Vagrantfile")
	run(nil, vagrant, "validate")
	after, err := os.ReadFile(filepath.Join(dir, "Vagrantfile"))
	if err != nil || strings.Count(string(after), `$os = "coreos-stable"`) != 1 {
		t.Errorf("after the edit: %v", err)
	}
	// Settings: those of the file, over them config.rb's, over them the environment's.
	write(t, dir, "config.rb", "$topology = \"3\"\n$num_instances = 4\n")
	for _, c := range []struct {
		env  []string
		last string
	}{{nil, "k8s-07"}, {[]string{"KIMAGE_NUM_INSTANCES=1"}, "k8s-04"}, {[]string{"KIMAGE_TOPOLOGY=6", "KIMAGE_NUM_INSTANCES=0"}, "k8s-06"}} {
		names := regexp.MustCompile(`(?m)^k8s-\d+`).FindAllString(run(c.env, vagrant, "status"), -1)
		if len(names) == 0 || names[0] != "k8s-01" || names[len(names)-1] != c.last {
			t.Errorf("%v: machines %v", c.env, names)
		}
	}
}

// TestVagrantSettings: what the Vagrantfile may pass on wrongly is named.
func TestVagrantSettings(t *testing.T) {
	for _, c := range []struct{ flag, value, want string }{
		{"--os", "coreos-stabel", "did you mean coreos-stable"},
		{"--topology", "5", `unknown topology "5"`},
		{"--subnet", "192.168", `give the first three numbers`},
		{"--subnet", "10.96.1", "overlaps with"},
		{"--workers", "-1", "give 0 or more"},
		{"--workers", "300", "has no room for 301 machines"},
		{"--kubernetes", "1.12", "1.12"},
		{"--network", "flanel", "choose flannel or none"},
		{"--provider", "vmware", "choose libvirt or virtualbox"},
	} {
		dir := t.TempDir()
		_, words, status := in(t, dir, "vagrant", "--dir", filepath.Join(dir, ".vagrant/kimage"), c.flag, c.value)
		if status != statusCouldNotTell || !strings.Contains(words, c.want) {
			t.Errorf("%s %s: status %d, no %q in %q", c.flag, c.value, status, c.want, words)
		}
	}
}
