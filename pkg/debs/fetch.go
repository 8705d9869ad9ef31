package debs

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/tree"
)

// Config names packages of one release.
type Config struct {
	Mirror   string
	Suite    string
	Arch     string
	Packages []string
	Dir      string // private directory for apt's state and the packages
}

// keyrings is where the archive's keys are, package debian-archive-keyring.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Fetch downloads the packages and all that they depend on, and returns the
// .deb files sorted by name. apt verifies them by the archive's signature.
func Fetch(ctx context.Context, c Config) ([]string, error) {
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("the Debian archive's keys are missing: install debian-archive-keyring: %w", err)
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/trusted.gpg.d", "etc/sources.list.d"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	list := fmt.Sprintf("deb [signed-by=%s arch=%s] %s %s main\n", keyring, c.Arch, c.Mirror, c.Suite)
	for name, content := range map[string]string{"etc/sources.list": list, "state/status": ""} {
		if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	conf := fmt.Sprintf("Dir::State %q;\nDir::State::status %q;\nDir::Cache %q;\nDir::Etc %q;\nDir::Etc::main \"/dev/null\";\n"+
		"APT::Architecture %q;\nAPT::Architectures { %q; };\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"\";\nDebug::NoLocking \"true\";\n"+
		"APT::Keep-Downloaded-Packages \"true\";\nDPkg::Post-Invoke { };\nAPT::Update::Post-Invoke { };\n",
		filepath.Join(c.Dir, "state"), filepath.Join(c.Dir, "state/status"), filepath.Join(c.Dir, "cache"), filepath.Join(c.Dir, "etc"), c.Arch, c.Arch)
	confFile := filepath.Join(c.Dir, "apt.conf")
	if err := os.WriteFile(confFile, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	env := []string{"APT_CONFIG=" + confFile, "DEBIAN_FRONTEND=noninteractive"}
	// apt reads /etc/apt/apt.conf.d before APT_CONFIG; Dir::Etc on the command
	// line comes too late to prevent that, and what is there (proxies) is wanted.
	for _, argv := range [][]string{
		{"apt-get", "-q", "update", "-o", "APT::Update::Error-Mode=any"},
		append([]string{"apt-get", "-q", "-y", "--download-only", "--no-install-recommends", "-o", "Dir::Cache::Archives=" + filepath.Join(c.Dir, "cache/archives"), "install"}, c.Packages...),
	} {
		if err := run.Run(ctx, run.Cmd{Argv: argv, Env: env}); err != nil {
			return nil, fmt.Errorf("fetching packages %s from %s (another archive: --apt-mirror URL): %w", strings.Join(c.Packages, " "), c.Mirror, err)
		}
	}
	found, err := filepath.Glob(filepath.Join(c.Dir, "cache/archives/*.deb"))
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("fetching packages %s: apt downloaded nothing", strings.Join(c.Packages, " "))
	}
	slices.Sort(found)
	return found, nil
}

// Unpack puts the files of packages into one tree; file contents go below dir.
// Documentation (but licences), manuals and translations are left out.
func Unpack(ctx context.Context, packages []string, dir string) (*tree.Tree, error) {
	t, n := tree.New(), 0
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := t.Symlink(link, "usr/"+link); err != nil {
			return nil, err
		}
	}
	for _, deb := range packages {
		one := tree.New()
		err := stream(ctx, deb, func(r io.Reader) error {
			return one.AddTar(r, func(_ *tar.Header, content io.Reader) (string, error) {
				n++
				host := filepath.Join(dir, strconv.Itoa(n))
				f, err := os.OpenFile(host, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
				if err != nil {
					return "", err
				}
				_, err = io.Copy(f, content)
				if cerr := f.Close(); err == nil {
					err = cerr
				}
				return host, err
			})
		})
		if err != nil {
			return nil, fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
		}
		for _, e := range one.Entries() {
			e.Path, e.Target = merged(e.Path), hardTarget(e)
			if e.Path == "." || isDocumentation(e.Path) || slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, e.Path) {
				continue
			}
			if err := t.Add(e); err != nil {
				return nil, fmt.Errorf("unpacking %s: %w", filepath.Base(deb), err)
			}
		}
	}
	return t, nil
}

// merged maps a path of before the /usr merge to where it is now.
func merged(p string) string {
	for _, d := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(p, d) {
			return "usr/" + p
		}
	}
	return p
}

func hardTarget(e tree.Entry) string {
	if e.Hard {
		return merged(e.Target)
	}
	return e.Target
}

func isDocumentation(p string) bool {
	for _, d := range []string{"usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug"} {
		if p == d || strings.HasPrefix(p, d+"/") {
			return true
		}
	}
	return strings.HasPrefix(p, "usr/share/doc/") && strings.Count(p, "/") >= 4 && !strings.HasSuffix(p, "/copyright")
}

// stream runs dpkg-deb on one package and hands its tar to use.
func stream(ctx context.Context, deb string, use func(io.Reader) error) error {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run.Run(ctx, run.Cmd{Argv: []string{"dpkg-deb", "--fsys-tarfile", deb}, Stdout: w})
		w.CloseWithError(err)
		done <- err
	}()
	err := use(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(err)
	if rerr := <-done; err == nil {
		err = rerr
	}
	return err
}
