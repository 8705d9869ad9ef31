package cluster

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Target is one machine, or one pool, with its effective settings.
type Target struct {
	Name      string // of the node or the pool
	Pool      bool
	Roles     []string // sorted
	Addresses []string
	Match     Match
	Size      int // pools
	Machine   Machine
	Settings  []Setting
	path      string // in the file: spec.nodes[0]
}

// Has says whether the target has a role.
func (t Target) Has(role string) bool { return slices.Contains(t.Roles, role) }

// Kubelet says whether the target becomes a Node of Kubernetes.
func (t Target) Kubelet() bool { return t.Has(RoleMaster) || t.Has(RoleWorker) }

// Setting is one effective setting of a machine.
type Setting struct {
	Path  string `json:"path"` // below the machine block
	Value string `json:"value"`
	From  string `json:"from"` // the block that decided
	Line  int    `json:"line"`
}

// source is a machine block and its place in the file.
type source struct {
	from  string
	block Block
}

// target merges the blocks for one machine, the nearest last.
func (f *File) target(t Target, own Block) Target {
	slices.Sort(t.Roles)
	s := f.Cluster.Spec
	sources := []source{{"spec.machine", s.Machine}}
	for _, r := range roles {
		if t.Has(r) {
			sources = append(sources, source{"spec.roles." + r, map[string]Block{RoleWorker: s.Roles.Worker, RoleEtcd: s.Roles.Etcd, RoleMaster: s.Roles.Master}[r]})
		}
	}
	sources = append(sources, source{t.path + ".machine", own})
	var merged *yaml.Node
	origin := map[*yaml.Node]string{}
	for _, src := range sources {
		if src.block.node != nil {
			merged = merge(merged, src.block.node, src.from, origin)
		}
	}
	if merged == nil {
		return t
	}
	d := &decoder{at: map[string]*yaml.Node{}} // what is wrong was found when the file was read
	d.value(merged, reflect.ValueOf(&t.Machine).Elem(), "")
	t.Settings = settings(merged, "", origin)
	return t
}

// merge lays b over a: mappings merge, anything else replaces, null removes.
// Neither is changed. origin learns which block every leaf came from.
func merge(a, b *yaml.Node, from string, origin map[*yaml.Node]string) *yaml.Node {
	b = resolve(b)
	if b.Kind != yaml.MappingNode {
		leaf := *b
		origin[&leaf] = from
		return &leaf
	}
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: b.Line}
	if a != nil && a.Kind == yaml.MappingNode {
		out.Content = slices.Clone(a.Content)
	}
	for i := 0; i+1 < len(b.Content); i += 2 {
		key, value := b.Content[i], resolve(b.Content[i+1])
		at := -1
		for j := 0; j+1 < len(out.Content); j += 2 {
			if out.Content[j].Value == key.Value {
				at = j
			}
		}
		switch {
		case isNull(value) && at >= 0:
			out.Content = slices.Delete(out.Content, at, at+2)
		case isNull(value):
		case at >= 0:
			out.Content[at+1] = merge(out.Content[at+1], value, from, origin)
		default:
			out.Content = append(out.Content, key, merge(nil, value, from, origin))
		}
	}
	return out
}

func settings(n *yaml.Node, path string, origin map[*yaml.Node]string) (out []Setting) {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			out = append(out, settings(n.Content[i+1], join(path, n.Content[i].Value), origin)...)
		}
		return out
	}
	return []Setting{{path, text(n), origin[n], n.Line}}
}

// text is a value on one line.
func text(n *yaml.Node) string {
	n = resolve(n)
	switch n.Kind {
	case yaml.SequenceNode:
		var parts []string
		for _, c := range n.Content {
			parts = append(parts, text(c))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case yaml.MappingNode:
		var parts []string
		for i := 0; i+1 < len(n.Content); i += 2 {
			parts = append(parts, n.Content[i].Value+": "+text(n.Content[i+1]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	if strings.ContainsRune(n.Value, '\n') {
		first, _, _ := strings.Cut(n.Value, "\n")
		return strconv.Quote(shorten(first + " ..."))
	}
	return shorten(n.Value)
}
