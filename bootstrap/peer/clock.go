package peer

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ClockLimit is how far two clocks may differ. Certificates of the kubelets are
// made to begin five minutes before they are, and must be valid everywhere at once.
const ClockLimit = 2 * time.Minute

// Clock is another machine's clock as this machine sees it.
type Clock struct {
	Name  string
	Ahead time.Duration // of this machine's; negative: behind
	// Unknown: its certificate is not valid at this machine's time, so the two
	// differ by more than can be told.
	Unknown bool
}

func (c Clock) off() bool { return c.Unknown || c.Ahead.Abs() > ClockLimit }

// JudgeClocks says what is wrong with the clocks, and whether it is this
// machine's that must be set before anything is signed or believed: at least as
// many others contradict it as agree with it, itself included. Then one wrong
// clock stops its own machine and no other; between two machines alone nobody
// can tell, and both stop.
func JudgeClocks(others []Clock) (why string, stop bool) {
	var off []Clock
	for _, c := range others {
		if c.off() {
			off = append(off, c)
		}
	}
	if len(off) == 0 {
		return "", false
	}
	slices.SortFunc(off, func(a, b Clock) int { return strings.Compare(a.Name, b.Name) })
	agree := len(others) - len(off) + 1
	names := make([]string, len(off))
	for i, c := range off {
		names[i] = c.Name
	}
	all := strings.Join(names, ", ")
	const remedy = "NTP (machine.ntp), or timedatectl set-time"
	switch {
	case len(off) < agree:
		return fmt.Sprintf("the clock of %s is %s: set it there (%s)", all, off[0].words(), remedy), false
	case len(off) == 1 && len(others) == 1:
		return fmt.Sprintf("the clock of %s is %s: set the one of the two that is wrong (%s)", all, off[0].words(), remedy), true
	case len(off) == agree:
		return fmt.Sprintf("the clock of this machine differs from %s (%s is %s), and as many machines agree with it: set those that are wrong (%s)", all, off[0].Name, off[0].words(), remedy), true
	}
	return fmt.Sprintf("this machine's clock is wrong: that of %s is %s: set this machine's (%s)", all, off[0].words(), remedy), true
}

// words round: what differs a little at every look is the same news.
func (c Clock) words() string {
	switch {
	case c.Unknown:
		return "so far from this machine's that their certificates are not valid to each other"
	case c.Ahead > 0:
		return c.Ahead.Round(time.Minute).String() + " ahead of this machine's"
	}
	return (-c.Ahead).Round(time.Minute).String() + " behind this machine's"
}
