package images

import (
	"bytes"
	"embed"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/pkg/nearest"
)

//go:embed os/*.yaml
var osFiles embed.FS

// OS is one file under images/os: all that kimage knows of an operating system.
type OS struct {
	Name        string          `yaml:"name"`
	Title       string          `yaml:"title"`
	Aliases     []string        `yaml:"aliases"`
	Tested      string          `yaml:"tested"` // vendor, lookalike or render
	Arches      []string        `yaml:"arches"`
	User        string          `yaml:"user"`      // the account that first boot makes
	FirstBoot   string          `yaml:"firstBoot"` // cloud-init or ignition
	RootSizeMiB int64           `yaml:"rootSizeMiB"`
	RootMiB     int64           `yaml:"rootMiB"`
	Sysext      Sysext          `yaml:"sysext"`
	Mask        []string        `yaml:"mask"` // units that cannot live on an immutable, offline /usr
	Packages    Packages        `yaml:"packages"`
	Config      FirstBootConfig `yaml:"config"`
}

// Sysext is how the OS's systemd recognises an extension as made for it.
type Sysext struct {
	ID        string `yaml:"id"`
	VersionID string `yaml:"versionID"`
}

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
	o.Title, o.Aliases, o.Tested, o.User, o.Config = "", nil, "", "", FirstBootConfig{}
	return fmt.Sprintf("%+v", o)
}

// Baked says whether this kimage can bake the OS; others can be configured only.
func (o OS) Baked() bool { return o.Packages.Suite != "" }

// OSes returns every OS file, by name.
func OSes() ([]OS, error) {
	files, err := osFiles.ReadDir("os")
	if err != nil {
		return nil, err
	}
	var all []OS
	for _, f := range files {
		data, err := osFiles.ReadFile("os/" + f.Name())
		if err != nil {
			return nil, err
		}
		var o OS
		dec := yaml.NewDecoder(bytes.NewReader(data))
		dec.KnownFields(true)
		if err := dec.Decode(&o); err != nil {
			return nil, fmt.Errorf("reading images/os/%s: %w", f.Name(), err)
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b OS) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// FindOS returns the OS of that name or alias. An unknown name is an error
// with the nearest known ones.
func FindOS(name string) (OS, error) {
	all, err := OSes()
	if err != nil {
		return OS{}, err
	}
	var names []string
	for _, o := range all {
		if o.Name == name || slices.Contains(o.Aliases, name) {
			return o, nil
		}
		names = append(append(names, o.Name), o.Aliases...)
	}
	return OS{}, nearest.Unknown("operating system", name, names)
}
