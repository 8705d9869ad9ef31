package gce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"google.golang.org/api/googleapi"
	storage "google.golang.org/api/storage/v1"

	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// chunkBytes is how much is sent at once, and lost at most when the network is: the
// protocol wants multiples of 256 KiB.
const chunkBytes = 8 << 20

// uploadState is kept beside a file that is being uploaded: an upload that was cut off
// goes on where Google has it, for a week. Whoever has the session may write that one
// object, so nobody else reads it.
type uploadState struct {
	Object  string `json:"object"` // bucket and name; its name has the content's digest
	Session string `json:"session"`
}

// errSession says that Google does not know an upload any more.
var errSession = errors.New("the upload has expired")

// upload puts a large file into the bucket
// (https://cloud.google.com/storage/docs/performing-resumable-uploads).
func (c *Cloud) upload(ctx context.Context, file *os.File, size int64, object, md5 string) error {
	if c.DryRun != nil {
		return c.print(call{method: http.MethodPost, path: "/upload" + c.bucketPath("o"), query: url.Values{"uploadType": {"resumable"}, "name": {object}}, what: fmt.Sprintf("%d bytes in chunks, md5 %s", size, md5)})
	}
	state := file.Name() + ".upload"
	for fresh := 0; ; fresh++ {
		s, err := c.session(ctx, state, size, object)
		if err != nil {
			return err
		}
		o, err := c.transfer(ctx, s, file, size)
		const sessions = 5
		if errors.Is(err, errSession) && fresh < sessions {
			c.Report.Logf("%v: beginning again", err)
			if err := os.Remove(state); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := os.Remove(state); err != nil {
			return err
		}
		if o.Md5Hash != md5 {
			return fmt.Errorf("gs://%s/%s has another content (md5 %s) than %s (%s): the file changed while it was sent, or was damaged on its way; run this again", c.Bucket, object, o.Md5Hash, file.Name(), md5)
		}
		return nil
	}
}

// session begins an upload, or finds the one that was begun.
func (c *Cloud) session(ctx context.Context, state string, size int64, object string) (string, error) {
	where := c.url("/upload"+c.bucketPath("o"), url.Values{"uploadType": {"resumable"}, "name": {object}})
	var s uploadState
	if data, err := os.ReadFile(state); err == nil && json.Unmarshal(data, &s) == nil && s.Object == where {
		return s.Session, nil
	}
	r := call{method: http.MethodPost, path: "/upload" + c.bucketPath("o"), query: url.Values{"uploadType": {"resumable"}, "name": {object}},
		header: http.Header{"X-Upload-Content-Type": {"application/gzip"}, "X-Upload-Content-Length": {strconv.FormatInt(size, 10)}}}
	err := c.ask(ctx, r, nil, func(res *http.Response) error {
		if s = (uploadState{where, res.Header.Get("Location")}); s.Session == "" {
			return errors.New("Cloud Storage began an upload without saying where")
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	return s.Session, atomicfile.Write(state, data, 0o600)
}

// transfer sends what Google does not have yet.
func (c *Cloud) transfer(ctx context.Context, session string, file io.ReaderAt, size int64) (o storage.Object, err error) {
	bar := c.Report.Bar("uploading", size)
	defer bar.Done()
	at, done := int64(-1), false // -1: it has to be asked
	buffer := make([]byte, min(chunkBytes, size))
	explain := func(err error) error {
		return c.explain(call{method: http.MethodPut, path: "/upload" + c.bucketPath("o")}, err)
	}
	for shown := int64(0); !done; {
		// Each chunk has all its attempts, and only what gets further ends them.
		err := c.again(ctx, func() (err error) {
			if at < 0 {
				if at, done, err = c.chunk(ctx, session, fmt.Sprintf("bytes */%d", size), nil, &o); err != nil || done {
					return err
				}
			}
			from, part := at, buffer[:min(chunkBytes, size-at)]
			if _, err := file.ReadAt(part, from); err != nil {
				return err
			}
			at, done, err = c.chunk(ctx, session, fmt.Sprintf("bytes %d-%d/%d", from, from+int64(len(part))-1, size), part, &o)
			if err == nil && !done && at <= from {
				err = fmt.Errorf("Cloud Storage took nothing of a chunk at %d: %w", from, io.ErrUnexpectedEOF)
			}
			return err
		}, explain)
		if err != nil {
			return o, err
		}
		if at > shown {
			bar.Add(at - shown)
			shown = at
		}
	}
	return o, nil
}

// chunk sends some bytes, or none to ask, and learns up to where Google has the file.
func (c *Cloud) chunk(ctx context.Context, session, contentRange string, data []byte, o *storage.Object) (next int64, done bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, session, bytes.NewReader(data))
	if err != nil {
		return -1, false, err
	}
	req.Header.Set("Content-Range", contentRange)
	res, err := c.http.Do(req)
	if err != nil {
		return -1, false, err
	}
	defer googleapi.CloseBody(res)
	switch {
	case res.StatusCode == http.StatusPermanentRedirect: // "Resume Incomplete"
		last, ok := strings.CutPrefix(res.Header.Get("Range"), "bytes=0-")
		if !ok {
			return 0, false, nil // nothing yet
		}
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil {
			return -1, false, fmt.Errorf("Cloud Storage says it has %q of an upload", res.Header.Get("Range"))
		}
		return n + 1, false, nil
	case res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusGone:
		return -1, false, errSession
	}
	if err := googleapi.CheckResponse(res); err != nil {
		return -1, false, err
	}
	if err := json.NewDecoder(res.Body).Decode(o); err != nil {
		return -1, false, fmt.Errorf("the answer to an upload: %w", err)
	}
	return -1, true, nil
}
