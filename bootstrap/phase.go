package bootstrap

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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

// phases tells of every phase once, with how long the last one took.
type phases struct {
	node string
	logf func(string, ...any)
	now  func() time.Time
	file string

	mu   sync.Mutex
	last Phase
	took *Took
}

// tookTo is for all phases from now on.
func (p *phases) tookTo(t Took) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took = &t
}

func (p *phases) set(phase, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.Phase == phase && p.last.Why == why {
		return
	}
	next := Phase{Node: p.node, Phase: phase, Since: p.last.Since, Why: why, Took: p.took}
	if p.last.Phase != phase {
		now := p.now()
		if p.last.Phase != "" {
			p.logf("phase %s, after %s of %s", phase, now.Sub(p.last.Since).Round(100*time.Millisecond), p.last.Phase)
		} else {
			p.logf("phase %s", phase)
		}
		next.Since = now
	}
	if why != "" {
		p.logf("%s: %s", phase, why)
	}
	p.last = next
	data, err := json.Marshal(next)
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(p.file), 0o755), atomicfile.Write(p.file, append(data, '\n'), 0o644))
	}
	if err != nil {
		p.logf("writing %s: %v", p.file, err)
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
