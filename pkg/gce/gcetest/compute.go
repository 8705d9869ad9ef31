package gcetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

type operation struct {
	object object
	polls  int
	done   func()
}

// serveCompute carries out a request; at is the path below the project.
func (s *Server) serveCompute(w http.ResponseWriter, r *http.Request, id, at string, body []byte) {
	id = strings.TrimPrefix(id, "compute.")
	collection, verb, _ := strings.Cut(id, ".")
	switch {
	case strings.HasSuffix(collection, "Operations") && verb == "wait":
		s.wait(w, path.Base(path.Dir(at)))
	case verb == "aggregatedList":
		s.list(w, r, path.Base(at), true)
	case verb == "list":
		s.list(w, r, at, false)
	case verb == "get":
		for _, op := range s.ops {
			op.tick()
		}
		if o := s.compute[at]; o != nil {
			answer(w, o)
		} else {
			fail(w, http.StatusNotFound, "notFound", "The resource 'projects/"+s.Project+"/"+at+"' was not found")
		}
	case verb == "insert":
		s.begin(w, r, id, func() (int, string, string, func()) { return s.insert(r, at, decode(body)) })
	case verb == "delete":
		s.begin(w, r, id, func() (int, string, string, func()) { return s.remove(at) })
	case verb == "patch" || verb == "update":
		s.begin(w, r, id, func() (int, string, string, func()) {
			o := s.compute[at]
			if o == nil {
				return http.StatusNotFound, "notFound", at + " was not found", nil
			}
			for k, v := range decode(body) {
				o[k] = v
			}
			s.resize(at, o)
			return 0, "", "", nil
		})
	case verb == "start":
		s.begin(w, r, id, func() (int, string, string, func()) {
			o := s.compute[path.Dir(at)]
			if o == nil {
				return http.StatusNotFound, "notFound", at + " was not found", nil
			}
			return 0, "", "", func() { o["status"] = "RUNNING" }
		})
	default:
		fail(w, http.StatusNotImplemented, "notImplemented", "the test's server does not do "+id)
	}
}

// begin does something and answers with the operation that it is.
func (s *Server) begin(w http.ResponseWriter, r *http.Request, id string, act func() (status int, reason, message string, done func())) {
	ask := r.URL.Query().Get("requestId")
	if op := s.ops[s.asked[ask]]; op != nil && ask != "" {
		answer(w, op.object)
		return
	}
	s.next++
	name := fmt.Sprintf("operation-%d", s.next)
	op := &operation{object: object{"kind": "compute#operation", "name": name, "status": "PENDING", "operationType": id}, polls: s.Polls}
	if f, ok := s.FailOperation[id]; ok {
		op.done = func() {
			op.object["error"] = object{"errors": []object{{"code": f[0], "message": f[1]}}}
			op.object["httpErrorStatusCode"] = http.StatusForbidden
		}
	} else {
		status, reason, message, done := act()
		if status != 0 {
			fail(w, status, reason, message)
			return
		}
		op.done = done
	}
	s.ops[name], s.asked[ask] = op, name
	answer(w, op.object)
}

func (s *Server) wait(w http.ResponseWriter, name string) {
	op := s.ops[name]
	if op == nil {
		fail(w, http.StatusNotFound, "notFound", "no operation "+name)
		return
	}
	op.tick()
	answer(w, op.object)
}

// tick brings an operation on: it ends without being waited for.
func (op *operation) tick() {
	switch {
	case op.object["status"] == "DONE":
	case op.polls != 0:
		op.polls--
		op.object["status"] = "RUNNING"
	default:
		op.object["status"], op.object["progress"] = "DONE", 100
		if op.done != nil {
			op.done()
		}
	}
}

func (s *Server) link(at string) string {
	return "https://www.googleapis.com/compute/v1/projects/" + s.Project + "/" + at
}

// complete adds what the API adds.
func (s *Server) complete(at string, o object) object {
	s.next++
	o["selfLink"], o["name"], o["id"] = s.link(at), path.Base(at), fmt.Sprint(s.next)
	o["creationTimestamp"] = time.Unix(int64(1_700_000_000+s.next), 0).UTC().Format(time.RFC3339)
	parts := strings.Split(at, "/")
	switch parts[0] {
	case "zones":
		o["zone"] = s.link("zones/" + parts[1])
	case "regions":
		o["region"] = s.link("regions/" + parts[1])
	}
	return o
}

