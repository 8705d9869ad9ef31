package gce

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	compute "google.golang.org/api/compute/v1"
)

// kind is a collection of Compute Engine's.
type kind struct {
	name     string // in paths
	scope    string // global, zones or regions
	labelled bool   // else its description says whose it is
}

var (
	images    = kind{"images", "global", true}
	templates = kind{"instanceTemplates", "global", false}
	firewalls = kind{"firewalls", "global", false}
	addresses = kind{"addresses", "regions", false}
	instances = kind{"instances", "zones", true}
	groups    = kind{"instanceGroupManagers", "zones", false}
)

// resource is what is to be in the project.
type resource struct {
	kind
	place  string // zone or region; empty: global
	name   string
	body   any
	query  url.Values // of its insertion
	digest string     // of what it is to be like
}

// found is what all kinds have in common, and what decides what is to be done.
type found struct {
	Name              string            `json:"name"`
	Description       string            `json:"description"`
	Labels            map[string]string `json:"labels"`
	Status            string            `json:"status"`
	CreationTimestamp string            `json:"creationTimestamp"`
	SelfLink          string            `json:"selfLink"`
	InstanceTemplate  string            `json:"instanceTemplate"`
	TargetSize        int64             `json:"targetSize"`
	Zone              string            `json:"zone"`
	Region            string            `json:"region"`
}

const digestLabel = "kimage-digest"

// mine says whether something is this cluster's.
func (c *Cloud) mine(k kind, f found) bool {
	if !k.labelled {
		return strings.HasPrefix(f.Description, c.description())
	}
	for key, v := range c.labels() {
		if f.Labels[key] != v {
			return false
		}
	}
	return true
}

// digest is what the resource was made like.
func (f found) digest() string {
	if d := f.Labels[digestLabel]; d != "" {
		return d
	}
	_, d, _ := strings.Cut(f.Description, digestLabel+"=")
	return d
}

// described is the description of a resource that has no labels.
func (c *Cloud) described(digest string) string {
	return c.description() + " " + digestLabel + "=" + digest
}

func (c *Cloud) path(k kind, place string, more ...string) string {
	p := "/compute/v1/projects/" + c.Project + "/" + k.scope + "/"
	if place != "" {
		p += place + "/"
	}
	return p + strings.Join(append([]string{k.name}, more...), "/")
}

// link is how other resources name it.
func (c *Cloud) link(k kind, place, name string) string {
	return strings.TrimPrefix(c.path(k, place, name), "/compute/v1/")
}

// get returns false if there is none.
func (c *Cloud) get(ctx context.Context, k kind, place, name string) (f found, there bool, err error) {
	err = c.do(ctx, call{method: http.MethodGet, path: c.path(k, place, name), into: &f})
	if code(err) == http.StatusNotFound {
		return f, false, nil
	}
	return f, err == nil, err
}

// ensure makes r unless it is there. What is there and was made differently is returned
// with differs; the caller knows what to do about it.
func (c *Cloud) ensure(ctx context.Context, r resource) (f found, differs bool, err error) {
	f, there, err := c.get(ctx, r.kind, r.place, r.name)
	if err == nil && !there {
		err = c.operate(ctx, call{method: http.MethodPost, path: c.path(r.kind, r.place), query: r.query, body: r.body}, r.kind, r.place, "making "+r.kind.name+"/"+r.name)
		if code(err) == http.StatusConflict { // made by the call whose answer was lost, or by another just now
			f, there, err = c.get(ctx, r.kind, r.place, r.name)
		} else if err == nil {
			return found{Name: r.name}, false, nil
		}
	}
	if err != nil {
		return f, false, err
	}
	if there && !c.mine(r.kind, f) {
		return f, false, fmt.Errorf("%s/%s exists in project %s and is not this cluster's (it does not say kimage-cluster-id=%s): delete or rename it, or take another metadata.name", r.kind.name, r.name, c.Project, c.ID)
	}
	return f, f.digest() != r.digest, nil
}

