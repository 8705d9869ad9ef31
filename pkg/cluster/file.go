package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Support is what the rest of kimage can do; the file may not ask for more.
type Support struct {
	OSes       []OS
	Kubernetes []string // newest first
	Runtimes   []string
	Plugins    []string
	// Components returns the catalogue's version of each component for a
	// Kubernetes version.
	Components func(kubernetes string) map[string]string
}

// OS is what the cluster file needs to know of an operating system.
type OS struct {
	Name      string
	Aliases   []string
	FirstBoot string // ignition or cloud-init
}

// File is a cluster file that was read and found right.
type File struct {
	Path     string  // as given
	Cluster  Cluster // with defaults
	OS       OS
	Warnings []Problem
	Nodes    []Target
	Pools    []Target

	at map[string]*yaml.Node
}

// Targets are all nodes, then all pools, in the file's order.
func (f *File) Targets() []Target { return append(f.Nodes[:len(f.Nodes):len(f.Nodes)], f.Pools...) }

// Dir is where relative file names in the cluster file begin.
func (f *File) Dir() string { return filepath.Dir(f.Path) }

// Stem is the file's path without its ending: STEM.secrets and STEM.state lie
// beside it.
func (f *File) Stem() string {
	return strings.TrimSuffix(strings.TrimSuffix(f.Path, ".yml"), ".yaml")
}

// Read reads the cluster file at path. What is wrong with it is a *Problems.
func Read(path string, s Support) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster file (kimage cluster new prints one; -f names another): %w", err)
	}
	return Parse(data, path, s)
}

// Parse reads a cluster file from memory; path names it in errors.
func Parse(data []byte, path string, s Support) (*File, error) {
	f := &File{Path: path}
	d := &decoder{at: map[string]*yaml.Node{}}
	d.decode(data, &f.Cluster)
	f.at = d.at
	c := &checker{File: f, support: s, problems: d.problems}
	switch root := d.at[""]; {
	case root == nil: // that it could not be read is said already
	case root.Kind != yaml.MappingNode:
		return nil, &Problems{path, []Problem{{Line: root.Line, Message: "this is not a cluster file: kimage cluster new prints one to begin with"}}}
	default:
		c.check()
	}
	if len(c.problems) > 0 {
		return nil, &Problems{path, c.sorted()}
	}
	return f, nil
}