var rfc1035 = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (s *Server) insert(r *http.Request, collection string, o object) (int, string, string, func()) {
	name := text(o, "name")
	at := collection + "/" + name
	if !rfc1035.MatchString(name) {
		return http.StatusBadRequest, "invalid", "Invalid value for field 'resource.name': '" + name + "'", nil
	}
	if s.compute[at] != nil {
		return http.StatusConflict, "alreadyExists", "The resource 'projects/" + s.Project + "/" + at + "' already exists", nil
	}
	for k, v := range objectOf(o["labels"]) {
		if len(v.(string)) > 63 || !regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`).MatchString(k) || !regexp.MustCompile(`^[a-z0-9_-]*$`).MatchString(v.(string)) {
			return http.StatusBadRequest, "invalid", fmt.Sprintf("Invalid label %s=%s", k, v), nil
		}
	}
	done := func() {}
	switch kind := path.Base(collection); kind {
	case "images":
		source := strings.TrimPrefix(text(objectOf(o["rawDisk"]), "source"), "https://storage.googleapis.com/")
		b, object, _ := strings.Cut(source, "/")
		if s.buckets[b] == nil || s.buckets[b].objects[object] == nil {
			return http.StatusBadRequest, "invalid", "The object " + source + " does not exist", nil
		}
		o["status"] = "PENDING"
		done = func() { o["status"] = "READY" }
	case "instances":
		if t := r.URL.Query().Get("sourceInstanceTemplate"); t != "" {
			template := s.byLink(t)
			if template == nil {
				return http.StatusBadRequest, "invalid", "no template " + t, nil
			}
			for k, v := range clone(objectOf(template["properties"])) {
				if o[k] == nil {
					o[k] = v
				}
			}
		}
		if ip := address(o); ip != "" {
			for other, x := range s.compute {
				if strings.Contains(other, "/instances/") && address(x) == ip {
					return http.StatusBadRequest, "ipInUse", "IP " + ip + " is in use by " + other, nil
				}
			}
		}
		o["status"] = "PROVISIONING"
		done = func() { o["status"] = "RUNNING" }
	case "instanceGroupManagers":
		if s.byLink(text(o, "instanceTemplate")) == nil {
			return http.StatusBadRequest, "invalid", "no template " + text(o, "instanceTemplate"), nil
		}
	}
	s.compute[at] = s.complete(at, o)
	s.resize(at, o)
	return 0, "", "", done
}

// resize gives a managed group the instances that it is to have.
func (s *Server) resize(at string, o object) {
	if !strings.Contains(at, "/instanceGroupManagers/") {
		return
	}
	var want int
	fmt.Sscan(fmt.Sprint(o["targetSize"]), &want)
	dir := path.Dir(path.Dir(at)) + "/instances/"
	for i := range 100 {
		name := fmt.Sprintf("%s-%04d", text(o, "baseInstanceName"), i)
		switch have := s.compute[dir+name]; {
		case i < want && have == nil:
			vm := clone(objectOf(s.byLink(text(o, "instanceTemplate"))["properties"]))
			vm["status"] = "RUNNING"
			s.compute[dir+name] = s.complete(dir+name, vm)
		case i >= want && have != nil:
			delete(s.compute, dir+name)
		}
	}
}

func (s *Server) remove(at string) (int, string, string, func()) {
	o := s.compute[at]
	if o == nil {
		return http.StatusNotFound, "notFound", at + " was not found", nil
	}
	if strings.Contains(at, "instanceTemplates/") {
		for other, x := range s.compute {
			if strings.Contains(other, "/instanceGroupManagers/") && strings.HasSuffix(text(x, "instanceTemplate"), at) {
				return http.StatusBadRequest, "resourceInUseByAnotherResource", at + " is already being used by " + other, nil
			}
		}
	}
	if strings.Contains(at, "/instanceGroupManagers/") {
		o["targetSize"] = 0
		s.resize(at, o)
	}
	delete(s.compute, at)
	return 0, "", "", nil
}

func (s *Server) byLink(link string) object {
	_, at, _ := strings.Cut(link, "projects/"+s.Project+"/")
	return s.compute[at]
}

// list answers with a collection, or with all of a kind by zone or region.
func (s *Server) list(w http.ResponseWriter, r *http.Request, at string, aggregated bool) {
	var keys []string
	for k, o := range s.compute {
		in := path.Dir(k) == at
		if aggregated {
			in = path.Base(path.Dir(k)) == at
		}
		if in && matches(r.URL.Query().Get("filter"), o) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	all := make([]object, len(keys))
	for i, k := range keys {
		all[i] = object{"at": path.Dir(path.Dir(k)), "object": s.compute[k]}
	}
	part, next := page(r, all)
	out := object{"kind": "compute#list"}
	if next != "" {
		out["nextPageToken"] = next
	}
	scopes, items := object{"zones/nowhere-a": object{"warning": object{"code": "NO_RESULTS_ON_PAGE"}}}, []object{}
	for _, x := range part {
		o := x["object"].(object)
		items = append(items, o)
		scope := objectOf(scopes[x["at"].(string)])
		list, _ := scope[at].([]object)
		scope[at] = append(list, o)
		scopes[x["at"].(string)] = scope
	}
	if out["items"] = items; aggregated {
		out["items"] = scopes
	}
	answer(w, out)
}

var term = regexp.MustCompile(`\(?([a-zA-Z.-]+)\s*(=|:)\s*"([^"]*)"\)?`)

// matches knows the filters that are asked for: fields that equal or contain a text, all of them.
func matches(filter string, o object) bool {
	for _, m := range term.FindAllStringSubmatch(filter, -1) {
		v := text(o, m[1])
		if label, ok := strings.CutPrefix(m[1], "labels."); ok {
			v = text(objectOf(o["labels"]), label)
		}
		if m[2] == "=" && v != m[3] || m[2] == ":" && !strings.Contains(v, m[3]) {
			return false
		}
	}
	return true
}

func objectOf(v any) object {
	o, _ := v.(map[string]any)
	if o == nil {
		o = object{}
	}
	return o
}

// address is an instance's own.
func address(o object) string {
	cards, _ := o["networkInterfaces"].([]any)
	if len(cards) == 0 {
		return ""
	}
	return text(objectOf(cards[0]), "networkIP")
}

func clone(o object) object {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return decode(data)
}
