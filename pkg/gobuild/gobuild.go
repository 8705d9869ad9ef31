// Package gobuild builds programs from Go modules: a throw-away module that
// requires the wanted one, the checksum database for trust, and flags that make
// the bytes depend on the sources and the toolchain alone.
//
// It knows nothing of Kubernetes; which packages, flags and replacements a
// program needs is the caller's data.
package gobuild

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// Build describes one program of a module.
type Build struct {
	Module  string
	Version string
	Package string            // import path of the main package
	Replace map[string]string // module to "module@version"
	LDFlags string
	Tags    string
	CGO     bool
	Static  bool // with CGO: link statically
	Arch    string
	// StagingVersion: replacements that point into the module's own tree
	// (./staging/…) become this version of the replaced module.
	StagingVersion string
}

// ErrDownload says that sources could not be had or verified.
var ErrDownload = errors.New("downloading the sources of")

// Toolchain is the Go version that builds, as "go1.26.8".
func Toolchain(ctx context.Context) (string, error) {
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"go", "env", "GOVERSION"}, Env: environment("", false)})
	return strings.TrimSpace(string(out)), err
}

// environment is what go runs with. The caches and the module proxy are the
// user's; nothing that changes the output, and nothing that turns verification
// off (GONOSUMDB, GOPRIVATE, GOSUMDB), is.
func environment(arch string, cgo bool) []string {
	env := []string{"GOTOOLCHAIN=local", "GOFLAGS=-mod=mod", "GOWORK=off", "GOSUMDB=sum.golang.org", "GONOSUMDB=", "GOPRIVATE="}
	if cgo {
		env = append(env, "CGO_ENABLED=1")
	} else {
		env = append(env, "CGO_ENABLED=0")
	}
	if arch != "" {
		env = append(env, "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0")
	}
	for _, name := range []string{"GOPROXY", "GOCACHE", "GOMODCACHE", "GOPATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// Run builds the program as file, working in the private directory work.
// Empty modules stand in for the staging modules in unused: no package of theirs
// is imported, so they need not be had. They cannot change the bytes, so they
// are not part of Build, which names a result.
func (b Build) Run(ctx context.Context, work, file string, unused []string) error {
	if err := b.writeModule(ctx, work, unused); err != nil {
		return err
	}
	ldflags := strings.TrimSpace("-s -w -buildid= " + b.LDFlags)
	env := environment(b.Arch, b.CGO)
	if b.CGO {
		env = append(env, "CGO_CFLAGS=-O2 -ffile-prefix-map="+work+"=/build", "CGO_LDFLAGS=-Wl,--build-id=none")
		if b.Static {
			ldflags += " -linkmode external -extldflags -static"
		}
	}
	argv := []string{"go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", file}
	if b.Tags != "" {
		argv = append(argv, "-tags", b.Tags)
	}
	argv = append(argv, b.Package)
	if err := run.Run(ctx, run.Cmd{Argv: argv, Dir: work, Env: env}); err != nil {
		return fmt.Errorf("building %s from %s %s: %w", filepath.Base(file), b.Module, b.Version, err)
	}
	return nil
}

// writeModule writes the throw-away go.mod and downloads what it names.
func (b Build) writeModule(ctx context.Context, work string, unused []string) error {
	var staged []string
	if b.StagingVersion != "" {
		source, err := Source(ctx, b.Module, b.Version)
		if err != nil {
			return err
		}
		if staged, err = stagingModules(filepath.Join(source, "go.mod")); err != nil {
			return err
		}
	}
	for _, m := range unused {
		if err := standIn(work, m); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(work, "go.mod"), b.modFile(staged, unused), 0o644); err != nil {
		return err
	}
	if err := run.Run(ctx, run.Cmd{Argv: []string{"go", "mod", "download", b.Module}, Dir: work, Env: environment("", false)}); err != nil {
		return fmt.Errorf("%w %s %s: %w", ErrDownload, b.Module, b.Version, err)
	}
	return nil
}

// modFile is the go.mod that builds b, whose own tree has the modules staged.
func (b Build) modFile(staged, unused []string) []byte {
	var mod bytes.Buffer
	fmt.Fprintf(&mod, "module kimage.invalid/build\n\ngo 1.24\n\nrequire %s %s\n", b.Module, b.Version)
	for _, m := range slices.Sorted(maps.Keys(b.Replace)) {
		name, version, _ := strings.Cut(b.Replace[m], "@")
		fmt.Fprintf(&mod, "replace %s => %s %s\n", m, name, version)
	}
	for _, m := range staged {
		if slices.Contains(unused, m) {
			fmt.Fprintf(&mod, "replace %s => ./unused/%s\n", m, m)
		} else {
			fmt.Fprintf(&mod, "replace %s => %s %s\n", m, m, b.StagingVersion)
		}
	}
	return mod.Bytes()
}

// standIn writes an empty module.
func standIn(work, module string) error {
	dir := filepath.Join(work, "unused", module)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module "+module+"\n"), 0o644)
}

// Source returns the directory of a module's source in the module cache.
func Source(ctx context.Context, module, version string) (string, error) {
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"go", "mod", "download", "-json", module + "@" + version}, Dir: os.TempDir(), Env: environment("", false)})
	var answer struct{ Dir, Error string }
	if jerr := json.Unmarshal(out, &answer); err == nil && jerr != nil {
		err = jerr
	}
	if answer.Error != "" {
		err = fmt.Errorf("%s", answer.Error)
	}
	if err != nil {
		return "", fmt.Errorf("%w %s %s: %w", ErrDownload, module, version, err)
	}
	return answer.Dir, nil
}

// stagingModules lists the modules that a go.mod replaces by its own ./staging.
func stagingModules(gomod string) ([]string, error) {
	f, err := os.Open(gomod)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var names []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		left, right, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(sc.Text()), "replace "), " => ./staging/")
		if ok && right != "" {
			names = append(names, strings.Fields(left)[0])
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s replaces no module by ./staging", gomod)
	}
	return names, nil
}
