package bootstrap

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// Phase is where a machine is on its way to Ready.
type Phase struct {
	Node  string    `json:"node"`
	Phase string    `json:"phase"`          // see the constants
	Since time.Time `json:"since"`          // of the phase
	Why   string    `json:"why,omitempty"`  // what is waited for, and what to do about it
	Took  *Took     `json:"took,omitempty"` // once Ready: where the time went
}

// Phases, in the order in which a machine passes them. A machine may go back.
const (
	PhaseStopped = "stopped" // a person must act
	PhaseEtcd    = "etcd"    // etcd is founded or starts
	PhaseWaiting = "waiting" // for other machines
	PhaseInit    = "init"
	PhaseJoin    = "join"
	PhaseJoined  = "joined" // a Node that is not Ready yet
	PhaseReady   = "ready"
)

const phaseFile = "/run/kimage/phase.json"

// part is who has something to say about the phase, most weighty first.
type part int

const (
	partMachine part = iota // machine, image and disk are those of the config
	partEtcd
	partKube
	parts
)

// phases tells of every phase once, with how long the last one took.
type phases struct {
	node string
	logf func(string, ...any)
	now  func() time.Time
	file string

	mu     sync.Mutex
	took   *Took
	said   [parts]saying
	causes []string // see because
	last   Phase
	begun  map[string]time.Time // when each phase last began
	heard  []chan struct{}
}

// began is the current phase, and when each phase last began.
func (p *phases) began() (string, map[string]time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.Phase, maps.Clone(p.begun)
}

// tookTo is for all phases from now on.
func (p *phases) tookTo(t Took) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took = &t
}

// saying is what a part says; the zero value: nothing. One with a reason alone
// is told beside what the others say.
type saying struct{ phase, why string }

// set says what a part does; phase "" takes it back.
func (p *phases) set(by part, phase, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said[by] = saying{phase, why}
	p.tell()
}

// because says what was seen to be wrong on the machine or its network. It is
// shown before what the parts wait for, which most often follows from it.
func (p *phases) because(causes ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.causes = causes
	p.tell()
}

// listen gives a channel that has something in it when the phase has changed.
func (p *phases) listen() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := make(chan struct{}, 1)
	p.heard = append(p.heard, c)
	return c
}

// current is the phase that was told last.
func (p *phases) current() Phase {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// overall is what counts of all that is said. What a person must do comes
// first; a kubelet that waits most often waits for etcd.
func overall(said [parts]saying, causes []string) saying {
	for _, s := range said {
		if s.phase == PhaseStopped {
			return saying{s.phase, strings.Join(append([]string{s.why}, unsaid(s.why, causes)...), "; ")}
		}
	}
	s := said[partKube]
	if s.phase == "" || s.phase == PhaseWaiting && said[partEtcd].phase != "" {
		s = said[partEtcd]
	}
	if s.phase == "" {
		s = saying{phase: PhaseWaiting}
	}
	if etcd := said[partEtcd]; etcd.phase == "" && etcd.why != "" {
		causes = append(slices.Clone(causes), etcd.why)
	}
	all := unsaid(s.why, causes)
	if s.why != "" {
		all = append(all, s.why)
	}
	return saying{s.phase, strings.Join(all, "; ")}
}

// unsaid are the causes that a reason does not name itself.
func unsaid(why string, causes []string) (out []string) {
	for _, c := range causes {
		if c != "" && !strings.Contains(why, c) {
			out = append(out, c)
		}
	}
	return out
}

// tell writes and logs what has changed; p.mu is held.
func (p *phases) tell() {
	s := overall(p.said, p.causes)
	if s == (saying{p.last.Phase, p.last.Why}) || s == (saying{phase: PhaseWaiting}) && p.last.Phase == "" {
		return // the second: no part has begun
	}
	next := Phase{Node: p.node, Phase: s.phase, Since: p.last.Since, Why: s.why, Took: p.took}
	if p.last.Phase != s.phase {
		now := p.now()
		if p.last.Phase != "" {
			p.logf("phase %s, after %s of %s", s.phase, now.Sub(p.last.Since).Round(100*time.Millisecond), p.last.Phase)
		} else {
			p.logf("phase %s", s.phase)
		}
		next.Since = now
		if p.begun == nil {
			p.begun = map[string]time.Time{}
		}
		p.begun[s.phase] = now
	}
	if s.why != "" {
		p.logf("%s: %s", s.phase, s.why)
	}
	p.last = next
	data, err := json.Marshal(next)
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(p.file), 0o755), atomicfile.Write(p.file, append(data, '\n'), 0o644))
	}
	if err != nil {
		p.logf("writing %s: %v", p.file, err)
	}
	for _, c := range p.heard {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// readPhase returns nil where no agent has told a phase since the machine booted.
func readPhase() (*Phase, error) {
	data, err := os.ReadFile(phaseFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p Phase
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	return &p, nil
}
