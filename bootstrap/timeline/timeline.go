// Package timeline draws how a machine came to be Ready: one SVG from power-on,
// by what systemd and the journal have kept of this boot.
//
// It is pure: it asks nobody, and the same facts give the same picture. Times
// are those of CLOCK_MONOTONIC, which begins with the kernel and which nobody
// sets; what lies before the kernel is negative.
package timeline

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Facts are what the picture is made of.
type Facts struct {
	Node    string // empty: nobody told the machine its name
	Image   string // what is said of the image, one line; empty: nothing
	Manager []byte // systemctl show
	Units   []byte // systemctl show --all --property=UnitProperties '*'
	Agent   []byte // journalctl -o json of kimage-agent.service
	Others  []byte // the same of etcd.service, containerd.service, and what systemd wrote of them and the kubelet
	Now     time.Duration
}

// UnitProperties are those of every unit that Facts.Units needs.
const UnitProperties = "Id,Type,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic,ActiveExitTimestampMonotonic,InactiveEnterTimestampMonotonic"

// kind is what a bar shows, which is its colour.
type kind int

const (
	kindBoot   kind = iota
	kindUnit        // one of the operating system
	kindKimage      // a unit of the payload or of kimage
	kindWait        // the agent waits
	kindWork        // the agent works
	kindStop        // a person must act
	kindReady
	kindKubeadm
	kindEtcd
	kindPod
	kindRuns // a service after its start
)

// bar is a part of a row.
type bar struct {
	kind     kind
	from, to time.Duration
}

// row is one line of the picture; its bars are in the order of time.
type row struct {
	name, text string
	bars       []bar
	again      time.Duration // the last of several starts; 0: there was one
}

func (r row) total() (sum time.Duration) {
	for _, b := range r.bars {
		if b.kind != kindRuns {
			sum += b.to - b.from
		}
	}
	return sum
}

// add makes one bar of two that touch.
func (r *row) add(b bar) {
	if n := len(r.bars); n > 0 && r.bars[n-1].kind == b.kind && r.bars[n-1].to == b.from {
		r.bars[n-1].to = b.to
		return
	}
	r.bars = append(r.bars, b)
}

// group is rows under one heading; one without rows is not drawn.
type group struct {
	name string
	rows []row
}

// mark is a moment that concerns all rows.
type mark struct {
	at   time.Duration
	name string
	kind kind
}

// chart is the picture, not yet drawn.
type chart struct {
	title    string
	notes    []string
	from, to time.Duration
	marks    []mark
	groups   []group
}

// SVG returns the picture as one file that needs no other.
func SVG(f Facts) ([]byte, error) {
	c, err := newChart(f)
	if err != nil {
		return nil, err
	}
	return c.draw(), nil
}

func newChart(f Facts) (chart, error) {
	manager, err := parseManager(f.Manager)
	if err != nil {
		return chart{}, err
	}
	units, err := parseUnits(f.Units)
	if err != nil {
		return chart{}, err
	}
	agent, err := parseJournal(f.Agent)
	if err != nil {
		return chart{}, err
	}
	others, err := parseJournal(f.Others)
	if err != nil {
		return chart{}, err
	}
	s := tell(agent, f.Now)
	c := chart{from: -max(manager.firmware, manager.loader)}
	c.to = end(s, manager, agent, f.Now)
	c.title, c.notes = c.words(f, manager, s)
	if s.ready > 0 {
		c.marks = append(c.marks, mark{s.ready, "Ready", kindReady})
	}
	// What is shorter than this is not seen, or only as a line.
	least := (c.to - c.from) / 100
	unitRows, left := c.unitRows(units, startsOf(others), least)
	if c.from == 0 {
		left = strings.TrimSpace("This machine's firmware does not tell its times: 0 is the kernel's start. " + left)
	}
	if left != "" {
		c.notes = append(c.notes, left)
	}
	c.groups = []group{
		{"boot", manager.rows(c.to)},
		{"units", unitRows},
		{"agent", s.phaseRows(least)},
		{"etcd", etcdRows(s, units, others, c.to)},
		{"kubeadm", fold(s.kubeadm, least/2)},
		{"pods", podRows(others, c.to)},
	}
	if at := units["multi-user.target"].activeEnter; at > 0 && at < c.to {
		c.marks = append(c.marks, mark{at, "multi-user", kindBoot})
	}
	return c, nil
}

// end is where the picture ends: a little after Ready, and until then now. A
// machine that nobody told what it is has booted when systemd says so.
func end(s story, m manager, agent []record, now time.Duration) time.Duration {
	switch {
	case s.ready > 0:
		return s.ready + s.ready/25
	case len(agent) == 0 && m.finish > 0:
		return m.finish + m.finish/25
	}
	return now
}

// words are the title and what is said below it.
func (c chart) words(f Facts, m manager, s story) (title string, notes []string) {
	since := "power-on"
	if c.from == 0 {
		since = "the kernel's start"
	}
	name := cmp.Or(f.Node, "this machine")
	switch {
	case s.ready > 0:
		title = fmt.Sprintf("%s: Ready %s after %s", name, seconds(s.ready-c.from), since)
	case s.phase != "":
		title = fmt.Sprintf("%s: not Ready %s after %s, phase %s", name, seconds(f.Now-c.from), since, s.phase)
	case m.finish > 0:
		title = fmt.Sprintf("%s: booted %s after %s; its agent has told nothing", name, seconds(m.finish-c.from), since)
	default:
		title = fmt.Sprintf("%s: not booted %s after %s", name, seconds(f.Now-c.from), since)
	}
	if f.Image != "" {
		notes = append(notes, f.Image)
	}
	if s.took != "" {
		notes = append(notes, "Ready "+s.took)
	}
	return title, notes
}

// seconds is a duration for people.
func seconds(d time.Duration) string {
	digits := 1
	if d >= 100*time.Second {
		digits = 0
	}
	return strconv.FormatFloat(d.Seconds(), 'f', digits, 64) + " s"
}

// fold makes one row of neighbours that are all shorter than least.
func fold(rows []row, least time.Duration) (out []row) {
	short := false // the last row
	for _, r := range rows {
		if r.total() >= least || !short {
			short = r.total() < least
			out = append(out, r)
			continue
		}
		last := &out[len(out)-1]
		last.text = strings.TrimSpace(last.text + " " + r.name)
		last.bars = append(slices.Clone(last.bars), r.bars...)
		slices.SortFunc(last.bars, func(x, y bar) int { return cmp.Compare(x.from, y.from) })
	}
	for i := range out {
		if out[i].text != "" {
			out[i].text = "with " + out[i].text
		}
	}
	return out
}
