// Package debs takes files out of Debian packages without installing them and
// without root: an apt with its own state directories resolves and downloads
// (and verifies the archive's signature), dpkg-deb unpacks.
//
// No archive is built in: the one that the machine's apt is set to is used, or
// the caller's. Maintainer scripts never run.
package debs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// MachineMirror returns the URL of the Debian archive that the machine's apt
// uses for its own release.
func MachineMirror() (string, error) {
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	slices.Sort(files)
	for _, f := range append([]string{"/etc/apt/sources.list"}, files...) {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		find := mirrorInList
		if strings.HasSuffix(f, ".sources") {
			find = mirrorInSources
		}
		if url := find(string(data)); url != "" {
			return url, nil
		}
	}
	return "", errors.New("apt is not set to a Debian archive on this machine: name one with --apt-mirror URL")
}

// suites are the releases whose archive can make every Debian base.
var suites = []string{"bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable"}

// isDebian tells a release's own archive from its security archive and from
// third parties.
func isDebian(url, suite string, components []string) bool {
	return strings.HasPrefix(url, "http") && slices.Contains(suites, suite) && slices.Contains(components, "main") &&
		strings.HasSuffix(strings.TrimRight(url, "/"), "debian")
}

// mirrorInSources reads deb822 stanzas.
func mirrorInSources(data string) string {
	for stanza := range strings.SplitSeq(data, "\n\n") {
		fields := map[string][]string{}
		for line := range strings.SplitSeq(stanza, "\n") {
			if key, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, " ") {
				fields[strings.ToLower(key)] = strings.Fields(value)
			}
		}
		if !slices.Contains(fields["types"], "deb") {
			continue
		}
		for _, url := range fields["uris"] {
			for _, suite := range fields["suites"] {
				if isDebian(url, suite, fields["components"]) {
					return url
				}
			}
		}
	}
	return ""
}

// mirrorInList reads one-line entries: deb [options] URL SUITE COMPONENT...
func mirrorInList(data string) string {
	for line := range strings.SplitSeq(data, "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "deb" {
			continue
		}
		f = f[1:]
		if strings.HasPrefix(f[0], "[") {
			i := slices.IndexFunc(f, func(s string) bool { return strings.HasSuffix(s, "]") })
			f = f[i+1:]
		}
		if len(f) >= 3 && isDebian(f[0], f[1], f[2:]) {
			return f[0]
		}
	}
	return ""
}
