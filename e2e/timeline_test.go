//go:build e2e

package e2e

import (
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strings"
	"time"
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
