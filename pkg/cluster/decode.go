package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/pkg/nearest"
)

// Problem is one thing that is wrong, or worth a warning.
type Problem struct {
	Path    string // spec.nodes[0].roles[1]; empty: the file as a whole
	Line    int    // 0: nowhere
	Value   string // as written; empty: a list, a mapping or nothing
	Message string // what is wrong, and the remedy
}

func (p Problem) String() string {
	s := p.Message
	if p.Value != "" {
		s = strconv.Quote(p.Value) + ": " + s
	}
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Line > 0 {
		s = "line " + strconv.Itoa(p.Line) + ": " + s
	}
	return s
}

// Problems is the error of a file in which something is wrong.
type Problems struct {
	File string
	All  []Problem
}

func (p *Problems) Error() string {
	lines := make([]string, len(p.All))
	for i, x := range p.All {
		lines[i] = p.File + ": " + x.String()
	}
	return strings.Join(lines, "\n")
}

// Limits of what a file may make the decoder do.
const (
	maxDepth = 64
	maxNodes = 300_000
)

// decoder reads YAML nodes into Go values and remembers where each came from.
type decoder struct {
	at       map[string]*yaml.Node // path to what was written there
	problems []Problem
	visited  int
	depth    int
}

// Block is a machine block as written; its settings count only after merging.
type Block struct{ node *yaml.Node }

func (d *decoder) problem(path string, n *yaml.Node, format string, args ...any) {
	p := Problem{Path: path, Message: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line = n.Line
		if n.Kind == yaml.ScalarNode {
			p.Value = shorten(n.Value)
		}
	}
	d.problems = append(d.problems, p)
}

// shorten keeps an error on a line, and a pasted key out of it.
func shorten(s string) string {
	if strings.Contains(s, "PRIVATE KEY") || strings.Contains(s, "AGE-SECRET-KEY") {
		return "(a private key)"
	}
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}

// decode reads the one document in data.
func (d *decoder) decode(data []byte, to *Cluster) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		d.problem("", nil, "the file is empty: kimage cluster new prints one to begin with")
		return
	}
	if err != nil {
		d.syntax(err)
		return
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		d.problem("", nil, "the file holds more than one YAML document: one file describes one cluster")
		return
	}
	if len(doc.Content) == 1 {
		d.value(doc.Content[0], reflect.ValueOf(to).Elem(), "")
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

func (d *decoder) syntax(err error) {
	p := Problem{Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Message = "this is not YAML: " + m[2]
	}
	d.problems = append(d.problems, p)
}

// resolve follows an alias.
func resolve(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// value reads n into v. Null leaves v as it is.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	n = resolve(n)
	d.visited++
	if d.depth++; d.depth > maxDepth || d.visited > maxNodes {
		if d.visited <= maxNodes || d.visited == maxNodes+1 {
			d.problem(path, n, "nested too deeply, or aliases make it too large")
		}
		d.visited = max(d.visited, maxNodes+1)
		d.depth--
		return
	}
	defer func() { d.depth-- }()
	d.at[path] = n
	if isNull(n) {
		return
	}
	switch to := v.Addr().Interface().(type) {
	case *Block:
		if n.Kind != yaml.MappingNode {
			d.problem(path, n, "expected a mapping")
			return
		}
		*to = Block{n}
		d.value(n, reflect.ValueOf(&Machine{}).Elem(), path)
		return
	case *Reserved:
		if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
			d.problem(path, n, "this field is reserved: no part of this kimage implements it yet, so leave it out")
		}
		return
	case *Object:
		if out, ok := d.free(n, path).(map[string]any); ok {
			*to = out
		} else {
			d.problem(path, n, "expected a mapping")
		}
		return
	case *Strings:
		if n.Kind == yaml.ScalarNode {
			var s string
			d.value(n, reflect.ValueOf(&s).Elem(), path)
			*to = Strings{s}
			return
		}
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, path, func(key, value *yaml.Node, at string) { d.field(key, value, v, at) })
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		d.mapping(n, path, func(key, value *yaml.Node, at string) {
			e := reflect.New(v.Type().Elem()).Elem()
			d.value(value, e, at)
			v.SetMapIndex(reflect.ValueOf(key.Value), e)
		})
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.problem(path, n, "expected a list")
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, c := range n.Content {
			d.value(c, v.Index(i), path+"["+strconv.Itoa(i)+"]")
		}
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		d.problem(path, n, "expected %s", map[reflect.Kind]string{reflect.String: "a text", reflect.Int: "a number", reflect.Bool: "true or false"}[v.Kind()])
		return
	}
	switch v.Kind() {
	case reflect.String:
		// A number or true is a text here: kubernetes: 1.37, a label's value.
		v.SetString(n.Value)
	case reflect.Int:
		i, err := strconv.Atoi(n.Value)
		if err != nil {
			d.problem(path, n, "expected a number")
			return
		}
		v.SetInt(int64(i))
	case reflect.Bool:
		if n.Value != "true" && n.Value != "false" {
			d.problem(path, n, "expected true or false")
			return
		}
		v.SetBool(n.Value == "true")
	default:
		panic("BUG: the cluster file has a field of kind " + v.Kind().String())
	}
}

// mapping visits the pairs of a mapping.
func (d *decoder) mapping(n *yaml.Node, path string, visit func(key, value *yaml.Node, at string)) {
	if n.Kind != yaml.MappingNode {
		d.problem(path, n, "expected a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode:
			d.problem(path, key, "a key must be a text")
			continue
		case key.Tag == "!!merge":
			d.problem(path, key, "merge keys are not supported: put what machines share into spec.machine or spec.roles")
			continue
		case seen[key.Value]:
			d.problem(join(path, key.Value), key, "this key is there twice: keep one")
			continue
		}
		seen[key.Value] = true
		visit(key, value, join(path, key.Value))
	}
}

// join extends a path; keys that are no plain words are quoted.
func join(path, key string) string {
	if plainKey.MatchString(key) {
		if path == "" {
			return key
		}
		return path + "." + key
	}
	return path + "[" + strconv.Quote(shorten(key)) + "]"
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func (d *decoder) field(key, value *yaml.Node, v reflect.Value, at string) {
	var known []string
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == key.Value {
			d.value(value, v.Field(i), at)
			return
		}
		known = append(known, name)
	}
	d.problem(at, key, "%v", nearest.Unknown("field", key.Value, known))
}

// free reads any YAML into the types of encoding/json.
func (d *decoder) free(n *yaml.Node, path string) any {
	n = resolve(n)
	d.visited++
	if d.depth++; d.depth > maxDepth || d.visited > maxNodes {
		d.problem(path, n, "nested too deeply, or aliases make it too large")
		d.visited = maxNodes + 1
		d.depth--
		return nil
	}
	defer func() { d.depth-- }()
	d.at[path] = n
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		d.mapping(n, path, func(key, value *yaml.Node, at string) { out[key.Value] = d.free(value, at) })
		return out
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i, c := range n.Content {
			out[i] = d.free(c, path+"["+strconv.Itoa(i)+"]")
		}
		return out
	}
	var out any
	if err := n.Decode(&out); err != nil {
		d.problem(path, n, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return nil
	}
	switch x := out.(type) {
	case string, bool, int, int64, uint64, nil:
		return x
	case float64:
		if x == x && x < 1e308 && x > -1e308 {
			return x
		}
	}
	// Dates, infinities: as written.
	return n.Value
}
