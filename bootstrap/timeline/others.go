package timeline

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	etcdUnit       = "etcd.service"
	containerdUnit = "containerd.service"
)

// etcdRows are the agent's way to etcd's start, and the start itself, which ends
// when etcd serves: its unit is of the type notify.
func etcdRows(s story, units map[string]unit, others []record, to time.Duration) (out []row) {
	if n := len(s.etcd); n > 0 {
		end := s.etcd[n-1].at
		var verbs []string
		for _, st := range s.etcd {
			if st.verb == "start" || st.verb == "keep" {
				end = st.at
				break
			}
			verbs = append(verbs, st.verb)
		}
		name := "decision"
		if slices.Contains(verbs, "found") {
			name = "founding"
		}
		out = append(out, row{name: name, text: strings.Join(slices.Compact(verbs), ", "), bars: []bar{{kindEtcd, s.etcd[0].at, end}}})
	}
	from, up, ok := units[etcdUnit].start()
	if !ok {
		return out
	}
	r := row{name: "etcd", bars: []bar{{kindEtcd, from, up}}}
	if r.startedBefore(startsOf(others)[etcdUnit]); r.bars[0].from > to {
		return out
	}
	for _, o := range others {
		if o.unit == etcdUnit && o.at >= from && o.at <= up && strings.Contains(o.message, "elected leader") {
			r.text = "a leader after " + seconds(o.at-from) + ", then serves"
			break
		}
	}
	if units[etcdUnit].runs() && up < to {
		r.bars = append(r.bars, bar{kindRuns, up, to})
	}
	return append(out, r)
}

// maxPods is how many are shown: the first.
const maxPods = 10

// Lines of containerd, internal/cri/instrument: a pod's metadata is printed as
// its protocol buffer's text, or as that of a Go struct.
var (
	containerdMessage = regexp.MustCompile(`msg=("(?:[^"\\]|\\.)*")`)
	sandboxAsked      = regexp.MustCompile(`^RunPodSandbox for .*?\b[Nn]ame:"?([^",\s]+)`)
	sandboxMade       = regexp.MustCompile(` returns sandbox id "([0-9a-f]+)"$`)
	containerMade     = regexp.MustCompile(`^CreateContainer within sandbox "([0-9a-f]+)" .* returns container id "([0-9a-f]+)"$`)
	restart           = regexp.MustCompile(`\b[Aa]ttempt:[1-9]`)
	containerStarted  = regexp.MustCompile(`^StartContainer for "([0-9a-f]+)" returns successfully$`)
)

// podRows are the first pods: from when the runtime was asked for their sandbox
// to when the last of their containers was started for the first time.
func podRows(records []record, to time.Duration) (out []row) {
	sandboxes, containers := map[string]string{}, map[string]string{} // to the pod's name, to the sandbox
	begun, started := map[string]time.Duration{}, map[string]time.Duration{}
	for _, r := range records {
		if r.unit != containerdUnit || r.at > to {
			continue
		}
		message := said(r.message)
		if m := sandboxAsked.FindStringSubmatch(message); m != nil && !restart.MatchString(message) {
			if _, ok := begun[m[1]]; !ok {
				begun[m[1]] = r.at
			}
			if id := sandboxMade.FindStringSubmatch(message); id != nil {
				sandboxes[id[1]] = m[1]
			}
		} else if m := containerMade.FindStringSubmatch(message); m != nil && !restart.MatchString(message) {
			containers[m[2]] = m[1]
		} else if m := containerStarted.FindStringSubmatch(message); m != nil {
			if name := sandboxes[containers[m[1]]]; name != "" {
				started[name] = r.at
			}
		}
	}
	for name, at := range started {
		out = append(out, row{name: name, bars: []bar{{kindPod, begun[name], at}}})
	}
	slices.SortFunc(out, func(x, y row) int {
		return cmp.Or(cmp.Compare(x.bars[0].from, y.bars[0].from), cmp.Compare(x.name, y.name))
	})
	return out[:min(len(out), maxPods)]
}

// said is the message of a line of containerd; empty: there is none.
func said(line string) string {
	quoted := containerdMessage.FindStringSubmatch(line)
	if quoted == nil {
		return ""
	}
	message, err := strconv.Unquote(quoted[1])
	if err != nil {
		return ""
	}
	return message
}
