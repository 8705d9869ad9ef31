// Package fetch downloads files into the cache: resumed after an interruption,
// verified before they get their name, taken from a mirror where one is set.
//
// A mirror is a directory or URL under which every file lies at its usual
// place, the host's name first: MIRROR/dl.k8s.io/release/v1.37.2/….
// There is no way to download without verification except FetchSmall and FetchFresh,
// which are for checksum files, and what names versions and signatures.
package fetch

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/progress"
)

const (
	attempts   = 4
	stallAfter = 60 * time.Second
	smallBytes = 1 << 20 // checksum files are never larger
)

var client = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
	TLSHandshakeTimeout:   15 * time.Second,
	ResponseHeaderTimeout: 30 * time.Second,
	IdleConnTimeout:       30 * time.Second,
}}

// Source is where files come from.
type Source struct {
	Mirror  string // directory or URL; empty: the files' own hosts
	Cache   *cache.Cache
	Offline bool
	Fresh   bool // FetchSmall asks anew what it has, unless Offline
	Report  *progress.Reporter
}

// Local says whether everything comes from a directory: then nothing is offline.
func (s Source) Local() bool { return s.Mirror != "" && !strings.Contains(s.Mirror, "://") }

// forbidden is the error for what is not in the cache and may not be fetched.
func (s Source) forbidden(raw string) error {
	if !s.Offline || s.Local() || strings.HasPrefix(raw, "file:") {
		return nil
	}
	return fmt.Errorf("%s: %w", raw, ErrOffline)
}

// ErrOffline says that something is not in the cache and may not be fetched.
var ErrOffline = errors.New("not in the cache, and --offline forbids fetching")

// ErrUnavailable says that a server cannot be reached or does not have a file,
// or that a mirror's directory does not.
var ErrUnavailable = errors.New("cannot be fetched")

// unavailable is the error of one file; the URL that net/http puts before its
// reason is there already.
func unavailable(where string, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return fmt.Errorf("%s %w: %w", where, ErrUnavailable, err)
}

// Request names one file.
type Request struct {
	URL    string
	SHA256 string // hex; this or SHA512 must be given
	SHA512 string
	// Judge makes who judges the content besides, nil: nobody. A file is judged once, while it
	// arrives; Judged says by what.
	Judge  func() Judge
	Judged string
}

// Judge sees every byte of a file once, in order, while it arrives.
type Judge interface {
	io.WriteCloser  // closed without a verdict if the file never becomes whole
	Verdict() error // after the last byte
}

// locate maps a URL into the mirror: a local path, or a URL.
func (s Source) locate(raw string) (local, remote string, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", "", fmt.Errorf("%q is not a URL: %w", raw, err)
	}
	switch {
	case u.Scheme == "file":
		return u.Path, "", nil
	case s.Mirror == "":
		return "", raw, nil
	case strings.Contains(s.Mirror, "://"):
		at := strings.TrimRight(s.Mirror, "/") + "/" + u.Host + u.EscapedPath()
		if u.RawQuery != "" {
			at += "?" + u.RawQuery
		}
		return "", at, nil
	}
	local, err = MirrorPath(s.Mirror, raw)
	return local, "", err
}

// MirrorPath is where a mirror's directory has the file of a URL.
func MirrorPath(dir, raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("%q is not a URL: %w", raw, err)
	}
	if u.Host == "" || strings.Trim(u.Host, ".") == "" || strings.ContainsAny(u.Host, `/\\`) {
		return "", fmt.Errorf("%q names no host", raw)
	}
	return filepath.Join(dir, u.Host, filepath.FromSlash(path.Clean("/"+u.Path))), nil
}

// Get returns the path of the verified file in the cache.
func (s Source) Get(ctx context.Context, r Request) (string, error) {
	if r.SHA256 == "" && r.SHA512 == "" {
		return "", fmt.Errorf("BUG: %s is to be fetched without a checksum", r.URL)
	}
	name := path.Base(r.URL)
	key := cache.Key("file", r.SHA256, r.SHA512, name)
	entry, hit, err := s.Cache.Dir(ctx, "download", key, func(ctx context.Context, dir string) error {
		if err := s.forbidden(r.URL); err != nil {
			return err
		}
		return s.download(ctx, r, key, filepath.Join(dir, name))
	})
	if err != nil {
		return "", err
	}
	file := filepath.Join(entry, name)
	if r.Judge == nil {
		return file, nil
	}
	_, _, err = s.Cache.Dir(ctx, "judged", cache.Key(key, r.Judged), func(ctx context.Context, dir string) error {
		if hit { // by its digest alone
			if err := s.Cache.Verify(ctx, entry); err != nil {
				return err
			}
			if err := r.judge(file); err != nil {
				return fmt.Errorf("%s: %w", r.URL, err)
			}
		}
		return os.WriteFile(filepath.Join(dir, "by"), []byte(r.Judged+"\n"), 0o644)
	})
	return file, err
}

// judge has a file judged that is complete.
func (r Request) judge(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	j := r.Judge()
	if _, err := io.Copy(j, f); err != nil {
		j.Close()
		return err
	}
	return j.Verdict()
}

