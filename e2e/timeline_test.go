//go:build e2e

package e2e

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/timeline"
)

// phaseSaid is a line of the agent.
var phaseSaid = regexp.MustCompile(`(?m)^phase ([a-z]+)`)

// timeline: a machine that is Ready draws its way there, and the picture names
// every phase that it passed, and what else people look for.
func (n *node) timeline() {
	n.t.Helper()
	const file = "/run/timeline.svg"
	n.must("kimage-agent timeline -o "+file, 2*time.Minute)
	svg := n.must("cat "+file, time.Minute)
	n.keep(map[string]string{"timeline.svg": "cat " + file, "time.txt": "systemd-analyze time; systemd-analyze critical-chain --no-pager; systemd-analyze blame --no-pager", "plot.svg": "systemd-analyze plot",
		"journal.txt": "journalctl -b -o short-monotonic --no-pager", "cpu.txt": cpuByUnit,
		"manager.txt": "systemctl show", "units.txt": "systemctl show --all --property=" + timeline.UnitProperties + " \"*\"",
		"journal.json": "journalctl -b -o json --no-pager --output-fields=" + timeline.JournalFields})
	words := map[string]bool{}
	for dec := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			n.t.Fatalf("the timeline is not XML: %v\n%s", err, svg)
		}
		if text, ok := token.(xml.CharData); ok {
			words[string(text)] = true
		}
	}
	want := []string{"userspace", "kimage-start", "containerd", "kubelet", "founding", "[certs]", "[kubelet-start]", "kube-apiserver-k8s-01"}
	for _, m := range phaseSaid.FindAllStringSubmatch(n.must("journalctl -u kimage-agent -o cat --no-pager", time.Minute), -1) {
		want = append(want, m[1])
	}
	for _, w := range want {
		if !words[w] {
			n.t.Errorf("the timeline does not name %s", w)
		}
	}
}

// cpuByUnit lists what the units of a machine have used of its processors, in
// seconds, most first.
const cpuByUnit = `cd /sys/fs/cgroup && find . -path "./*/*" -name cpu.stat | while read f; do echo "$(sed -n "s/^usage_usec //p" $f) ${f%/cpu.stat}"; done | sort -rn | head -n 25 | awk "{printf \"%8.1f %s\\n\", \$1/1e6, \$2}"`

// keep writes what commands print to the folder KIMAGE_E2E_KEEP, for people.
func (n *node) keep(commands map[string]string) {
	n.t.Helper()
	dir := os.Getenv("KIMAGE_E2E_KEEP")
	if dir == "" {
		return
	}
	for name, command := range commands {
		r, err := n.try(command, 2*time.Minute)
		if err != nil {
			n.t.Errorf("%s: %v", name, err)
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, n.t.Name()+"-"+name), []byte(r.Stdout+r.Stderr), 0o644); err != nil {
			n.t.Error(err)
		}
	}
}
