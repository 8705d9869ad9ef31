// Package need says what a test needs of its machine. Without it a test is
// skipped; in CI (the environment variable CI is set) it fails, because what is
// skipped there proves nothing. It is for tests alone.
package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Root is needed for what why says.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, why+" needs root")
	}
}

// Program returns the path of a program that a Debian package has.
func Program(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name+" is missing: apt-get install "+pkg)
	}
	return path
}

// Built returns the path of a program that a bake from source left in kimage's
// cache (KIMAGE_CACHE, or the user's): one of them, if there are several.
func Built(t testing.TB, name string) string {
	t.Helper()
	cache := os.Getenv("KIMAGE_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "kimage")
	}
	found, err := filepath.Glob(filepath.Join(cache, "entries/program/*", name))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		missing(t, "no "+name+" in "+cache+": kimage build --components source puts it there")
		return ""
	}
	return found[0]
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}
