package gcetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// discovery is a document by which Google describes an API
// (https://developers.google.com/discovery/v1/reference/apis).
type discovery struct {
	ServicePath string               `json:"servicePath"`
	Parameters  map[string]parameter `json:"parameters"` // of all methods
	Resources   map[string]resources `json:"resources"`
	Schemas     map[string]property  `json:"schemas"`

	methods []*method
}

type resources struct {
	Methods   map[string]*method   `json:"methods"`
	Resources map[string]resources `json:"resources"`
}

type method struct {
	ID         string                  `json:"id"`
	HTTPMethod string                  `json:"httpMethod"`
	Path       string                  `json:"path"`
	Parameters map[string]parameter    `json:"parameters"`
	Request    property                `json:"request"`
	Upload     struct{ Protocols any } `json:"mediaUpload"`

	match *regexp.Regexp
	names []string
}

type parameter struct {
	Location string   `json:"location"`
	Required bool     `json:"required"`
	Pattern  string   `json:"pattern"`
	Enum     []string `json:"enum"`
}

type property struct {
	Type                 string              `json:"type"`
	Ref                  string              `json:"$ref"`
	Pattern              string              `json:"pattern"`
	Enum                 []string            `json:"enum"`
	Properties           map[string]property `json:"properties"`
	Items                *property           `json:"items"`
	AdditionalProperties *property           `json:"additionalProperties"`
}

// documents are those that Google's Go library was generated from, which lie in its
// module; of many servers in a test each needs them.
var documents = sync.OnceValues(func() (out []*discovery, err error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "google.golang.org/api").Output()
	if err != nil {
		return nil, fmt.Errorf("where is the module google.golang.org/api: %w", err)
	}
	for _, file := range []string{"compute/v1/compute-api.json", "storage/v1/storage-api.json"} {
		data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), file))
		if err != nil {
			return nil, err
		}
		d := &discovery{}
		if err := json.Unmarshal(data, d); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		d.collect(d.Resources)
		out = append(out, d)
	}
	return out, nil
})

var inBraces = regexp.MustCompile(`\{\+?([a-zA-Z]+)\}`)

func (d *discovery) collect(all map[string]resources) {
	for _, r := range all {
		for _, m := range r.Methods {
			prefix := "/" + d.ServicePath
			if m.Upload.Protocols != nil {
				prefix = "(?:/upload)?" + prefix
			}
			for _, n := range inBraces.FindAllStringSubmatch(m.Path, -1) {
				m.names = append(m.names, n[1])
			}
			m.match = regexp.MustCompile("^" + prefix + inBraces.ReplaceAllString(m.Path, "([^/]+)") + "$")
			d.methods = append(d.methods, m)
		}
		d.collect(r.Resources)
	}
}

// check says what in a request is not as the document has it, and which method it calls.
func check(all []*discovery, r *http.Request, body []byte) (id string, wrong []string) {
	bad := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("%s %s: ", r.Method, r.URL)+fmt.Sprintf(format, args...))
	}
	for _, d := range all {
		for _, m := range d.methods {
			found := m.match.FindStringSubmatch(r.URL.EscapedPath())
			if found == nil || m.HTTPMethod != r.Method {
				continue
			}
			given := r.URL.Query()
			for i, n := range m.names {
				v, err := url.PathUnescape(found[i+1])
				if err != nil {
					bad("%v", err)
				}
				given.Set(n, v)
			}
			for n, p := range m.Parameters {
				if p.Required && !given.Has(n) {
					bad("lacks the parameter %s", n)
				}
				if p.Pattern != "" && given.Has(n) && !regexp.MustCompile("^(?:"+p.Pattern+")$").MatchString(given.Get(n)) {
					bad("%s %q is not like %s", n, given.Get(n), p.Pattern)
				}
			}
			for n := range given {
				_, own := m.Parameters[n]
				_, common := d.Parameters[n]
				if !own && !common && n != "uploadType" {
					bad("%s has no parameter %s", m.ID, n)
				}
			}
			if media := strings.HasPrefix(r.URL.Path, "/upload"); len(body) > 0 && !media {
				var v any
				if err := json.Unmarshal(body, &v); err != nil {
					bad("%v", err)
				} else if m.Request.Ref == "" {
					bad("%s takes no body", m.ID)
				} else {
					d.value(property{Ref: m.Request.Ref}, v, m.Request.Ref, bad)
				}
			}
			return m.ID, wrong
		}
	}
	bad("no method of the discovery documents")
	return "", wrong
}

// value compares JSON with its schema.
func (d *discovery) value(p property, v any, at string, bad func(string, ...any)) {
	if p.Ref != "" {
		p = d.Schemas[p.Ref]
	}
	switch x := v.(type) {
	case map[string]any:
		for k, v := range x {
			q, ok := p.Properties[k]
			if !ok && p.AdditionalProperties != nil {
				q, ok = *p.AdditionalProperties, true
			}
			if !ok {
				bad("%s has no field %s", at, k)
				continue
			}
			d.value(q, v, at+"."+k, bad)
		}
		if p.Type != "object" {
			bad("%s is %s, not an object", at, p.Type)
		}
	case []any:
		if p.Type != "array" || p.Items == nil {
			bad("%s is %s, not a list", at, p.Type)
			return
		}
		for _, e := range x {
			d.value(*p.Items, e, at+"[]", bad)
		}
	case string: // also what has 64 bits
		if p.Type != "string" && p.Type != "any" {
			bad("%s is %s, not a string", at, p.Type)
		}
		if len(p.Enum) > 0 && !slices.Contains(p.Enum, x) {
			bad("%s: %q is none of %v", at, x, p.Enum)
		}
		if p.Pattern != "" && !regexp.MustCompile("^(?:"+p.Pattern+")$").MatchString(x) {
			bad("%s: %q is not like %s", at, x, p.Pattern)
		}
	case float64:
		if p.Type != "integer" && p.Type != "number" {
			bad("%s is %s, not a number", at, p.Type)
		}
	case bool:
		if p.Type != "boolean" {
			bad("%s is %s, not a boolean", at, p.Type)
		}
	}
}
