package ignition

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/butane/config"
	"github.com/coreos/butane/config/common"
	ign33 "github.com/coreos/ignition/v2/config/v3_3"
	ign33types "github.com/coreos/ignition/v2/config/v3_3/types"
	ign "github.com/coreos/ignition/v2/config/v3_4"
	"github.com/coreos/ignition/v2/config/v3_4/types"
	"github.com/coreos/vcontext/report"
	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// ConfigFile is the name of an Ignition config.
const ConfigFile = "config.ign"

// digest covers what a machine reads at first boot only.
func (g *Generator) digest(p *plan) (string, error) {
	h := sha256.New()
	for _, name := range []string{p.target.Machine.Butane, p.target.Machine.CloudInit} {
		if name == "" {
			continue
		}
		data, _, err := g.snippet(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d\n%s", len(data), data)
	}
	for _, f := range p.files {
		if f.path != nodeconf.RosterFile {
			fmt.Fprintf(h, "%q %o %d\n", f.path, f.mode, len(f.content))
			h.Write(f.content)
		}
	}
	fmt.Fprintf(h, "%q %+v %q %+v\n", p.links, p.units, p.target.Match, p.target.Machine)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Butane documents, as far as they are generated.
type butane struct {
	Variant string        `yaml:"variant"`
	Version string        `yaml:"version"`
	Passwd  butanePasswd  `yaml:"passwd,omitempty"`
	Storage butaneStorage `yaml:"storage"`
	Systemd butaneSystemd `yaml:"systemd,omitempty"`
}

type butanePasswd struct {
	Users []butaneUser `yaml:"users,omitempty"`
}

type butaneUser struct {
	Name string   `yaml:"name"`
	Keys []string `yaml:"ssh_authorized_keys"`
}

type butaneStorage struct {
	Files []butaneFile `yaml:"files"`
	Links []butaneLink `yaml:"links,omitempty"`
}

type butaneFile struct {
	Path      string         `yaml:"path"`
	Mode      int            `yaml:"mode"`
	Overwrite bool           `yaml:"overwrite"`
	Contents  butaneContents `yaml:"contents"`
}

type butaneContents struct {
	Source      string `yaml:"source"`
	Compression string `yaml:"compression,omitempty"`
}

type butaneLink struct {
	Path      string `yaml:"path"`
	Target    string `yaml:"target"`
	Overwrite bool   `yaml:"overwrite"`
}

type butaneSystemd struct {
	Units []butaneUnit `yaml:"units,omitempty"`
}

type butaneUnit struct {
	Name     string `yaml:"name"`
	Enabled  *bool  `yaml:"enabled,omitempty"`
	Mask     *bool  `yaml:"mask,omitempty"`
	Contents string `yaml:"contents,omitempty"`
}

// ignition renders a plan as an Ignition config.
func (g *Generator) ignition(p *plan) (map[string][]byte, error) {
	g.system(p)
	b := butane{Variant: g.os.Variant, Version: g.os.Version}
	if keys := keys(p.target); len(keys) > 0 {
		b.Passwd.Users = []butaneUser{{g.os.User, keys}}
	}
	for _, f := range p.files {
		c, err := g.dataURLs.of(f.content)
		if err != nil {
			return nil, err
		}
		b.Storage.Files = append(b.Storage.Files, butaneFile{f.path, f.mode, true, c})
	}
	for _, l := range p.links {
		b.Storage.Links = append(b.Storage.Links, butaneLink{l.path, l.target, true})
	}
	yes := true
	for _, u := range p.units {
		x := butaneUnit{Name: u.name, Contents: u.content}
		if u.mask {
			x.Mask = &yes
		}
		if u.enable {
			x.Enabled = &yes
		}
		b.Systemd.Units = append(b.Systemd.Units, x)
	}
	data, err := yaml.Marshal(b)
	if err != nil {
		return nil, err
	}
	// Without a snippet the config is of the variant's oldest specification, 3.3,
	// which every Ignition since 2.11 reads.
	out, mine, err := translate(data, "")
	if err != nil {
		return nil, fmt.Errorf("BUG: %w", err)
	}
	if s := p.target.Machine.Butane; s != "" {
		if out, err = g.mergeButane(mine, s, p.target.Machine.Override); err != nil {
			return nil, fmt.Errorf("snippet %s: %w", s, err)
		}
	}
	return map[string][]byte{ConfigFile: append(out, '\n')}, nil
}

// system adds what only Ignition systems need to be told as files.
func (g *Generator) system(p *plan) {
	t := p.target
	if !t.Pool {
		p.add("/etc/hostname", 0o644, []byte(t.Name+"\n"))
	}
	if static(t) {
		if g.os.Network == "networkmanager" {
			g.networkManager(p)
		} else {
			g.networkd(p)
		}
	}
	if ntp := t.Machine.NTP; len(ntp) > 0 {
		if g.os.Time == "chrony" {
			var b strings.Builder
			for _, s := range ntp {
				fmt.Fprintf(&b, "server %s iburst\n", s)
			}
			b.WriteString("driftfile /var/lib/chrony/drift\nmakestep 1.0 3\nrtcsync\n")
			p.add("/etc/chrony.conf", 0o644, []byte(b.String()))
		} else {
			p.add("/etc/systemd/timesyncd.conf.d/10-kimage.conf", 0o644, []byte("[Time]\nNTP="+strings.Join(ntp, " ")+"\n"))
		}
	}
	for i, ca := range t.Machine.TrustedCAs {
		p.add(fmt.Sprintf("%s/kimage-%d.pem", g.os.TrustDir, i+1), 0o644, []byte(strings.TrimSpace(ca)+"\n"))
	}
	if len(t.Machine.TrustedCAs) > 0 && g.os.TrustCommand != "" {
		p.units = append(p.units, unit{name: "kimage-trust.service", enable: true, content: "[Unit]\nDescription=Trust the certificates of the cluster file\nBefore=containerd.service kubelet.service\n\n" +
			"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=" + g.os.TrustCommand + "\n\n[Install]\nWantedBy=multi-user.target\n"})
	}
	slices.SortFunc(p.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
}

// translate turns Butane into Ignition, as Butane wrote it and as a value of
// specification 3.4, the newest that every supported system reads. Warnings of
// Butane and of Ignition's own validator are errors.
func translate(data []byte, filesDir string) ([]byte, types.Config, error) {
	out, r, err := config.TranslateBytes(data, common.TranslateBytesOptions{Raw: true, TranslateOptions: common.TranslateOptions{FilesDir: filesDir}})
	if err != nil || len(r.Entries) > 0 {
		return nil, types.Config{}, errors.Join(err, reported(r))
	}
	c, r, err := ign.ParseCompatibleVersion(out)
	if err != nil || len(r.Entries) > 0 {
		return nil, c, fmt.Errorf("it must be valid Ignition of at most 3.4 (flatcar 1.1.0, fcos 1.5.0): %w", errors.Join(err, reported(r)))
	}
	return out, c, nil
}

func reported(r report.Report) error {
	if len(r.Entries) == 0 {
		return nil
	}
	return errors.New(strings.ReplaceAll(strings.TrimSpace(r.String()), "\n", "; "))
}

// mergeButane lays a person's snippet over mine.
func (g *Generator) mergeButane(mine types.Config, name string, override []string) ([]byte, error) {
	data, dir, err := g.snippet(name)
	if err != nil {
		return nil, err
	}
	var head struct{ Variant string }
	if err := yaml.Unmarshal(data, &head); err != nil {
		return nil, err
	}
	if head.Variant != g.os.Variant {
		return nil, fmt.Errorf("its variant is %q, and %s wants %q", head.Variant, g.file.OS.Name, g.os.Variant)
	}
	_, theirs, err := translate(data, dir)
	if err != nil {
		return nil, err
	}
	have := names(mine)
	for _, n := range names(theirs) {
		if !slices.Contains(have, n) {
			continue
		}
		if !slices.Contains(override, n) {
			return nil, fmt.Errorf("it replaces %s of kimage's: leave that out, or name it under machine.override", n)
		}
		mine = without(mine, n)
	}
	merged := ign.Merge(mine, theirs)
	// The oldest specification that says all of it.
	merged.Ignition.Version = ign33types.MaxVersion.String()
	out, err := json.Marshal(merged)
	if err != nil {
		return nil, err
	}
	if _, r, err := ign33.Parse(out); err == nil && len(r.Entries) == 0 {
		return out, nil
	}
	merged.Ignition.Version = types.MaxVersion.String()
	if out, err = json.Marshal(merged); err != nil {
		return nil, err
	}
	// Each was valid; together they must be as well.
	if _, r, err := ign.Parse(out); err != nil || len(r.Entries) > 0 {
		return nil, fmt.Errorf("together with kimage's it is not valid Ignition: %w", errors.Join(err, reported(r)))
	}
	return out, nil
}

// names are the paths and units that a config sets.
func names(c types.Config) (out []string) {
	for _, f := range c.Storage.Files {
		out = append(out, f.Path)
	}
	for _, l := range c.Storage.Links {
		out = append(out, l.Path)
	}
	for _, d := range c.Storage.Directories {
		out = append(out, d.Path)
	}
	for _, u := range c.Systemd.Units {
		out = append(out, u.Name)
	}
	return out
}

func without(c types.Config, name string) types.Config {
	c.Storage.Files = slices.DeleteFunc(slices.Clone(c.Storage.Files), func(f types.File) bool { return f.Path == name })
	c.Storage.Links = slices.DeleteFunc(slices.Clone(c.Storage.Links), func(l types.Link) bool { return l.Path == name })
	c.Systemd.Units = slices.DeleteFunc(slices.Clone(c.Systemd.Units), func(u types.Unit) bool { return u.Name == name })
	return c
}

// snippet reads a file that the cluster file names, and says where it lies.
func (g *Generator) snippet(name string) (data []byte, dir string, err error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(g.file.Dir(), name)
	}
	data, err = os.ReadFile(name)
	return data, filepath.Dir(name), err
}
