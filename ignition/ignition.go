// Package ignition turns a cluster file and its state into what every machine
// is told at first boot: Ignition configs, or cloud-init's user-data, meta-data
// and network-config.
//
// What a machine is told (plan) does not depend on the language; how a system
// wants it is data in OS. People's own snippets are merged last and may replace
// something of kimage's only if they name it. The same cluster file and state
// give the same bytes.
package ignition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/pkg/cluster"
)

// OS is what configs depend on in an operating system.
type OS struct {
	Variant      string   `yaml:"variant"` // of Butane; empty: cloud-init
	Version      string   `yaml:"version"` // of Butane's variant
	User         string   `yaml:"-"`
	Network      string   `yaml:"network"`      // Ignition: networkd or networkmanager
	Time         string   `yaml:"time"`         // Ignition: timesyncd or chrony
	TrustDir     string   `yaml:"trustDir"`     // Ignition: where certificates that the system trusts go
	TrustCommand string   `yaml:"trustCommand"` // Ignition: makes them count; empty: the system does that by itself
	SSHUnits     []string `yaml:"sshUnits"`
	EditableRoot bool     `yaml:"editableRoot"` // activation files are baked into the root
	SELinux      bool     `yaml:"selinux"`      // enforcing as shipped
}

// Activation is one file or link that makes a base mount the data partition.
type Activation struct {
	Path    string
	Mode    int
	Content []byte
	Link    string // target of a symbolic link; empty: a file
}

// Config says what to generate from.
type Config struct {
	File       *cluster.File
	State      *state.Store
	OS         OS
	Activation []Activation // used if the root is not editable
	Platform   string       // whose size limit counts; empty: the cluster file's
}

// Generator makes the configs of one cluster.
type Generator struct {
	file       *cluster.File
	state      *state.Store
	os         OS
	activation []Activation
	platform   platform
	roster     []byte
	rosterKey  string
	joinKey    []byte
	dataURLs   dataURLs
}

// platform is how large a config may be where machines run.
type platform struct {
	name  string
	bytes int // 0: no limit that matters
	where string
}

// Limits of what platforms hand to a machine.
var platforms = []platform{
	{"qemu", 0, ""}, {"metal", 0, ""},
	{"gce", 256 << 10, "an instance's metadata value"},
	{"aws", 16 << 10, "an instance's user data"},
	{"azure", 64 << 10, "a machine's custom data"},
	{"openstack", 64<<10 - 1, "a server's user data"},
}

// Platforms are the names that Config.Platform may have.
func Platforms() (names []string) {
	for _, p := range platforms {
		names = append(names, p.name)
	}
	return names
}

// New prepares what all machines share.
func New(c Config) (*Generator, error) {
	g := &Generator{file: c.File, state: c.State, os: c.OS, activation: c.Activation, joinKey: bytes.TrimSpace(c.State.Secret(nodeconf.JoinKey)),
		dataURLs: dataURLs{seen: map[string]butaneContents{}}}
	name := c.Platform
	if name == "" {
		name = c.File.Cluster.Spec.Platform.Name()
	}
	if i := slices.IndexFunc(platforms, func(p platform) bool { return p.name == name }); i >= 0 {
		g.platform = platforms[i]
	} else if name != "" {
		return nil, fmt.Errorf("unknown platform %q: choose %s", name, strings.Join(Platforms(), ", "))
	}
	signed, err := c.State.SignedRoster()
	if err != nil {
		return nil, err
	}
	if g.roster, err = json.Marshal(signed); err != nil {
		return nil, err
	}
	g.roster = append(g.roster, '\n')
	if g.rosterKey, err = c.State.RosterKey(); err != nil {
		return nil, err
	}
	return g, g.tokensDiffer()
}

// tokensDiffer: the first half of a token is its name in the cluster.
func (g *Generator) tokensDiffer() error {
	seen := map[string]string{}
	for _, t := range g.file.Targets() {
		id, _, _ := strings.Cut(nodeconf.Token(g.joinKey, t.Pool, t.Name), ".")
		if other, ok := seen[id]; ok {
			return fmt.Errorf("the names %s and %s give bootstrap tokens of one ID: rename one of them", other, t.Name)
		}
		seen[id] = t.Name
	}
	return nil
}

// Machine is what one machine, or every machine of a pool, is told.
type Machine struct {
	Dir   string            // nodes/NAME or pools/NAME
	Files map[string][]byte // config.ign, or user-data, meta-data and network-config
	// Boot is a digest of all that a machine reads only at first boot: the roster,
	// which running machines pass on, is left out.
	Boot string
}

// All makes the configs of every node and pool, in the file's order.
func (g *Generator) All() ([]Machine, error) {
	targets := g.file.Targets()
	out, errs := make([]Machine, len(targets)), make([]error, len(targets))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, t := range targets {
		group.Go(func() error {
			out[i], errs[i] = g.machine(t)
			return nil
		})
	}
	group.Wait()
	// The first in the file's order, whichever came first in time.
	for i, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("config of %s: %w", targets[i].Name, err)
		}
	}
	return out, nil
}

func (g *Generator) machine(t cluster.Target) (Machine, error) {
	m := Machine{Dir: "nodes/" + t.Name}
	if t.Pool {
		m.Dir = "pools/" + t.Name
	}
	p, err := g.plan(t)
	if err != nil {
		return m, err
	}
	render := g.cloudInit
	if g.os.Variant != "" {
		render = g.ignition
	}
	if m.Files, err = render(p); err != nil {
		return m, err
	}
	if m.Boot, err = g.digest(p); err != nil {
		return m, err
	}
	return m, g.fits(m)
}

// fits compares the config with what the platform takes.
func (g *Generator) fits(m Machine) error {
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		if name == "meta-data" || name == "network-config" {
			continue // made by the platform, or on a volume beside it
		}
		if n := len(m.Files[name]); g.platform.bytes > 0 && n > g.platform.bytes {
			return fmt.Errorf("%s has %d bytes, and %s takes %d as %s: serve the config from a URL of yours, or use fewer machines, labels or snippets", name, n, g.platform.name, g.platform.bytes, g.platform.where)
		}
	}
	return nil
}
