package gce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/api/googleapi"
)

// call is one request of an API.
type call struct {
	method string
	path   string // of the API: /compute/v1/..., /storage/v1/..., /upload/storage/v1/...
	query  url.Values
	body   any    // becomes JSON
	media  []byte // or this is sent as it is
	what   string // media in a dry run
	into   any    // where the answer goes; nil: nowhere
	header http.Header
}

// How often and how fast a call that may succeed later is made again. The waits add up to
// about four minutes.
const (
	attempts  = 12
	firstWait = 250 * time.Millisecond
	longest   = 32 * time.Second
)

// do makes a call until it is answered. In a dry run what would change something is
// printed, and has no answer.
func (c *Cloud) do(ctx context.Context, r call) error {
	if c.DryRun != nil && r.method != http.MethodGet {
		return c.print(r)
	}
	body := r.media
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return err
		}
	}
	return c.ask(ctx, r, body, func(res *http.Response) error {
		if r.into == nil || res.StatusCode == http.StatusNoContent {
			return nil
		}
		if err := json.NewDecoder(res.Body).Decode(r.into); err != nil {
			return fmt.Errorf("the answer of %s: %w", r.path, err)
		}
		return nil
	})
}

// ask makes a call until it succeeds, and has take read the answer.
func (c *Cloud) ask(ctx context.Context, r call, body []byte, take func(*http.Response) error) error {
	return c.again(ctx, func() error {
		res, err := c.send(ctx, r, body)
		if err != nil {
			return err
		}
		defer googleapi.CloseBody(res)
		if err := googleapi.CheckResponse(res); err != nil {
			return err
		}
		return take(res)
	}, func(err error) error { return c.explain(r, err) })
}

// again calls try until it succeeds, fails for good, or has failed too often.
func (c *Cloud) again(ctx context.Context, try func() error, explain func(error) error) error {
	wait := firstWait
	for n := 1; ; n++ {
		err := try()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		after, later := temporary(err)
		if !later || n == attempts {
			return explain(err)
		}
		// Half of it is chance, so that many clients do not come back together.
		pause := max(wait/2+rand.N(wait/2), after)
		if n > 2 {
			c.Report.Logf("%v: trying again in %s", explain(err), pause.Round(100*time.Millisecond))
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		wait = min(wait*2, longest)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// temporary says whether the same call may succeed later, and when at the earliest.
func temporary(err error) (after time.Duration, later bool) {
	if g, ok := errors.AsType[*googleapi.Error](err); ok {
		if s, err := strconv.Atoi(g.Header.Get("Retry-After")); err == nil && s >= 0 && s < 600 {
			after = time.Duration(s) * time.Second
		}
		switch g.Code {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusRequestTimeout:
			return after, true
		case http.StatusForbidden: // the old way to say 429
			return after, reason(g) == "rateLimitExceeded" || reason(g) == "userRateLimitExceeded"
		}
		return 0, false
	}
	if authentication(err) != nil {
		return 0, false
	}
	// What is left is the way there: connections that were refused, reset or cut.
	_, network := errors.AsType[*url.Error](err)
	return 0, network || errors.Is(err, io.ErrUnexpectedEOF)
}

// url is where the API is.
func (c *Cloud) url(path string, query url.Values) string {
	base := c.Endpoint
	switch {
	case base != "":
	case strings.HasPrefix(path, "/compute/"):
		base = "https://compute.googleapis.com"
	default:
		base = "https://storage.googleapis.com"
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return base + path
}

func (c *Cloud) send(ctx context.Context, r call, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, c.url(r.path, r.query), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "kimage")
	switch {
	case r.body != nil:
		req.Header.Set("Content-Type", "application/json")
	case r.media != nil:
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	return c.http.Do(req)
}

// print shows a call that is not made.
func (c *Cloud) print(r call) error {
	var b bytes.Buffer
	query := url.Values{}
	for k, v := range r.query {
		if k != "requestId" { // of this run alone
			query[k] = v
		}
	}
	fmt.Fprintf(&b, "%s %s\n", r.method, c.url(r.path, query))
	switch {
	case r.body != nil:
		data, err := json.MarshalIndent(r.body, "  ", "  ")
		if err != nil {
			return err
		}
		text := string(data)
		for secret, instead := range c.secret {
			quoted, err := json.Marshal(secret)
			if err != nil {
				return err
			}
			text = strings.ReplaceAll(text, string(quoted), strconv.Quote(instead))
		}
		fmt.Fprintf(&b, "  %s\n", text)
	case r.what != "":
		fmt.Fprintf(&b, "  (%s)\n", r.what)
	}
	_, err := c.DryRun.Write(b.Bytes())
	return err
}
