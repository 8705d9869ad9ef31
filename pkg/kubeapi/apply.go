package kubeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Object is any object of the API, as JSON decodes it.
type Object = map[string]any

// resource is how a kind is reached.
type resource struct {
	plural     string
	namespaced bool
}

// Objects reads a manifest: YAML documents, of which empty ones are skipped.
func Objects(manifest []byte) ([]Object, error) {
	var all []Object
	dec := yaml.NewDecoder(strings.NewReader(string(manifest)))
	for {
		var o Object
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading a manifest: %w", err)
		}
		if len(o) > 0 {
			all = append(all, o)
		}
	}
}

// Field is what a path of mappings leads to; nil: it leads nowhere.
func Field(o Object, path ...string) any {
	var at any = o
	for _, p := range path {
		m, ok := at.(Object)
		if !ok {
			return nil
		}
		at = m[p]
	}
	return at
}

// Text is the string that a path of mappings leads to; empty: none.
func Text(o Object, path ...string) string {
	s, _ := Field(o, path...).(string)
	return s
}

// Apply makes the cluster have object (server-side apply): what it says is
// owned by the client's manager, what it leaves out stays.
func (c *Client) Apply(ctx context.Context, o Object) error {
	path, err := c.path(ctx, o)
	if err != nil {
		return err
	}
	body, err := json.Marshal(o) // JSON is YAML
	if err != nil {
		return err
	}
	err = c.do(ctx, request{method: http.MethodPatch, path: path, contentType: "application/apply-patch+yaml", body: body,
		query: url.Values{"fieldManager": {c.manager}, "force": {"true"}}}, nil)
	if err != nil {
		return fmt.Errorf("applying %s %s: %w", Text(o, "kind"), Text(o, "metadata", "name"), err)
	}
	return nil
}

// path is where an object lives.
func (c *Client) path(ctx context.Context, o Object) (string, error) {
	version, kind, name, namespace := Text(o, "apiVersion"), Text(o, "kind"), Text(o, "metadata", "name"), Text(o, "metadata", "namespace")
	if version == "" || kind == "" || name == "" {
		return "", errors.New("an object of a manifest has no apiVersion, kind or name")
	}
	r, err := c.resource(ctx, version, kind)
	if err != nil {
		return "", err
	}
	base := versionPath(version)
	if r.namespaced {
		if namespace == "" {
			namespace = "default"
		}
		base += "/namespaces/" + url.PathEscape(namespace)
	}
	return base + "/" + r.plural + "/" + url.PathEscape(name), nil
}

func versionPath(version string) string {
	if !strings.Contains(version, "/") {
		return "/api/" + version
	}
	return "/apis/" + version
}

// resource asks the API server once how the kinds of an API version are called.
func (c *Client) resource(ctx context.Context, version, kind string) (resource, error) {
	c.mu.Lock()
	r, ok := c.resources[version][kind]
	c.mu.Unlock()
	if ok {
		return r, nil
	}
	var list struct {
		Resources []struct {
			Name, Kind string
			Namespaced bool
		}
	}
	if err := c.Get(ctx, versionPath(version), nil, &list); err != nil {
		return resource{}, fmt.Errorf("asking for the kinds of %s: %w", version, err)
	}
	known := map[string]resource{}
	for _, r := range list.Resources {
		if !strings.Contains(r.Name, "/") { // a/b is a subresource
			known[r.Kind] = resource{r.Name, r.Namespaced}
		}
	}
	c.mu.Lock()
	c.resources[version] = known
	c.mu.Unlock()
	if r, ok = known[kind]; !ok {
		return r, fmt.Errorf("the API server knows no %s of %s", kind, version)
	}
	return r, nil
}
