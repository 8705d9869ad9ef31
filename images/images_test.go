package images

import (
	"slices"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/pgp"
)

// TestOSFiles: every operating system can be found by all its names, and its
// file says what a bake needs.
func TestOSFiles(t *testing.T) {
	all, err := OSes()
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]string{}
	for _, o := range all {
		for _, name := range append([]string{o.Name}, o.Aliases...) {
			if other := taken[name]; other != "" {
				t.Errorf("%s and %s are both called %s", other, o.Name, name)
			}
			taken[name] = o.Name
			if found, err := FindOS(name); err != nil || found.Name != o.Name {
				t.Errorf("%s: %v, %v", name, found.Name, err)
			}
		}
		if o.Title == "" || len(o.Arches) == 0 || o.User == "" || o.RootSizeMiB == 0 || o.Sysext.ID == "" ||
			!slices.Contains([]string{"vendor", "lookalike", "render"}, o.Tested) || !slices.Contains([]string{"cloud-init", "ignition"}, o.FirstBoot) {
			t.Errorf("%+v", o)
		}
	}
	for _, name := range []string{"debian-12", "debian-13"} {
		if o, err := FindOS(name); err != nil || o.Packages.Suite == "" {
			t.Errorf("%s cannot be made from packages: %v", name, err)
		}
	}
}

// TestVendorKeys: every key that an OS file pins is among those that kimage carries, and
// those that sign can.
func TestVendorKeys(t *testing.T) {
	all, err := OSes()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range all {
		if len(o.Vendor.For()) == 0 {
			t.Errorf("%s has no vendor", o.Name)
		}
		for _, primary := range o.Vendor.Keys.Primary {
			if k, err := pgp.ReadKeys(o.Vendor.Keys.Data, []string{primary}, nil); err != nil || !k.Sign() {
				t.Errorf("%s: %s: %v", o.Name, primary, err)
			}
		}
	}
}

func TestDropped(t *testing.T) {
	for p, want := range map[string]bool{"etc/ssh/ssh_host_rsa_key": true, "etc/ssh/sshd_config": false, "var/log/apt/history.log": true, "var/logs": false,
		"etc/machine-id": true, "proc": true, "process": false} {
		if got := isDropped(p); got != want {
			t.Errorf("%s: %t", p, got)
		}
	}
}

func TestDpkgPackages(t *testing.T) {
	const status = "Package: zlib1g\nStatus: install ok installed\nVersion: 1:1.3-1\n\nPackage: adduser\nVersion: 3.134\nDescription: x\n Package: no\n\nPackage: half\n"
	if got, want := dpkgPackages([]byte(status)), []string{"adduser 3.134", "zlib1g 1:1.3-1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestNewTellsEverything: each wrong word once, and nothing that follows from another.
func TestNewTellsEverything(t *testing.T) {
	_, err := New(Config{OS: "debian-14", Kubernetes: "1.2", Runtime: "rkt", Network: "flanel", Formats: []string{"raw", "vdi"}, Images: "few", Agent: "images_test.go"})
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for _, want := range []string{`operating system "debian-14"`, `Kubernetes version "1.2"`, `runtime "rkt"`, `network "flanel"`, `format "vdi"`, `set of images "few"`} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, want) }) {
			t.Errorf("nothing of %s in %q", want, lines)
		}
	}
	if len(lines) != 6 {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}
