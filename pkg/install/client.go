package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client is the machine's side of the protocol.
type Client struct {
	server *url.URL
	http   *http.Client
}

const (
	// stall is how long nothing may come, or go.
	stall          = 8 * time.Second
	maxAnswerBytes = 64 << 20 // of what is read whole
)

// NewClient asks the server at http://ADDRESS.
func NewClient(server string) (*Client, error) { return newClient(server, stall) }

func newClient(server string, stall time.Duration) (*Client, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("the server %q is no URL as http://192.168.1.2:8080", server)
	}
	dialer := net.Dialer{Timeout: stall}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return impatient{c, stall}, nil
		},
		ResponseHeaderTimeout: stall, DisableCompression: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: stall,
	}
	return &Client{u, &http.Client{Transport: transport}}, nil
}

// impatient is a connection on which a single read or write takes no longer than stall. A
// disk that is slower than the link does not count: then nobody reads.
type impatient struct {
	net.Conn
	stall time.Duration
}

func (c impatient) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c impatient) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Hello asks what to do.
func (c *Client) Hello(ctx context.Context, h Hello) (Plan, error) {
	var p Plan
	data, err := c.post(ctx, HelloPath, h)
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("the answer of %s: %w", c.server, err)
	}
	return p, nil
}

// Progress tells how far the installation is.
func (c *Client) Progress(ctx context.Context, p Progress) error {
	_, err := c.post(ctx, ProgressPath, p)
	return err
}

// ErrNotAsked says that the server does not know of the installation: it has lost what it
// remembered.
var ErrNotAsked = errors.New("the server did not ask for this")

// Installed tells that it ended. The server has it on disk then; ErrNotAsked: it does not
// know of the installation.
func (c *Client) Installed(ctx context.Context, p Progress) error {
	_, err := c.post(ctx, InstalledPath, p)
	return err
}

// Index reads the index of a plan.
func (c *Client) Index(ctx context.Context, p Plan) (Index, error) {
	data, err := c.Get(ctx, p.Index)
	if err != nil {
		return Index{}, err
	}
	return DecodeIndex(data, p.SHA256)
}

// Get reads what is at a URL of a plan.
func (c *Client) Get(ctx context.Context, at string) ([]byte, error) {
	resp, err := c.do(ctx, http.MethodGet, at, nil, 0)
	if err != nil {
		return nil, err
	}
	return readAll(resp)
}

// Fetch is for WriteImage.
func (c *Client) Fetch(image string) Fetch {
	return func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		resp, err := c.do(ctx, http.MethodGet, image, nil, offset)
		if err != nil {
			return nil, err
		}
		if want := fmt.Sprintf("bytes %d-", offset); offset > 0 && (resp.StatusCode != http.StatusPartialContent || !strings.HasPrefix(resp.Header.Get("Content-Range"), want)) {
			resp.Body.Close()
			return nil, wrongError{fmt.Errorf("%s answered %s to a request for what follows byte %d: it has to serve ranges", image, resp.Status, offset)}
		}
		return resp.Body, nil
	}
}

func (c *Client) post(ctx context.Context, path string, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, http.MethodPost, path, data, 0)
	if err != nil {
		return nil, err
	}
	return readAll(resp)
}

func readAll(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err == nil && len(data) > maxAnswerBytes {
		err = fmt.Errorf("more than %d MiB", maxAnswerBytes>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", resp.Request.URL, err)
	}
	return data, nil
}

// do asks for a URL, which may be a path of the server.
func (c *Client) do(ctx context.Context, method, at string, body []byte, offset int64) (*http.Response, error) {
	u, err := c.server.Parse(at)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		err := fmt.Errorf("%s %s: %s: %s", method, u, resp.Status, strings.TrimSpace(string(said)))
		if resp.StatusCode == http.StatusConflict {
			err = fmt.Errorf("%w: %w", ErrNotAsked, err)
		}
		return nil, wrongError{err}
	}
	return resp, nil
}
