// Package need says what a test needs of its machine. Without it a test is
// skipped; in CI (the environment variable CI is set) it fails, because what is
// skipped there proves nothing. It is for tests alone.
package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Root is needed for what why says.
func Root(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, why+" needs root")
	}
}

// Program returns the path of a program that a Debian package has.
func Program(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name+" is missing: apt-get install "+pkg)
	}
	return path
}

// Cache is where kimage keeps what bakes leave (KIMAGE_CACHE, or the user's).
func Cache(t testing.TB) string {
	t.Helper()
	if cache := os.Getenv("KIMAGE_CACHE"); cache != "" {
		return cache
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "kimage")
}

// Built returns the path of a program that a bake from source left in kimage's
// cache: one of them, if there are several.
func Built(t testing.TB, name string) string {
	t.Helper()
	cache := Cache(t)
	found, err := filepath.Glob(filepath.Join(cache, "entries/program/*", name))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		Missing(t, "no "+name+" in "+cache+": kimage build --components source puts it there")
		return ""
	}
	return found[0]
}

// Missing ends a test that lacks what: skipped, or in CI failed.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// Judge has a foreign program judge, and returns what it says.
func Judge(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}
