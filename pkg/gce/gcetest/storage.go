package gcetest

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

type bucket struct {
	object  object
	objects map[string][]byte
	policy  object
	version int
}

type session struct {
	bucket, name string
	data         []byte
	size         int64
	dropped      map[int64]bool
}

func (s *Server) serveStorage(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	parts := strings.Split(strings.TrimPrefix(strings.TrimPrefix(r.URL.EscapedPath(), "/upload"), "/storage/v1/b"), "/")
	if id == "storage.buckets.insert" {
		o := decode(body)
		if s.buckets[text(o, "name")] != nil {
			fail(w, http.StatusConflict, "conflict", "The requested bucket name is not available.")
			return
		}
		s.buckets[text(o, "name")] = &bucket{object: o, objects: map[string][]byte{}, policy: object{"bindings": []any{}}}
		answer(w, o)
		return
	}
	b := s.buckets[parts[1]]
	if b == nil {
		fail(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	}
	name := ""
	if len(parts) > 3 {
		name, _ = url.PathUnescape(parts[3])
	}
	switch id {
	case "storage.buckets.get":
		answer(w, b.object)
	case "storage.buckets.delete":
		if len(b.objects) > 0 {
			fail(w, http.StatusConflict, "conflict", "The bucket you tried to delete is not empty.")
			return
		}
		delete(s.buckets, parts[1])
		w.WriteHeader(http.StatusNoContent)
	case "storage.buckets.getIamPolicy":
		b.policy["etag"] = fmt.Sprint("v", b.version)
		answer(w, b.policy)
	case "storage.buckets.setIamPolicy":
		p := decode(body)
		if e := text(p, "etag"); e != "" && e != fmt.Sprint("v", b.version) {
			fail(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
			return
		}
		b.version++
		b.policy = p
		answer(w, p)
	case "storage.objects.get":
		if b.objects[name] == nil {
			fail(w, http.StatusNotFound, "notFound", "No such object: "+name)
			return
		}
		answer(w, described(parts[1], name, b.objects[name]))
	case "storage.objects.delete":
		if b.objects[name] == nil {
			fail(w, http.StatusNotFound, "notFound", "No such object: "+name)
			return
		}
		delete(b.objects, name)
		w.WriteHeader(http.StatusNoContent)
	case "storage.objects.list":
		var all []object
		for n, data := range b.objects {
			if strings.HasPrefix(n, r.URL.Query().Get("prefix")) {
				all = append(all, described(parts[1], n, data))
			}
		}
		slices.SortFunc(all, func(a, b object) int { return strings.Compare(text(a, "name"), text(b, "name")) })
		part, next := page(r, all)
		answer(w, object{"kind": "storage#objects", "items": part, "nextPageToken": next})
	case "storage.objects.insert":
		s.insertObject(w, r, parts[1], b, body)
	default:
		fail(w, http.StatusNotImplemented, "notImplemented", "the test's server does not do "+id)
	}
}

func (s *Server) insertObject(w http.ResponseWriter, r *http.Request, in string, b *bucket, body []byte) {
	name := r.URL.Query().Get("name")
	if r.URL.Query().Get("uploadType") == "media" {
		b.objects[name] = bytes.Clone(body)
		answer(w, described(in, name, body))
		return
	}
	s.next++
	id := fmt.Sprint("session-", s.next)
	size, _ := strconv.ParseInt(r.Header.Get("X-Upload-Content-Length"), 10, 64)
	s.sessions[id] = &session{bucket: in, name: name, size: size, dropped: map[int64]bool{}}
	w.Header().Set("Location", s.URL+r.URL.Path+"?uploadType=resumable&upload_id="+id)
	w.WriteHeader(http.StatusOK)
}

// serveChunk takes a part of an upload, and loses Drop bytes at the end of each the first
// time.
func (s *Server) serveChunk(w http.ResponseWriter, r *http.Request, body []byte) {
	u := s.sessions[r.URL.Query().Get("upload_id")]
	if u == nil {
		fail(w, http.StatusGone, "gone", "the upload has expired")
		return
	}
	var first, last, size int64
	if n, _ := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); n == 3 {
		switch {
		case size != u.size || last-first+1 != int64(len(body)):
			fail(w, http.StatusBadRequest, "invalid", "Content-Range "+r.Header.Get("Content-Range")+" does not fit what was sent")
			return
		case first > int64(len(u.data)):
			fail(w, http.StatusServiceUnavailable, "backendError", "bytes before these are missing")
			return
		case last+1 < size && (last+1-first)%(256<<10) != 0:
			fail(w, http.StatusBadRequest, "invalid", "chunks are multiples of 256 KiB")
			return
		}
		if s.Drop > 0 && !u.dropped[first] {
			u.dropped[first] = true
			body = body[:max(0, len(body)-s.Drop)]
		}
		u.data = append(u.data[:first], body...)
	}
	if int64(len(u.data)) < u.size {
		if len(u.data) > 0 {
			w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(u.data)-1))
		}
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	s.buckets[u.bucket].objects[u.name] = u.data
	answer(w, described(u.bucket, u.name, u.data))
}

// ExpireUploads forgets all uploads that are underway.
func (s *Server) ExpireUploads() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
}

// Object is an object's content; nil: there is none.
func (s *Server) Object(bucket, name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[bucket] == nil {
		return nil
	}
	return bytes.Clone(s.buckets[bucket].objects[name])
}

// PutBucket makes a bucket of somebody else's, with objects.
func (s *Server) PutBucket(name string, objects map[string][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buckets[name] = &bucket{object: object{"name": name, "iamConfiguration": object{"uniformBucketLevelAccess": object{"enabled": true}}}, objects: objects, policy: object{"bindings": []any{object{"role": "roles/storage.admin", "members": []any{"user:somebody@example.com"}}}}}
}

// Policy is who may do what in a bucket, as JSON.
func (s *Server) Policy(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[name] == nil {
		return ""
	}
	data, err := json.Marshal(s.buckets[name].policy["bindings"])
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func described(bucket, name string, data []byte) object {
	hash := md5.Sum(data)
	return object{"kind": "storage#object", "bucket": bucket, "name": name, "size": strconv.Itoa(len(data)), "md5Hash": base64.StdEncoding.EncodeToString(hash[:])}
}
