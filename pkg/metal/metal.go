// Package metal installs machines over the network, and then leaves them alone: one whose
// disk holds kimage's data boots it until somebody releases it.
//
// It is what the loader (iPXE) and the installer ask over HTTP. Which machine may do what is
// decided in decide.go; DHCP and TFTP are package netboot's, the writing of a disk is package
// install's. It trusts the network: who can send from another machine's hardware address can have
// its config while it is being installed, and where the cluster file gives none, who says
// its UUID or serial number before it does.
//
//	DIR/installed.json   what is remembered of each machine
//	DIR/released/        machines that may be written over, once
package metal

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/kimage-project/kimage/pkg/install"
)

// Config is what machines are installed with.
type Config struct {
	Dir        string    // what is remembered
	URL        string    // where machines find the server: http://ADDRESS:PORT
	ClusterUID string    // whose machines these are
	Machines   []Machine // known by name
	Pool       *Machine  // what unknown machines become; nil: they are refused
	Image      Image
	Seed       func(ctx context.Context, m Machine) ([]byte, error) // a tar of the first-boot config
	SeedTo     install.Place
	Firmware   fs.FS                                    // loaders that UEFI fetches over HTTP; nil: none
	Neighbor   func(netip.Addr) (mac string, err error) // nil: the kernel's
	Now        func() time.Time                         // nil: the clock
	Logf       func(string, ...any)                     // a line when a machine comes further
}

// Image is what is written.
type Image struct {
	ID             string
	DiskBytes      int64
	Frames         string // file, see install.Index
	Index          []byte
	SHA256         string // of Index
	Kernel, Initrd string // files that install it
}

// Server knows how far each machine is.
type Server struct {
	mu      sync.Mutex
	config  Config
	records map[string]record
	seen    map[string]*sight  // by machine
	unknown map[string]*sight  // by MAC
	seeds   map[string]Machine // by token, while it is being installed
}

// maxUnknown is how many machines that are in no file are shown.
const maxUnknown = 1000

// sight is what was seen of a machine since the server started.
type sight struct {
	mac, phase, why string
	done, total     int64
	since           time.Time
}

// New reads what is remembered.
func New(c Config) (*Server, error) {
	if c.Neighbor == nil {
		c.Neighbor = neighbor
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	records, err := load(c.Dir)
	if err != nil {
		return nil, err
	}
	return &Server{config: c, records: records, seen: map[string]*sight{}, unknown: map[string]*sight{}, seeds: map[string]Machine{}}, nil
}

// Update takes the machines of a cluster file that has changed.
func (s *Server) Update(machines []Machine, pool *Machine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.Machines, s.config.Pool = machines, pool
}

// URL is where machines find the server.
func (s *Server) URL() string { return s.config.URL }

// Heard takes what a machine's agent says of itself, once it is installed.
// since is that of the phase: a report of the machine that was there before counts no more.
func (s *Server) Heard(name, phase, why string, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[name]
	if r.State == writing && since.After(r.Since) { // that it was installed was not heard
		r.State, r.Since = installed, s.config.Now()
		if err := s.remember(name, r); err != nil {
			s.note(name, true, r.MAC, "failed", err.Error())
			return
		}
	}
	if r.State == installed {
		s.note(name, true, r.MAC, phase, why)
	}
}

// Known is a machine by what it told of itself when it was installed.
type Known struct{ Name, MAC, UUID, Serial string }

// OfPool are those of a pool.
func (s *Server) OfPool(pool string) (all []Known) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, r := range s.records {
		if strings.HasPrefix(name, pool+"/") {
			all = append(all, Known{name, r.MAC, r.UUID, r.Serial})
		}
	}
	return all
}

// asker is what a machine says of itself. DHCP is not told the serial number.
type asker struct {
	mac, uuid, serial string
	noSerial          bool // it was not asked for it yet
}

// find is the machine that asks; s.mu is held.
func (s *Server) find(a asker) (Machine, bool) {
	holds := func(want, is string) bool { return want == "" || strings.EqualFold(want, is) }
	for _, m := range s.config.Machines {
		if m.Match != (Machine{}.Match) && holds(m.Match.MAC, a.mac) && holds(m.Match.UUID, a.uuid) && (a.noSerial || holds(m.Match.Serial, a.serial)) {
			return m, true
		}
	}
	if s.config.Pool == nil {
		return Machine{}, false
	}
	m := *s.config.Pool
	m.Name += "/" + a.mac
	return m, true
}

