package timeline

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"time"
)

// story is what the agent told of its way to the first Ready.
type story struct {
	ready   time.Duration // 0: not yet
	phase   string        // the last one
	took    string        // where the time went
	spans   []span
	kubeadm []row
	etcd    []step
}

// span is a time in which the agent was in one phase for one reason.
type span struct {
	phase, why string
	from, to   time.Duration
}

// step is something that the agent did about etcd.
type step struct {
	at        time.Duration
	verb, why string
}

// Lines of the agent: see phases.tell, etcd.Agent and kube.Node.kubeadm.
var (
	phaseLine   = regexp.MustCompile(`^phase ([a-z]+)(?:, after .*)?$`)
	kubeadmLine = regexp.MustCompile(`^kubeadm ([a-z]+): (?:\[([a-z0-9-]+)\])?`)
	etcdLine    = regexp.MustCompile(`^etcd: (stop|wait|take roster|renew|set aside|hold|propose|found|start|keep): (.*)$`)
)

const (
	phaseReady = "ready"
	tookWords  = " after the agent's start"
)

// tell reads the agent's lines, up to the first Ready or now.
func tell(records []record, now time.Duration) story {
	t := teller{tags: map[string]*row{}}
	for _, r := range records {
		if t.s.ready > 0 {
			// What comes after Ready is another story, but for the sum of this one.
			if took, ok := strings.CutPrefix(r.message, phaseReady+": "); ok && strings.Contains(took, tookWords) {
				t.s.took = took
				break
			}
			continue
		}
		t.line(r)
	}
	if t.s.ready == 0 {
		t.close(now)
		t.closeKubeadm(now)
	}
	for _, name := range t.order {
		t.s.kubeadm = append(t.s.kubeadm, *t.tags[name])
	}
	return t.s
}

type teller struct {
	s    story
	open span // the phase that lasts; empty before the first

	tags  map[string]*row // kubeadm's phases
	order []string        // of tags
	verb  string          // of the kubeadm that spoke last
	tag   string          // its phase that lasts; empty: none
	since time.Duration   // of the tag
	other time.Duration   // the agent's first line since kubeadm's last; 0: none
}

func (t *teller) line(r record) {
	if m := kubeadmLine.FindStringSubmatch(r.message); m != nil {
		t.kubeadm(r.at, m[1], m[2])
		return
	}
	if t.other == 0 {
		t.other = r.at
	}
	if m := phaseLine.FindStringSubmatch(r.message); m != nil {
		t.closeKubeadm(t.other)
		t.close(r.at)
		t.open = span{phase: m[1], from: r.at}
		t.s.phase = m[1]
		if m[1] == phaseReady {
			t.s.ready = r.at
		}
		return
	}
	if m := etcdLine.FindStringSubmatch(r.message); m != nil {
		t.s.etcd = append(t.s.etcd, step{r.at, m[1], m[2]})
		return
	}
	why, ok := strings.CutPrefix(r.message, t.open.phase+": ")
	if ok && t.open.phase != "" {
		if t.open.why != "" {
			t.close(r.at)
			t.open = span{phase: t.open.phase, from: r.at}
		}
		t.open.why = why
	}
}

// close ends the phase that lasts.
func (t *teller) close(at time.Duration) {
	if t.open.phase != "" {
		t.open.to = at
		t.s.spans = append(t.s.spans, t.open)
	}
}

// ofAnother are tags that kubeadm writes in the midst of another phase.
var ofAnother = [...]string{"patches", "endpoint"}

// kubeadm takes in a line. A phase lasts from its first line to that of the next
// one: most often kubeadm says what it begins. The agent has its say in between;
// that kubeadm has ended is known when a phase of the agent's does, and it was
// by the first line that is not kubeadm's.
func (t *teller) kubeadm(at time.Duration, verb, tag string) {
	if verb != t.verb {
		t.closeKubeadm(cmp.Or(t.other, at))
	}
	t.verb, t.other = verb, 0
	name := "[" + tag + "]"
	if verb == "reset" {
		name = "kubeadm reset"
	}
	if tag == "" || name == t.tag || t.tag != "" && slices.Contains(ofAnother[:], tag) {
		return
	}
	t.closeKubeadm(at)
	t.tag, t.since = name, at
}

func (t *teller) closeKubeadm(at time.Duration) {
	if t.tag == "" {
		return
	}
	r := t.tags[t.tag]
	if r == nil {
		r = &row{name: t.tag}
		t.tags[t.tag] = r
		t.order = append(t.order, t.tag)
	}
	r.add(bar{kindKubeadm, t.since, at})
	t.tag = ""
}

// phaseKinds are the colours of phases; of all others: work.
var phaseKinds = map[string]kind{"stopped": kindStop, "waiting": kindWait, "joined": kindWait, phaseReady: kindReady}

func kindOf(phase string) kind {
	if k, ok := phaseKinds[phase]; ok {
		return k
	}
	return kindWork
}

// phaseRows are one row for each phase, and for each of its reasons that lasted;
// the others are in the row of the reason that lasted longest.
func (s story) phaseRows(least time.Duration) (out []row) {
	total := map[[2]string]time.Duration{}
	longest := map[string]string{}
	for _, sp := range s.spans {
		key := [2]string{sp.phase, sp.why}
		total[key] += sp.to - sp.from
		why, ok := longest[sp.phase]
		if !ok || total[key] > total[[2]string{sp.phase, why}] {
			longest[sp.phase] = sp.why
		}
	}
	index := map[[2]string]int{}
	for _, sp := range s.spans {
		key := [2]string{sp.phase, sp.why}
		if total[key] < least {
			key[1] = longest[sp.phase]
		}
		i, ok := index[key]
		if !ok {
			i = len(out)
			index[key] = i
			out = append(out, row{name: sp.phase, text: key[1]})
		}
		out[i].add(bar{kindOf(sp.phase), sp.from, sp.to})
	}
	if s.ready > 0 {
		out = append(out, row{name: phaseReady, bars: []bar{{kindReady, s.ready, s.ready}}})
	}
	slices.SortStableFunc(out, func(x, y row) int { return cmp.Compare(x.bars[0].from, y.bars[0].from) })
	return out
}