// remove deletes something of this cluster's, and only that: whose it is is looked up
// once more.
func (c *Cloud) remove(ctx context.Context, k kind, place, name string) error {
	f, there, err := c.get(ctx, k, place, name)
	if err != nil || !there {
		return err
	}
	if !c.mine(k, f) {
		return fmt.Errorf("%s/%s is not this cluster's any more: it is left alone", k.name, name)
	}
	err = c.operate(ctx, call{method: http.MethodDelete, path: c.path(k, place, name)}, k, place, "deleting "+k.name+"/"+name)
	if code(err) == http.StatusNotFound {
		return nil
	}
	return err
}

// operate makes a call that begins an operation, and waits until that ends.
func (c *Cloud) operate(ctx context.Context, r call, k kind, place, what string) error {
	if c.DryRun == nil {
		c.Report.Logf("%s", what)
	}
	var op compute.Operation
	// Google does once what is asked for twice under one ID, as when an answer was lost.
	query := url.Values{"requestId": {requestID()}}
	for key, v := range r.query {
		query[key] = v
	}
	r.query, r.into = query, &op
	if err := c.do(ctx, r); err != nil {
		return err
	}
	if c.DryRun != nil {
		return nil
	}
	return c.await(ctx, &op, k, place, what)
}

// await waits for an operation. One that takes too long, or is not waited for any more, goes on.
func (c *Cloud) await(ctx context.Context, op *compute.Operation, k kind, place, what string) error {
	limit, cancel := context.WithTimeout(ctx, c.Operation)
	defer cancel()
	defer c.Report.Step(what)()
	for wait := firstWait; op.Status != "DONE"; wait = min(wait*2, longest) {
		// It answers when the operation ends, or after two minutes at most.
		err := c.do(limit, call{method: http.MethodPost, path: c.path(kind{"operations", k.scope, false}, place, op.Name, "wait"), into: op})
		if err == nil && op.Status != "DONE" {
			err = sleep(limit, wait)
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return fmt.Errorf("%s: operation %s has not ended after %s; Google goes on with it: run this again to go on too, or allow more by --timeout", what, op.Name, c.Operation)
		}
		if err != nil {
			return err
		}
	}
	return failed(op, what)
}

func requestID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// placed is something of this cluster's and where it is.
type placed struct {
	found
	place string
}

// list finds all of a kind that are this cluster's, in all zones or regions.
func (c *Cloud) list(ctx context.Context, k kind) (out []placed, err error) {
	filter := `description : "kimage-cluster-id=` + c.ID + `"`
	if k.labelled {
		filter = `(labels.kimage-cluster = "` + c.Cluster + `") (labels.kimage-cluster-id = "` + c.ID + `")`
	}
	path := c.path(k, "")
	if k.scope != "global" {
		path = "/compute/v1/projects/" + c.Project + "/aggregated/" + k.name
	}
	for token := ""; ; {
		query := url.Values{"filter": {filter}}
		if token != "" {
			query.Set("pageToken", token)
		}
		var page struct {
			Items         itemsOf `json:"items"`
			NextPageToken string  `json:"nextPageToken"`
		}
		page.Items.kind = k
		if err := c.do(ctx, call{method: http.MethodGet, path: path, query: query, into: &page}); err != nil {
			return nil, err
		}
		for _, f := range page.Items.all {
			// Filters are Google's help, not what decides.
			if c.mine(k, f) {
				place := f.Zone
				if k.scope == "regions" {
					place = f.Region
				}
				out = append(out, placed{f, place[strings.LastIndexByte(place, '/')+1:]})
			}
		}
		if token = page.NextPageToken; token == "" {
			slices.SortFunc(out, func(a, b placed) int { return strings.Compare(a.Name, b.Name) })
			return out, nil
		}
	}
}
