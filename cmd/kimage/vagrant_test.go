package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/cluster"
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
		cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "VAGRANT_HOME="+filepath.Join(dir, "home"), "VAGRANT_DEFAULT_PROVIDER=libvirt", "VAGRANT_CHECKPOINT_DISABLE=1"), env...)
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
	// What both providers are told once there are machines, by their plugins' own word;
	// VirtualBox's needs its program, which is asked for no more than its version.
	made := filepath.Join(dir, ".vagrant/kimage/vagrant.json")
	if err := os.MkdirAll(filepath.Dir(made), 0o700); err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "VBoxManage"), []byte("#!/bin/sh\necho 7.0.6r155176\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"seed", "ignition"} {
		write(t, filepath.Dir(made), filepath.Base(made), fmt.Sprintf(`{"box": "kimage/x", "boxURL": "/x.json", "user": "core", "key": %q, "driver": "qemu", "machines": {"k8s-01":
			{"roles": ["master"], "mac": "525400a83c01", "cpus": 2, "memoryMiB": 2048, "diskGiB": 20, %q: %q}}}`, made, key, made))
		for _, provider := range []string{"libvirt", "virtualbox"} {
			run([]string{"PATH=" + bin + ":" + os.Getenv("PATH"), "VAGRANT_DEFAULT_PROVIDER=" + provider}, vagrant, "validate")
		}
	}
	if err := os.Remove(made); err != nil {
		t.Fatal(err)
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

// TestVagrantKeeps: as long as a cluster is there, its settings are not changed under it.
func TestVagrantKeeps(t *testing.T) {
	dir := t.TempDir()
	made := vagrantMachines{Settings: vagrantSettings{"libvirt", "debian-13", "1", "flannel", "192.168.60.0/24", "v1.36.5"}}
	data, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, vagrantFile)
	write(t, dir, vagrantFile, string(data))
	for change, c := range map[string]func(*vagrantSettings){
		"the provider is virtualbox, and the cluster's is libvirt": func(v *vagrantSettings) { v.Provider = "virtualbox" },
		"$os is debian-12": func(v *vagrantSettings) { v.OS = "debian-12" }, "$topology is 3": func(v *vagrantSettings) { v.Topology = "3" },
		"$network_plugin is none": func(v *vagrantSettings) { v.Plugin = "none" }, "$subnet is 10.1.2.0/24": func(v *vagrantSettings) { v.Subnet = "10.1.2.0/24" },
	} {
		now := made.Settings
		c(&now)
		if err := now.keep(file, &cluster.Outline{}); err == nil || !strings.Contains(err.Error(), change) || !strings.Contains(err.Error(), "vagrant destroy") {
			t.Errorf("%s: %v", change, err)
		}
	}
	for asked, want := range map[string]string{"": "v1.36.5", "v1.37.2": "v1.37.2"} {
		o := cluster.Outline{Kubernetes: asked}
		if err := made.Settings.keep(file, &o); err != nil || o.Kubernetes != want {
			t.Errorf("asked for %q: %q, %v", asked, o.Kubernetes, err)
		}
	}
	if err := made.Settings.keep(filepath.Join(dir, "none"), &cluster.Outline{}); err != nil {
		t.Errorf("without a cluster: %v", err)
	}
	o := t.TempDir()
	_, words, status := in(t, o, "vagrant", "--provider", "virtualbox", "--subnet", "10.1.2")
	if status != statusCouldNotTell || !strings.Contains(words, "VirtualBox makes networks in 192.168.56.0/21 only") {
		t.Errorf("a network that VirtualBox does not make: status %d: %s", status, words)
	}
	if data, err := os.ReadFile(filepath.Join(o, ".vagrant/kimage/.gitignore")); err != nil || string(data) != "*\n" {
		t.Errorf("secrets are not kept out of the repository: %q, %v", data, err)
	}
}
