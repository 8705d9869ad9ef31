package ignition

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"sync"
)

// dataURLs turns contents into data URLs, compressed where that is shorter.
// Butane does the same, with a new compressor of a megabyte for every file: for a
// thousand machines that is a third of the time.
type dataURLs struct {
	mu   sync.Mutex
	seen map[string]butaneContents // what many machines share
	pool sync.Pool
}

// shared is how long a content must be to be worth remembering.
const shared = 256

func (d *dataURLs) of(content []byte) (butaneContents, error) {
	if len(content) >= shared {
		d.mu.Lock()
		c, ok := d.seen[string(content)]
		d.mu.Unlock()
		if ok {
			return c, nil
		}
	}
	const prefix = "data:;base64,"
	out := butaneContents{Source: prefix + base64.StdEncoding.EncodeToString(content)}
	if len(content) == 0 {
		out.Source = "data:,"
	}
	packed, err := d.compress(content)
	if err != nil {
		return out, err
	}
	if p := prefix + base64.StdEncoding.EncodeToString(packed); len(p)+len(`"compression":"gzip",`) < len(out.Source) {
		out = butaneContents{p, "gzip"}
	}
	if len(content) >= shared {
		d.mu.Lock()
		d.seen[string(content)] = out
		d.mu.Unlock()
	}
	return out, nil
}

func (d *dataURLs) compress(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w, ok := d.pool.Get().(*gzip.Writer)
	if !ok {
		var err error
		if w, err = gzip.NewWriterLevel(&b, gzip.BestCompression); err != nil {
			return nil, err
		}
	}
	w.Reset(&b)
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	d.pool.Put(w)
	return b.Bytes(), nil
}
