package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Pull copies the image of ref for arch from its registry, or from a mirror
// (directory or URL that has the registry's paths below the registry's name:
// MIRROR/registry.k8s.io/v2/pause/manifests/3.10.2), into an OCI layout at
// dir. Every blob is verified against the manifest, the manifest only by the
// transport.
func Pull(ctx context.Context, ref, arch, mirror, dir string) error {
	r, err := name.ParseReference(ref)
	if err != nil {
		return fmt.Errorf("%q is not an image's name: %w", ref, err)
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch})}
	if mirror != "" {
		opts = append(opts, remote.WithTransport(mirrored{mirror, remote.DefaultTransport}))
	}
	img, err := remote.Image(r, opts...)
	if err != nil {
		return fmt.Errorf("pulling %s: %w", ref, err)
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := p.AppendImage(img); err != nil {
		return fmt.Errorf("pulling %s: %w", ref, err)
	}
	return nil
}

// mirrored answers a registry's requests from a static copy of its paths.
type mirrored struct {
	base string
	next http.RoundTripper
}

func (m mirrored) RoundTrip(req *http.Request) (*http.Response, error) {
	p := path.Clean(req.URL.Path)
	if p == "/v2" { // the version check, which a directory of files cannot answer
		return answer(req, http.StatusOK, "application/json", []byte("{}")), nil
	}
	var resp *http.Response
	if strings.Contains(m.base, "://") {
		target, err := url.Parse(strings.TrimRight(m.base, "/") + "/" + req.URL.Host + p)
		if err != nil {
			return nil, err
		}
		out := req.Clone(req.Context())
		out.URL, out.Host = target, target.Host
		if resp, err = m.next.RoundTrip(out); err != nil {
			return nil, err
		}
		resp.Request = req
	} else {
		f, err := os.Open(filepath.Join(m.base, req.URL.Host, filepath.FromSlash(p)))
		if err != nil {
			return answer(req, http.StatusNotFound, "application/json", []byte("{}")), nil
		}
		fi, err := f.Stat()
		if err != nil {
			return nil, err
		}
		resp = answer(req, http.StatusOK, "application/octet-stream", nil)
		resp.Body, resp.ContentLength = f, fi.Size()
	}
	if resp.StatusCode == http.StatusOK && strings.Contains(p, "/manifests/") {
		return typed(resp)
	}
	return resp, nil
}

// typed gives a manifest the content type that it names itself.
func typed(resp *http.Response) (*http.Response, error) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(data, &m); err == nil && m.MediaType != "" {
		resp.Header.Set("Content-Type", m.MediaType)
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	return resp, nil
}

func answer(req *http.Request, status int, contentType string, body []byte) *http.Response {
	return &http.Response{Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
}
