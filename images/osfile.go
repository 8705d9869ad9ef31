package images

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/images/vendors"
	"github.com/kimage-project/kimage/pkg/nearest"
)

//go:embed os/*.yaml
var osFiles embed.FS

// OS is one file under images/os: all that kimage knows of an operating system.
type OS struct {
	Name        string          `yaml:"name"`
	Title       string          `yaml:"title"`
	Aliases     []string        `yaml:"aliases"`
	Successor   string          `yaml:"successor"` // why a system of another name is meant by an alias
	Tested      string          `yaml:"tested"`    // vendor, lookalike or render
	Arches      []string        `yaml:"arches"`
	User        string          `yaml:"user"`      // the account that first boot makes
	FirstBoot   string          `yaml:"firstBoot"` // cloud-init or ignition
	RootSizeMiB int64           `yaml:"rootSizeMiB"`
	RootMiB     int64           `yaml:"rootMiB"`
	Sysext      Sysext          `yaml:"sysext"`
	Disk        Disk            `yaml:"disk"`
	Vendor      vendors.Spec    `yaml:"vendor"`
	Mask        []string        `yaml:"mask"` // units that cannot live on an immutable, offline /usr
	Off         []string        `yaml:"off"`  // files that are covered by a link to /dev/null, for the same reason
	Packages    Packages        `yaml:"packages"`
	Config      FirstBootConfig `yaml:"config"`
}

// Sysext is how the OS's systemd recognises an extension as made for it (os-release(5)). The
// ID _any fits every system; one of VersionID and Level fits others.
type Sysext struct {
	ID        string `yaml:"id"`
	VersionID string `yaml:"versionID"`
	Level     string `yaml:"level"`
}

// Disk is what must be known of a vendor's disk before it is looked into.
type Disk struct {
	Root       string `yaml:"root"`       // label of the root file system; empty: any with an os-release
	Filesystem string `yaml:"filesystem"` // of the root: ext4, or xfs, which kimage cannot edit; empty: ext4
	USR        string `yaml:"usr"`        // name of the partition with /usr, if that is not on the root: kimage does not look into it
	Verity     bool   `yaml:"verity"`     // the system has libcryptsetup, where kimage cannot look
	Seed       Seed   `yaml:"seed"`       // where first boot finds its config on the disk itself; empty: cloud-init's place on the root
}

// Seed is a directory of a vendor's partition.
type Seed struct {
	Partition  string `yaml:"partition"`  // its name
	Filesystem string `yaml:"filesystem"` // as the kernel calls it: btrfs
	Directory  string `yaml:"directory"`  // empty: the top
}

// editable says whether activation files are baked into the root.
func (o OS) editable() bool { return o.Disk.Filesystem == "" || o.Disk.Filesystem == "ext4" }

// installs says whether machines can be installed with the OS over the network. That takes a
// system that runs the installer (the vendor's own, or the image's kernel with its initramfs)
// and a place on the disk for the config.
func (o OS) installs() bool {
	return o.FirstBoot == "cloud-init" && o.editable() || o.Vendor.Live.Kernel != "" && o.Disk.Seed.Partition != ""
}

// Installs says why machines cannot be installed with the OS over the network, and what can
// be done about it; nil: they can.
func (o OS) Installs() error {
	if o.installs() {
		return nil
	}
	all, err := OSes()
	if err != nil {
		return err
	}
	var can []string
	for _, other := range all {
		if other.installs() {
			can = append(can, other.Name)
		}
	}
	return fmt.Errorf("%s cannot be installed over the network: its OS file names neither a system that boots from there nor a place for a machine's config. Take one of %s, or write the image and give the config (kimage config) by the vendor's own installer",
		o.Name, strings.Join(can, ", "))
}

// opaque says that what is in /usr cannot be looked up.
func (o OS) opaque() bool { return o.Disk.USR != "" || !o.editable() }

// Packages says how the base is made from the distribution's packages; an
// empty suite means that it cannot be.
type Packages struct {
	Suite   string   `yaml:"suite"`
	Include []string `yaml:"include"`
}

// FirstBootConfig is what the first-boot config of a machine depends on; the fields are
// described where it is used, in package ignition.
type FirstBootConfig struct {
	Variant      string   `yaml:"variant"`
	Version      string   `yaml:"version"`
	User         string   `yaml:"-"`
	Network      string   `yaml:"network"`
	Time         string   `yaml:"time"`
	TrustDir     string   `yaml:"trustDir"`
	TrustCommand string   `yaml:"trustCommand"`
	SSHUnits     []string `yaml:"sshUnits"`
	EditableRoot bool     `yaml:"editableRoot"`
	SELinux      bool     `yaml:"selinux"`
}

