package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func open(t *testing.T) *Cache {
	t.Helper()
	c, err := Open(t.TempDir(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func fill(content string, calls *atomic.Int32) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		calls.Add(1)
		return os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644)
	}
}

func TestManyAskersOneMaker(t *testing.T) {
	c := open(t)
	var calls atomic.Int32
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			dir, _, err := c.Dir(t.Context(), "kind", "key", fill("x", &calls))
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	group.Wait()
	if calls.Load() != 1 {
		t.Errorf("made %d times", calls.Load())
	}
}

func TestFailedMakerLeavesNothing(t *testing.T) {
	c := open(t)
	boom := errors.New("boom")
	_, _, err := c.Dir(t.Context(), "kind", "key", func(_ context.Context, dir string) error {
		os.WriteFile(filepath.Join(dir, "half"), nil, 0o644)
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if _, ok := c.Lookup("kind", "key"); ok {
		t.Error("the entry exists")
	}
	if left, _ := os.ReadDir(filepath.Join(c.Root, "scratch")); len(left) != 0 {
		t.Errorf("%d things are left in scratch", len(left))
	}
}

func TestTruncatedEntryIsMadeAgain(t *testing.T) {
	c := open(t)
	var calls atomic.Int32
	dir, hit, err := c.Dir(t.Context(), "kind", "key", fill("content", &calls))
	if err != nil || hit {
		t.Fatal(hit, err)
	}
	if err := os.Truncate(filepath.Join(dir, "file"), 3); err != nil {
		t.Fatal(err)
	}
	if _, hit, err = c.Dir(t.Context(), "kind", "key", fill("content", &calls)); err != nil || hit || calls.Load() != 2 {
		t.Errorf("hit %t, %v, made %d times", hit, err, calls.Load())
	}
	if _, hit, _ = c.Dir(t.Context(), "kind", "key", fill("content", &calls)); !hit {
		t.Error("a good entry was made again")
	}
}

func TestVerifyDiscardsWhatChanged(t *testing.T) {
	c := open(t)
	var calls atomic.Int32
	dir, _, err := c.Dir(t.Context(), "kind", "key", fill("content", &calls))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("Content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "discarded") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the damaged entry is still there")
	}
}

func TestOpenSaysAtTheEndThatSomethingChanged(t *testing.T) {
	c := open(t)
	var calls atomic.Int32
	dir, _, err := c.Dir(t.Context(), "kind", "key", fill("content", &calls))
	if err != nil {
		t.Fatal(err)
	}
	read := func() (string, error) {
		f, err := c.Open(t.Context(), dir, "file")
		if err != nil {
			return "", err
		}
		defer f.Close()
		var data bytes.Buffer
		_, err = io.Copy(struct{ io.Writer }{&data}, f)
		return data.String(), err
	}
	if got, err := read(); got != "content" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("Content"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := read(); err == nil || !strings.Contains(err.Error(), "discarded") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the damaged entry is still there")
	}
}

func TestKeyDependsOnEveryInput(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range []string{Key("a", "b"), Key("ab"), Key("a", "b", ""), Key("b", "a"), Key("1:a;", "b")} {
		if seen[k] || len(k) != 32 {
			t.Errorf("key %s", k)
		}
		seen[k] = true
	}
}

func TestClean(t *testing.T) {
	c := open(t)
	var calls atomic.Int32
	for _, kind := range []string{"a", "b"} {
		if _, _, err := c.Dir(t.Context(), kind, "key", fill("x", &calls)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Clean("a"); err != nil {
		t.Fatal(err)
	}
	usage, err := c.Usage()
	if err != nil || len(usage) != 1 || usage[0].Kind != "b" || usage[0].Entries != 1 {
		t.Errorf("%+v, %v", usage, err)
	}
}
