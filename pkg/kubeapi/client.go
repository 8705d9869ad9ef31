// Package kubeapi is a small client of the Kubernetes API: JSON over HTTPS, in
// the few verbs that an agent on a node needs, without the hundred packages of
// the official client. It does not watch, does not retry and keeps no cache:
// callers poll.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// maxAnswerBytes bounds what is read of one answer.
const maxAnswerBytes = 64 << 20

// Config says which API server, and as whom.
type Config struct {
	Server    string                    // https://HOST:PORT
	CA        []byte                    // PEM bundle that the server's certificate must come from
	Cert, Key []byte                    // PEM client certificate; empty: none
	Token     string                    // bearer token; empty: none
	Timeout   time.Duration             // of one request; 0: 30 s
	Manager   string                    // field manager of changes; empty: kimage
	Changed   func(method, path string) // told of each change that was made; nil: nobody
}

// Client talks to one API server (or to a balancer before several).
type Client struct {
	server  string
	token   string
	manager string
	changed func(method, path string)
	http    *http.Client

	mu        sync.Mutex
	resources map[string]map[string]resource // API version to kind
}

// New makes a client; it does not connect.
func New(c Config) (*Client, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.CA) {
		return nil, errors.New("the authority of the API server is not a PEM certificate")
	}
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if len(c.Cert) > 0 {
		pair, err := tls.X509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Manager == "" {
		c.Manager = "kimage"
	}
	// No proxy: the way to the cluster's own API never leads through one.
	transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: max(min(c.Timeout, 10*time.Second), c.Timeout/2), // emulated machines take long
		// A machine that lost its power does not close its connections.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second}}
	return &Client{server: strings.TrimSuffix(c.Server, "/"), token: c.Token, manager: c.Manager, changed: c.Changed,
		http: &http.Client{Transport: transport, Timeout: c.Timeout}, resources: map[string]map[string]resource{}}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is an answer of the API server that is not a success.
type Error struct {
	Code    int    // HTTP status
	Reason  string // "NotFound", "Conflict", ...; empty: not an answer of the API itself
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the API server answers %d %s", e.Code, http.StatusText(e.Code))
	}
	return fmt.Sprintf("the API server answers %d: %s", e.Code, e.Message)
}

// Is says whether err is an answer with HTTP status code.
func Is(err error, code int) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// request is one HTTP request.
type request struct {
	method, path string
	query        url.Values
	contentType  string
	accept       string
	body         []byte
}

// do sends r and decodes the answer into out (nil: ignored; *string: as it is).
func (c *Client) do(ctx context.Context, r request, out any) error {
	u := c.server + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, bytes.NewReader(r.body))
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if r.accept != "" {
		req.Header.Set("Accept", r.accept)
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	answer, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("reading the answer to %s %s: %w", r.method, r.path, err)
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		e := &Error{Code: answer.StatusCode}
		var status struct{ Kind, Reason, Message string }
		if json.Unmarshal(data, &status) == nil && status.Kind == "Status" {
			e.Reason, e.Message = status.Reason, status.Message
		} else {
			e.Message = strings.TrimSpace(string(data[:min(len(data), 300)]))
		}
		return e
	}
	if c.changed != nil && r.method != http.MethodGet {
		c.changed(r.method, r.path)
	}
	switch out := out.(type) {
	case nil:
		return nil
	case *string:
		*out = string(data)
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("reading the answer to %s %s: %w", r.method, r.path, err)
	}
	return nil
}

// Get reads the object or list at path.
func (c *Client) Get(ctx context.Context, path string, query url.Values, out any) error {
	return c.do(ctx, request{method: http.MethodGet, path: path, query: query}, out)
}

// Metadata reads the list at path without spec and status.
func (c *Client) Metadata(ctx context.Context, path string, query url.Values, out any) error {
	return c.do(ctx, request{method: http.MethodGet, path: path, query: query,
		accept: "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}, out)
}

// Create makes an object below the collection at path.
func (c *Client) Create(ctx context.Context, path string, object, out any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return c.do(ctx, request{method: http.MethodPost, path: path, query: url.Values{"fieldManager": {c.manager}}, contentType: "application/json", body: body}, out)
}

// Merge changes an existing object by a JSON merge patch (RFC 7386). With
// metadata.resourceVersion or uid in the patch it changes that object only.
func (c *Client) Merge(ctx context.Context, path string, patch any) error {
	body, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return c.do(ctx, request{method: http.MethodPatch, path: path, query: url.Values{"fieldManager": {c.manager}}, contentType: "application/merge-patch+json", body: body}, nil)
}

// Delete deletes the object at path if it has that UID (empty: any). What is
// not there is deleted already.
func (c *Client) Delete(ctx context.Context, path, uid string) error {
	return c.delete(ctx, path, uid, map[string]any{"apiVersion": "v1", "kind": "DeleteOptions"})
}

// DeleteNow deletes an object as Delete does, a pod without waiting for a kubelet
// to end it: it must be certain that it runs nowhere.
func (c *Client) DeleteNow(ctx context.Context, path, uid string) error {
	return c.delete(ctx, path, uid, map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})
}

func (c *Client) delete(ctx context.Context, path, uid string, options map[string]any) error {
	if uid != "" {
		options["preconditions"] = map[string]string{"uid": uid}
	}
	body, err := json.Marshal(options)
	if err != nil {
		return err
	}
	err = c.do(ctx, request{method: http.MethodDelete, path: path, contentType: "application/json", body: body}, nil)
	if Is(err, http.StatusNotFound) {
		return nil
	}
	return err
}
