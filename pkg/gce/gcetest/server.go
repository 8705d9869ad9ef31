// Package gcetest is a Compute Engine and a Cloud Storage for tests: a server that judges
// every request by Google's own discovery documents and behaves as the APIs do, with
// operations, conflicts, pages, preconditions, and resumable uploads that lose bytes.
//
// It knows what kimage asks for, and refuses all else.
package gcetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Request is one that was made.
type Request struct {
	ID     string // of the method, such as compute.instances.insert
	Method string
	Path   string
	Query  url.Values
	Body   []byte
}

// Fault is an answer in place of the API's.
type Fault struct {
	Status  int // 0: none
	Reason  string
	Message string
	After   string // Retry-After
	Lost    bool   // the request is carried out, and the connection cut instead of an answer
}

// Server is both APIs for one project.
type Server struct {
	*httptest.Server
	Project string
	// Fault is asked about every request, with its number from 1; nil: none.
	Fault func(r Request, n int) Fault
	// Answered is told of every request when it has been carried out; nil: nobody.
	Answered func(r Request, n int)
	// Polls is how often something is looked up until an operation ends; -1: it never does.
	Polls int
	// Drop is how many bytes of each chunk of an upload are lost.
	Drop int
	// FailOperation ends operations of a method with an error, by its code and message.
	FailOperation map[string][2]string

	t         testing.TB
	documents []*discovery

	mu       sync.Mutex
	requests []Request
	wrong    []string
	compute  map[string]object // by path below the project
	ops      map[string]*operation
	asked    map[string]string // requestId to operation
	buckets  map[string]*bucket
	sessions map[string]*session
	next     int
}

type object = map[string]any

const pageSize = 2

// New starts a server, which ends with the test. What was asked of it against Google's
// documents fails the test.
func New(t testing.TB) *Server {
	t.Helper()
	all, err := documents()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Project: "my-project", t: t, documents: all, compute: map[string]object{}, ops: map[string]*operation{}, asked: map[string]string{}, buckets: map[string]*bucket{}, sessions: map[string]*session{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.Close()
		for _, w := range s.Wrong() {
			t.Errorf("against Google's discovery documents: %s", w)
		}
	})
	return s
}

// Wrong are the requests that were against the documents.
func (s *Server) Wrong() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.wrong)
}

// Requests are all that were made.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Forget begins the list of requests anew.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// All are the names of all that is in the project: kinds and names, buckets, objects.
func (s *Server) All() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = slices.Collect(maps.Keys(s.compute))
	for name, b := range s.buckets {
		all = append(all, "gs://"+name)
		for o := range b.objects {
			all = append(all, "gs://"+name+"/"+o)
		}
	}
	slices.Sort(all)
	return all
}

// Resource is one of Compute Engine's, by its path below the project; nil: none.
func (s *Server) Resource(path string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.compute[path])
}

// Put puts something there that somebody else made.
func (s *Server) Put(path string, o map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compute[path] = s.complete(path, o)
}

// Token is what the server accepts, and gives for any assertion.
const Token = "token-of-the-test"

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path == "/token" {
		s.token(w)
		return
	}
	s.mu.Lock()
	request := Request{Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.Query(), Body: body}
	if _, ok := s.sessions[r.URL.Query().Get("upload_id")]; ok || r.URL.Query().Has("upload_id") {
		request.ID = "storage.objects.insert.chunk"
	} else {
		var wrong []string
		request.ID, wrong = check(s.documents, r, body)
		s.wrong = append(s.wrong, wrong...)
	}
	s.requests = append(s.requests, request)
	n := len(s.requests)
	fault, answered := s.Fault, s.Answered
	s.mu.Unlock()
	var f Fault
	if fault != nil {
		f = fault(request, n)
	}
	if f.Status != 0 {
		if f.After != "" {
			w.Header().Set("Retry-After", f.After)
		}
		fail(w, f.Status, f.Reason, f.Message)
		return
	}
	out := httptest.NewRecorder()
	s.mu.Lock()
	switch {
	case strings.HasPrefix(r.URL.Path, "/compute/v1/projects/"+s.Project+"/"):
		s.serveCompute(out, r, request.ID, strings.TrimPrefix(r.URL.Path, "/compute/v1/projects/"+s.Project+"/"), body)
	case request.ID == "storage.objects.insert.chunk":
		s.serveChunk(out, r, body)
	case strings.HasPrefix(request.ID, "storage."):
		s.serveStorage(out, r, request.ID, body)
	default:
		fail(out, http.StatusNotFound, "notFound", "no such project or method")
	}
	s.mu.Unlock()
	if answered != nil {
		answered(request, n)
	}
	if f.Lost {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), out.Header())
	w.WriteHeader(out.Code)
	w.Write(out.Body.Bytes())
}

func (s *Server) token(w http.ResponseWriter) {
	if s.Fault != nil {
		if f := s.Fault(Request{ID: "token"}, 0); f.Status != 0 {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(f.Status)
			fmt.Fprintf(w, `{"error": %q, "error_description": %q}`, f.Reason, f.Message)
			return
		}
	}
	answer(w, object{"access_token": Token, "token_type": "Bearer", "expires_in": 3600})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// fail answers as Google's APIs do.
func fail(w http.ResponseWriter, status int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(object{"error": object{"code": status, "message": message, "errors": []object{{"reason": reason, "message": message, "domain": "global"}}}})
}

// page cuts a list, and says where the next page begins.
func page(r *http.Request, all []object) (part []object, next string) {
	at, _ := strconv.Atoi(r.URL.Query().Get("pageToken"))
	at = min(at, len(all))
	end := min(at+pageSize, len(all))
	if end < len(all) {
		next = strconv.Itoa(end)
	}
	return all[at:end], next
}

func decode(body []byte) object {
	o := object{}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	d.Decode(&o)
	return o
}

func text(o object, key string) string { v, _ := o[key].(string); return v }