// Meets says whether a machine that asks DHCP is to boot from here, before its serial number
// is known, and notes that it was seen.
func (s *Server) Meets(mac, uuid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.find(asker{mac: mac, uuid: uuid, noSerial: true})
	if !known || m.Pool != "" || m.Match.MAC != "" || m.Match.UUID != "" { // by serial number alone it could be any
		s.note(m.Name, known, mac, "asks for an address", "")
	}
	return known
}

// note remembers and tells how far a machine is; s.mu is held.
func (s *Server) note(name string, known bool, mac, phase, why string) *sight {
	all, key := s.seen, name
	if !known {
		all, key, name = s.unknown, mac, "unknown machine "+mac
	}
	now := all[key]
	if now == nil {
		if len(all) >= maxUnknown+len(s.config.Machines)+len(s.records) { // somebody makes up addresses
			clear(all)
		}
		now = &sight{}
		all[key] = now
	}
	phase, why = plain(phase), plain(why)
	if now.mac = mac; now.phase != phase || now.why != why {
		now.phase, now.why, now.since, now.done, now.total = phase, why, s.config.Now(), 0, 0
		if why != "" {
			phase += ": " + why
		}
		s.config.Logf("%s: %s", name, phase)
	}
	return now
}

// plain is what may be shown on a terminal of what machines tell.
func plain(s string) string {
	const longest = 300
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	return s[:min(len(s), longest)]
}

// recall is what is remembered of a machine; s.mu is held.
func (s *Server) recall(name string) (record, error) {
	r := s.records[name]
	w, err := window(s.config.Dir, name)
	r.released = w != "" && w != r.Window
	return r, err
}

// remember writes down what is so from now on; s.mu is held.
func (s *Server) remember(name string, r record) error {
	was, had := s.records[name]
	s.records[name] = r
	if err := save(s.config.Dir, s.records); err != nil {
		if s.records[name] = was; !had {
			delete(s.records, name)
		}
		return fmt.Errorf("remembering %s: %w", name, err)
	}
	return nil
}

// plan decides for a machine that has told of itself, and remembers what it decided before
// the machine hears of it.
func (s *Server) plan(h install.Hello) (install.Plan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.find(asker{mac: h.MAC, uuid: h.UUID, serial: h.Serial})
	if !known {
		why := fmt.Sprintf("no machine of the cluster file has MAC %s, UUID %s, serial number %q: add it (match: {mac: %q})", h.MAC, h.UUID, h.Serial, h.MAC)
		s.note("", false, h.MAC, "refused", why)
		return install.Plan{Action: install.Stop, Reason: why}, nil
	}
	r, err := s.recall(m.Name)
	if err != nil {
		return install.Plan{}, err
	}
	p := decide(m, r, h, s.config)
	switch p.Action {
	case install.Stop:
		s.note(m.Name, true, h.MAC, "waits for a person", p.Reason)
	case install.Local:
		why := ""
		if r.State == writing {
			why = "it is whole; if it was to be installed once more, kimage replace " + m.Name + " again"
		}
		s.note(m.Name, true, h.MAC, "boots its disk", why)
		if r.State != installed {
			r.MAC, r.UUID, r.Serial, r.State, r.Since = h.MAC, h.UUID, h.Serial, installed, s.config.Now()
			return p, s.remember(m.Name, r)
		}
	case install.Write:
		if r.Window, err = window(s.config.Dir, m.Name); err != nil {
			return p, err
		}
		r.MAC, r.UUID, r.Serial, r.State, r.Image, r.Since = h.MAC, h.UUID, h.Serial, writing, s.config.Image.ID, s.config.Now()
		if err := s.remember(m.Name, r); err != nil {
			return p, err
		}
		if err := os.Remove(releaseFile(s.config.Dir, m.Name)); err != nil && !os.IsNotExist(err) {
			return p, err
		}
		p.Image, p.Index, p.SHA256 = s.config.URL+imagePath, s.config.URL+indexPath, s.config.Image.SHA256
		p.Seed, p.SeedTo = s.config.URL+seedPath+s.token(m), s.config.SeedTo
		s.note(m.Name, true, h.MAC, "installing", "to "+p.Disk)
	}
	return p, nil
}