// inputs is what decides the content of an image of the OS.
func (o OS) inputs() string {
	o.Disk.Seed = Seed{}
	o.Title, o.Aliases, o.Successor, o.Tested, o.User, o.Config, o.Vendor = "", nil, "", "", "", FirstBootConfig{}, vendors.Spec{}
	return fmt.Sprintf("%+v", o)
}

// OwnOSes names the environment variable with a directory of OS files that people wrote:
// they are listed with kimage's own, and are taken instead of those of the same name.
const OwnOSes = "KIMAGE_OS_PATH"

// OSes returns every OS file, by name.
func OSes() ([]OS, error) {
	all := map[string]OS{}
	files, err := osFiles.ReadDir("os")
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		data, err := osFiles.ReadFile("os/" + f.Name())
		if err != nil {
			return nil, err
		}
		o, err := readOS(data, vendors.Carried)
		if err != nil {
			return nil, fmt.Errorf("reading images/os/%s: %w", f.Name(), err)
		}
		all[o.Name] = o
	}
	if dir := os.Getenv(OwnOSes); dir != "" {
		own, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil {
			return nil, err
		}
		for _, file := range own {
			o, err := ownOS(file)
			if err != nil {
				return nil, fmt.Errorf("$%s: %w", OwnOSes, err)
			}
			all[o.Name] = o
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b OS) int { return strings.Compare(a.Name, b.Name) }), nil
}

// readOS reads an OS file; keys returns the vendor's keys by their file's name.
func readOS(data []byte, keys func(name string) ([]byte, error)) (OS, error) {
	var o OS
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(&o)
	if err != nil {
		return o, err
	}
	if o.Vendor.Keys.File != "" {
		if o.Vendor.Keys.Data, err = keys(o.Vendor.Keys.File); err != nil {
			return o, fmt.Errorf("vendor.keys.file: %w", err)
		}
	}
	switch {
	case !nameRule.MatchString(o.Name):
		return o, fmt.Errorf("name %q: use lower-case letters, digits, dots and dashes", o.Name)
	case len(o.Arches) == 0:
		return o, errors.New("arches is missing: [amd64], [arm64] or both")
	case o.FirstBoot != "cloud-init" && o.FirstBoot != "ignition":
		return o, fmt.Errorf("firstBoot %q: cloud-init or ignition", o.FirstBoot)
	case o.Sysext.ID == "":
		return o, errors.New("sysext.id is missing: ID of the system's os-release")
	case o.Disk.Filesystem != "" && o.Disk.Filesystem != "ext4" && o.Disk.Filesystem != "xfs":
		return o, fmt.Errorf("disk.filesystem %q: ext4 or xfs", o.Disk.Filesystem)
	case (o.Disk.Seed.Partition == "") != (o.Disk.Seed.Filesystem == ""):
		return o, errors.New("disk.seed needs partition and filesystem, both")
	case o.RootSizeMiB <= 0:
		return o, errors.New("rootSizeMiB is missing: how far the root may grow")
	case o.Vendor.Known():
		return o, o.Vendor.Check()
	case o.Packages.Suite == "":
		return o, errors.New("neither vendor nor packages says where the system comes from")
	}
	return o, nil
}

// FindOS returns the OS of that name or alias, or that of a person's own OS file: a name
// with a slash, or that ends in .yaml. An unknown name is an error with the nearest known
// ones.
func FindOS(name string) (OS, error) {
	if strings.Contains(name, "/") || strings.HasSuffix(name, ".yaml") {
		return ownOS(name)
	}
	all, err := OSes()
	if err != nil {
		return OS{}, err
	}
	var names []string
	for _, o := range all {
		if o.Name == name {
			return o, nil
		}
		names = append(append(names, o.Name), o.Aliases...)
	}
	for _, o := range all { // no system is called so
		if slices.Contains(o.Aliases, name) {
			return o, nil
		}
	}
	return OS{}, nearest.Unknown("operating system", name, names)
}

// ownOS reads an OS file; keys lie beside it.
func ownOS(file string) (OS, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return OS{}, fmt.Errorf("reading the OS file: %w", err)
	}
	o, err := readOS(data, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(file), name)
		}
		return os.ReadFile(name)
	})
	if err != nil {
		return OS{}, fmt.Errorf("%s: %w", file, err)
	}
	return o, nil
}