// download is called with the entry's lock held, so the partial file is this
// process's alone.
func (s Source) download(ctx context.Context, r Request, key, final string) error {
	partials := filepath.Join(s.Cache.Root, "partial")
	if err := os.MkdirAll(partials, 0o755); err != nil {
		return err
	}
	partial := filepath.Join(partials, key)
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	local, remote, err := s.locate(r.URL)
	if err != nil {
		return err
	}
	seen := &inspector{request: r, file: f}
	seen.begin()
	defer seen.close()
	if local != "" {
		err = copyLocal(f, local)
	} else {
		err = s.resume(ctx, f, remote, seen)
	}
	if err != nil {
		return err
	}
	if err := seen.verdict(); err != nil {
		os.Remove(partial)
		where := local + remote
		return fmt.Errorf("%s: %w; it was deleted: try again, and if it stays so do not trust that server", where, err)
	}
	if err := os.Rename(partial, final); err != nil {
		return err
	}
	return os.Chmod(final, 0o644)
}

func copyLocal(f *os.File, local string) error {
	in, err := os.Open(local)
	if err != nil {
		return unavailable(local, err)
	}
	defer in.Close()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return err
}

// resume appends what is missing to f, again after each interruption.
func (s Source) resume(ctx context.Context, f *os.File, from string, seen *inspector) error {
	var err error
	for try := range attempts {
		if try > 0 {
			s.Report.Logf("%s: %v: trying again", from, err)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(try*try) * 500 * time.Millisecond):
			}
		}
		var final bool
		if final, err = s.once(ctx, f, from, seen); err == nil || final {
			return err
		}
	}
	return fmt.Errorf("%w (what arrived is kept; run the command again to go on)", unavailable(from, err))
}

// once makes one request; final errors are not worth another try.
func (s Source) once(ctx context.Context, f *os.File, from string, seen *inspector) (final bool, err error) {
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return true, err
	}
	if err := seen.catchUp(); err != nil {
		return true, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return true, err
	}
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return false, nil // complete already, or wrong: the checksum tells
	case resp.StatusCode == http.StatusOK && have > 0:
		if err := f.Truncate(0); err != nil {
			return true, err
		}
		if have, err = f.Seek(0, io.SeekStart); err != nil {
			return true, err
		}
		seen.begin()
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return false, fmt.Errorf("the server answers %s", resp.Status)
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent:
		return true, unavailable(from, fmt.Errorf("the server answers %s", resp.Status))
	}
	bar := s.Report.Bar(path.Base(from), max(0, resp.ContentLength)+have)
	defer bar.Done()
	bar.Add(have)
	stall := time.AfterFunc(stallAfter, func() { cancel(errors.New("no data for a minute")) })
	defer stall.Stop()
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			stall.Reset(stallAfter)
			if _, werr := f.Write(buf[:n]); werr != nil {
				return true, werr
			}
			seen.write(buf[:n])
			bar.Add(int64(n))
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return false, err
		}
	}
}

// FetchSmall returns a checksum file or the like, at most 1 MiB. It is kept in
// the cache under its URL, so that --offline finds it again.
func (s Source) FetchSmall(ctx context.Context, raw string) ([]byte, error) {
	key := cache.Key(s.Mirror, raw)
	if s.Fresh && s.forbidden(raw) == nil {
		s.Cache.Forget("small", key)
	}
	entry, _, err := s.Cache.Dir(ctx, "small", key, func(ctx context.Context, dir string) error {
		if err := s.forbidden(raw); err != nil {
			return err
		}
		data, err := s.small(ctx, raw)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "content"), data, 0o644)
	})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(entry, "content"))
}

func (s Source) small(ctx context.Context, raw string) ([]byte, error) {
	local, remote, err := s.locate(raw)
	if err != nil {
		return nil, err
	}
	if local != "" {
		if entries, err := os.ReadDir(local); err == nil {
			return listing(entries), nil
		}
		f, err := os.Open(local)
		if err != nil {
			return nil, unavailable(local, err)
		}
		defer f.Close()
		return readSmall(f, local)
	}
	ctx, cancel := context.WithTimeout(ctx, stallAfter)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, remote, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, unavailable(remote, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, unavailable(remote, fmt.Errorf("the server answers %s", resp.Status))
	}
	return readSmall(resp.Body, remote)
}

func readSmall(r io.Reader, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, smallBytes+1))
	if err == nil && len(data) > smallBytes {
		err = fmt.Errorf("%s is longer than a checksum file", name)
	}
	return data, err
}

// listing is a directory as far as a server's page about it is read: its names.
func listing(entries []os.DirEntry) []byte {
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(e.Name())
		if e.IsDir() {
			b.WriteByte('/')
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// FetchFresh returns a small file as it is on the server now. Nothing is kept of it:
// that is for what its caller makes of it, once it is verified.
func (s Source) FetchFresh(ctx context.Context, raw string) ([]byte, error) {
	if err := s.forbidden(raw); err != nil {
		return nil, err
	}
	return s.small(ctx, raw)
}

// Checksum finds name's digest in a checksum file: one bare digest, lines of
// "DIGEST  NAME" as sha256sum writes them, or of "SHA256 (NAME) = DIGEST" as BSD does.
// hexDigits is its length.
func Checksum(data []byte, name string, hexDigits int) (string, error) {
	var all []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 4 && f[2] == "=" && strings.HasPrefix(f[1], "(") {
			f = []string{f[3], strings.Trim(f[1], "()")}
		}
		if len(f) == 0 || len(f[0]) != hexDigits {
			continue
		}
		if _, err := hex.DecodeString(f[0]); err != nil {
			continue
		}
		if len(f) > 1 && path.Base(strings.TrimPrefix(f[1], "*")) == name {
			return strings.ToLower(f[0]), nil
		}
		if len(f) == 1 {
			all = append(all, strings.ToLower(f[0]))
		}
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return "", fmt.Errorf("the checksum file does not name %s", name)
}

// Reachable says whether a server answers at all within five seconds.
func Reachable(ctx context.Context, raw string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, raw, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode < 400
}