// progress takes what the installer tells.
func (s *Server) progress(p install.Progress) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := s.byMAC(p.MAC)
	r := s.records[name]
	switch {
	case r.State == installed && p.Phase == installed: // it did not hear that it was heard
		return nil
	case r.State == "" && p.Phase == installed:
		// What was remembered is lost. To believe it costs nobody data.
		m, known := s.find(asker{mac: p.MAC, noSerial: true})
		if known && (m.Pool != "" || m.Match.MAC != "") {
			s.note(m.Name, true, p.MAC, installed, "")
			return s.remember(m.Name, record{MAC: p.MAC, State: installed, Since: s.config.Now()})
		}
		return fmt.Errorf("no machine is known by MAC %s", p.MAC)
	case r.State != writing:
		return fmt.Errorf("nothing is written to a machine with MAC %s", p.MAC)
	}
	phase := p.Phase
	if phase == "writing" {
		phase = "installing"
	}
	now := s.note(name, true, p.MAC, phase, p.Error)
	now.done, now.total = p.Done, p.Total
	if p.Phase != installed {
		return nil
	}
	for token, m := range s.seeds {
		if m.Name == name {
			delete(s.seeds, token)
		}
	}
	r.State, r.Since = installed, s.config.Now()
	return s.remember(name, r)
}

// byMAC is the machine that told of itself with that address last; s.mu is held.
func (s *Server) byMAC(mac string) (name string) {
	for n, r := range s.records {
		if r.MAC == mac && (name == "" || r.Since.After(s.records[name].Since)) {
			name = n
		}
	}
	return name
}

// Line is how far a machine is.
type Line struct {
	Name      string    `json:"name"`
	Roles     []string  `json:"roles,omitempty"`
	MAC       string    `json:"mac,omitempty"`
	Phase     string    `json:"phase"`
	Why       string    `json:"why,omitempty"`
	Done      int64     `json:"done,omitempty"`  // bytes of the disk
	Total     int64     `json:"total,omitempty"` // bytes
	Since     time.Time `json:"since,omitzero"`
	Installed bool      `json:"installed"`
	Released  bool      `json:"released,omitempty"`
	Unknown   bool      `json:"unknown,omitempty"`
}

// Lines are all machines of the cluster file, then those of pools, then unknown ones.
func (s *Server) Lines() []Line {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Line
	add := func(name string, roles []string, now *sight) {
		r, _ := s.recall(name)
		l := Line{Name: name, Roles: roles, MAC: r.MAC, Phase: "never heard of", Installed: r.State == installed, Released: r.released}
		switch {
		case now != nil:
			l.MAC, l.Phase, l.Why, l.Done, l.Total, l.Since = now.mac, now.phase, now.why, now.done, now.total, now.since
		case r.State == installed:
			l.Phase, l.Since = "installed", r.Since
		case r.State == writing:
			l.Phase, l.Since = "half installed", r.Since
		}
		out = append(out, l)
	}
	for _, m := range s.config.Machines {
		add(m.Name, m.Roles, s.seen[m.Name])
	}
	if p := s.config.Pool; p != nil {
		var names []string
		for name := range s.records {
			names = append(names, name)
		}
		for name := range s.seen {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if strings.HasPrefix(name, p.Name+"/") {
				add(name, p.Roles, s.seen[name])
			}
		}
	}
	first := len(out)
	for mac, now := range s.unknown {
		out = append(out, Line{Name: mac, MAC: mac, Phase: now.phase, Why: now.why, Since: now.since, Unknown: true})
	}
	slices.SortFunc(out[first:], func(a, b Line) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (l Line) percent() string {
	if l.Total == 0 {
		return ""
	}
	return fmt.Sprintf(" %d %%", l.Done*100/l.Total)
}

// Text is a line for people, of its phase.
func (l Line) Text() string {
	var b bytes.Buffer
	b.WriteString(l.Phase + l.percent())
	if l.Why != "" {
		b.WriteString(": " + l.Why)
	}
	if l.Released {
		b.WriteString(" (released: will be written over)")
	}
	return b.String()
}
