package bootstrap

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/nic"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/peer"
)

// Pauses between looks at the machine, and between questions to the wire
// whether another machine has its address.
const (
	watchMoving   = 3 * time.Second
	watchSettled  = 15 * time.Second
	probesMoving  = time.Minute
	probesSettled = 15 * time.Minute
)

// watch looks for what keeps a machine from getting on and is not said by what
// waits for it. At Ready it costs a few system calls, and starts no program.
func (a *Agent) watch(ctx context.Context) {
	w := nic.NewWant(a.conf.Node.Addresses, a.conf.Network.Nodes, a.conf.Node.Match.MAC)
	var taken map[netip.Addr]string
	var probed time.Time
	before := ""
	for {
		ready := a.phase.current().Phase == PhaseReady
		pause, probes := watchMoving, probesMoving
		if ready {
			pause, probes = watchSettled, probesSettled
		}
		cards, err := nic.Cards()
		if err != nil {
			a.logf("looking at the network cards: %v", err)
		}
		has := strings.Join(cardAddresses(cards), " ")
		if has != before || len(taken) > 0 || time.Since(probed) > probes {
			if taken, err = nic.Taken(ctx, w, cards); err != nil && ctx.Err() == nil && has != before {
				a.logf("looking for a duplicate address: %v", err)
			}
			probed = time.Now()
		}
		changed := has != before
		before = has
		a.seen.setAddresses(cards)
		why := []string{nic.Why(w, cards, taken), dataFull(), a.runtimeDown()}
		clock, _ := a.seen.judgeClocks()
		a.phase.because(append(append(why, clock), a.seen.refusals()...)...)
		if changed {
			a.show()
		}
		if sleep(ctx, pause) != nil {
			return
		}
	}
}

func cardAddresses(cards []nic.Card) (out []string) {
	for _, c := range cards {
		for _, p := range c.Addresses {
			out = append(out, p.Addr().String()+" ("+c.Name+")")
		}
	}
	return out
}

// runtimeDown is about the container runtime of a machine with a kubelet.
func (a *Agent) runtimeDown() string {
	if !a.conf.Node.Has(nodeconf.RoleMaster) && !a.conf.Node.Has(nodeconf.RoleWorker) {
		return ""
	}
	return runtimeSilent(socket)
}

func runtimeSilent(socket string) string {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return "the container runtime does not answer (journalctl -u containerd)"
	}
	conn.Close()
	return ""
}

// dataFull is about the partition KIMAGE.
func dataFull() string {
	var st unix.Statfs_t
	if err := unix.Statfs(Data, &st); err != nil {
		return "" // that it is not mounted is said elsewhere
	}
	return full(Data, st)
}

// minFreePercent is half of what the kubelet keeps free for pods by evicting
// them: below, that did not help.
const minFreePercent = 5

// full says that a file system has too little room; empty: it has enough.
func full(dir string, st unix.Statfs_t) string {
	percent := func(part, whole uint64) uint64 { return part * 100 / max(whole, 1) }
	const remedy = "remove what fills it (crictl rmi --prune, du -x), or give the machine a larger disk"
	if p := percent(st.Bavail, st.Blocks); st.Blocks > 0 && p < minFreePercent {
		return fmt.Sprintf("disk full: %d%% (%d MiB) of %s are free: %s", p, st.Bavail*uint64(st.Bsize)>>20, dir, remedy)
	}
	if p := percent(st.Ffree, st.Files); st.Files > 0 && p < minFreePercent {
		return fmt.Sprintf("disk full: %d%% of the inodes of %s are free: %s", p, dir, remedy)
	}
	return ""
}

// seen is what is known of other machines, and of this one's addresses.
type seen struct {
	mu        sync.Mutex
	addresses []string
	clocks    map[[2]string]peer.Clock // by machine, and how it was asked
	refused   map[string]string        // by master: why it does not hear this machine, or is none
}

func (s *seen) setAddresses(cards []nic.Card) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses = cardAddresses(cards)
}

func (s *seen) currentAddresses() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addresses
}

// Ways in which a clock is asked for.
const (
	byReport = "report"
	byEtcd   = "etcd"
)

// noteClock keeps what an exchange showed of a machine's clock; nil: nothing.
func (s *seen) noteClock(name, way string, clock *peer.Clock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clocks == nil {
		s.clocks = map[[2]string]peer.Clock{}
	}
	delete(s.clocks, [2]string{name, way})
	if clock != nil {
		s.clocks[[2]string{name, way}] = *clock
	}
}

// noteRefusal keeps why a master does not hear this machine; empty: it does, or
// does not answer.
func (s *seen) noteRefusal(name, refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused == nil {
		s.refused = map[string]string{}
	}
	delete(s.refused, name)
	if refusal != "" {
		s.refused[name] = refusal
	}
}

func (s *seen) judgeClocks() (why string, stop bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	each := map[string]peer.Clock{} // a machine has one say
	for key, c := range s.clocks {
		if key[1] == byReport || each[key[0]].Name == "" {
			each[key[0]] = c
		}
	}
	return peer.JudgeClocks(slices.Collect(maps.Values(each)))
}

// clockWrong is why nothing may be signed by this machine's clock.
func (s *seen) clockWrong() string {
	if why, stop := s.judgeClocks(); stop {
		return why
	}
	return ""
}

func (s *seen) refusals() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.refused)) {
		out = append(out, name+": "+s.refused[name])
	}
	return out
}
