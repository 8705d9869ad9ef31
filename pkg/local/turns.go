package local

import (
	"context"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
)

// turnsEvery is how often the machines' priorities are looked at.
const turnsEvery = 5 * time.Second

// Nice is the priority, as in setpriority(2), that a machine in a phase of the agent's
// has among others on few processors: what starts a control plane goes first, because
// an API server that takes more than a minute to start ends itself; who waits for others,
// or is ready, steps back, but a master that is ready half as far: who joins needs it.
func Nice(phase string, master bool) int {
	switch {
	case master && (phase == "init" || phase == "join" || phase == "joined"):
		return 0
	case phase == "", phase == "machine", phase == "etcd", master && phase == PhaseReady:
		return 3
	}
	return 6
}

// takeTurns sets priorities until ctx ends, where machines are emulated and have more
// processors than this computer. Who is not root cannot take a lower priority back:
// then all that have waited once are equals.
func (v *supervisor) takeTurns(ctx context.Context) {
	now := map[*qemu.Machine]int{}
	for tick := time.Tick(turnsEvery); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		phases, ready := map[string]string{}, true
		all := v.list()
		crowded := Spec{Accel: v.spec.Accel, Machines: all}.Crowded()
		for _, m := range all {
			phases[m.Name] = v.set.Screen(m.Name).Phase
			ready = ready && phases[m.Name] == PhaseReady
		}
		for _, m := range all {
			nice := Nice(phases[m.Name], m.API)
			if ready || !crowded {
				nice = 0
			}
			if q := v.machine(m.Name); q != nil && !q.Off() && now[q] != nice {
				q.SetNice(nice) // an error: it has just ended, or see above
				now[q] = nice
			}
		}
	}
}
