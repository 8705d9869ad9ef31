package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// View is what etcd says of its members, read from a quorum.
type View struct {
	Cluster  string       `json:"cluster"`  // etcd's cluster ID, in hexadecimal
	Self     string       `json:"self"`     // the ID of the member that was asked
	Revision int64        `json:"revision"` // of the store: who was added before it and is no member was removed
	Members  []EtcdMember `json:"members"`
	Alarms   []Alarm      `json:"alarms,omitempty"`
}

// Alarm is one that etcd raised, and which stays until a person ends it.
type Alarm struct {
	Kind   string `json:"kind"`             // in etcd's words: CORRUPT, NOSPACE
	Member string `json:"member,omitempty"` // ID; empty: etcd does not know of whom
}

// EtcdMember is a member as etcd and the register know it.
type EtcdMember struct {
	ID          string `json:"id"`
	Name        string `json:"name,omitempty"`        // as registered; else etcd's own; empty: it never started
	Incarnation string `json:"incarnation,omitempty"` // as registered; empty: it is not
	Added       int64  `json:"added,omitempty"`       // the store's revision when it was registered
	PeerURL     string `json:"peerURL"`
	Learner     bool   `json:"learner,omitempty"`
	Started     bool   `json:"started,omitempty"` // an etcd has run as this member
}

// of returns the member with an ID; nil: none.
func (v *View) of(id string) *EtcdMember {
	if v == nil {
		return nil
	}
	for i := range v.Members {
		if v.Members[i].ID == id {
			return &v.Members[i]
		}
	}
	return nil
}

// voters are those of the members that vote.
func (v *View) voters() (all []EtcdMember) {
	for _, m := range v.Members {
		if !m.Learner {
			all = append(all, m)
		}
	}
	return all
}

// StepVerb is one kind of change that repair makes.
type StepVerb string

const (
	Register StepVerb = "register" // that member ID belongs to Name's Incarnation
	Add      StepVerb = "add"      // a learner for Name's Incarnation
	Promote  StepVerb = "promote"  // the learner ID
	Remove   StepVerb = "remove"   // the member ID
)

// Step is one change of etcd's members or of their register.
type Step struct {
	Do                             StepVerb
	ID, Name, Incarnation, PeerURL string
}

// ownEtcd is the own etcd, as far as repair needs it. All that is not said to do
// without needs a quorum.
type ownEtcd interface {
	view(ctx context.Context) (View, error)
	known(ctx context.Context) (View, error)            // by itself, which may be old; needs no quorum
	self(ctx context.Context) (id string, err error)    // of a learner too; needs no quorum
	hears(ctx context.Context) (map[string]bool, error) // by ID; needs no quorum
	lock(ctx context.Context, name string) (release func(), err error)
	register(ctx context.Context, id, name, incarnation string) error
	add(ctx context.Context, peerURL string) (id string, err error)
	promote(ctx context.Context, id string) error
	remove(ctx context.Context, id string) error
}

var errLocked = errors.New("another member is repairing")

// clearAfter is how long the agent of a learner must be silent before its place
// is given to another that waits.
const clearAfter = 10 * time.Minute

// owner is the name and the incarnation to which a member belongs. Of founding
// members the record says so before the register does.
func (s State) owner(m EtcdMember) (name, incarnation string) {
	if m.Incarnation != "" {
		return m.Name, m.Incarnation
	}
	if rec := s.Facts.held(s.Self); rec != nil {
		for _, f := range rec.Members {
			if hexID(rec.MemberID(f.Name)) == m.ID {
				return f.Name, f.Incarnation
			}
		}
	}
	for _, r := range s.Roster.Members {
		if r.PeerURL == m.PeerURL {
			return r.Name, ""
		}
	}
	return m.Name, ""
}

// shown is the incarnation that the machine name has now; empty: it is not known.
func (s State) shown(name string) string {
	if name == s.Self {
		return s.Facts.Incarnation.ID
	}
	return s.answers()[name].Incarnation
}

// proves says whether a voter has just shown that it is one, and the own etcd is
// connected with it: what others serve may hang on the member that is to go. Before the lock is
// held it is enough that its process runs.
func (s State) proves(m EtcdMember) bool {
	if m.ID == s.View.Self {
		return true
	}
	name, incarnation := s.owner(m)
	st, ok := s.answers()[name]
	return ok && s.Hears[m.ID] && st.Running && (st.Serves || !s.Proving) && st.Member == m.ID && (incarnation == "" || st.Incarnation == incarnation)
}

// without says why the cluster must not go on without the voter m; empty: a
// quorum of the others has just been proven.
func (s State) without(m EtcdMember) string {
	others, proven := 0, 0
	var silent []string
	for _, v := range s.View.Members {
		if v.Learner || v.ID == m.ID {
			continue
		}
		others++
		if s.proves(v) {
			proven++
		} else {
			name, _ := s.owner(v)
			silent = append(silent, name)
		}
	}
	if proven >= others/2+1 {
		return ""
	}
	return fmt.Sprintf("of the other members only %d of %d serve (not %s)", proven, others, strings.Join(silent, ", "))
}

// nextStep says which one change the members of etcd need, and why; or why one
// that they need cannot be made. It is for a voter with a view. Dead members
// leave before new ones come, because etcd adds nobody while one is down; who
// left the roster and lives goes last, when all others are voters.
func nextStep(s State) (step Step, why string) {
	v := s.View
	inRoster := func(name string) bool {
		return slices.ContainsFunc(s.Roster.Members, func(m nodeconf.Member) bool { return m.Name == name })
	}
	var refused []string
	member := map[string]bool{} // names with a member, whatever its state
	var learner *EtcdMember
	for i, m := range v.Members {
		name, incarnation := s.owner(m)
		if m.Incarnation == "" && incarnation != "" {
			return Step{Do: Register, ID: m.ID, Name: name, Incarnation: incarnation}, "notes which machine is which member"
		}
		if name != "" {
			member[name] = true
		}
		if m.Learner {
			learner = &v.Members[i]
			continue
		}
		if m.ID == v.Self {
			continue
		}
		now := s.shown(name)
		stale := ""
		switch {
		case s.Hears[m.ID]:
			if incarnation != "" && now != "" && now != incarnation {
				refused = append(refused, twoMachines(name))
			}
		case !inRoster(name):
			stale = "it left the roster and is down"
		case incarnation != "" && now != "" && now != incarnation:
			stale = "its data is gone: the machine came back as another"
		}
		if stale == "" {
			continue
		}
		if not := s.without(m); not != "" {
			refused = append(refused, fmt.Sprintf("%s cannot be removed (%s): %s", name, stale, not))
			continue
		}
		return Step{Do: Remove, ID: m.ID, Name: name}, "removes the old member of " + name + ": " + stale
	}
	joins := func(r nodeconf.Member) string {
		if st, ok := s.answers()[r.Name]; ok && !member[r.Name] && !st.Data && st.Unknown == "" && st.Unfit == "" {
			return st.Incarnation
		}
		return ""
	}
	var waiting []nodeconf.Member
	for _, r := range s.Roster.Members {
		if joins(r) != "" {
			waiting = append(waiting, r)
		}
	}
	switch {
	case learner != nil:
		if st, w := s.learnerStep(*learner, len(waiting) > 0, inRoster); st.Do != "" || w != "" {
			step, why = st, w
		}
	case len(waiting) > 0:
		step, why = Step{Do: Add, Name: waiting[0].Name, Incarnation: joins(waiting[0]), PeerURL: waiting[0].PeerURL}, "adds "+waiting[0].Name
	default:
		step, why = s.dismiss(inRoster)
	}
	if step.Do == "" && len(refused) > 0 {
		why = strings.Join(refused, "; ")
	}
	return step, why
}

func twoMachines(name string) string {
	return fmt.Sprintf("two machines are %s: etcd hears the one, and the agent of the other answers; switch one of them off", name)
}

// learnerStep is for the learner that is there: a second one waits for it.
func (s State) learnerStep(l EtcdMember, othersWait bool, inRoster func(string) bool) (Step, string) {
	name, incarnation := s.owner(l)
	now, st := s.shown(name), s.answers()[name]
	switch {
	case incarnation == "" && l.Started:
		return Step{}, fmt.Sprintf("the learner %s (%s) was added by somebody else: it is left alone, and until it is promoted or removed nobody else can be added", l.ID, l.Name)
	case !inRoster(name):
		return Step{Do: Remove, ID: l.ID, Name: name}, "removes the learner of " + name + ": it left the roster"
	case incarnation == "" && now != "" && !st.Data:
		// Nobody was told of it: whoever added it ended before it was noted.
		return Step{Do: Register, ID: l.ID, Name: name, Incarnation: now}, "notes for whom the new member is"
	case incarnation != "" && now != "" && now != incarnation && s.Hears[l.ID]:
		return Step{}, twoMachines(name)
	case incarnation != "" && now != "" && now != incarnation:
		return Step{Do: Remove, ID: l.ID, Name: name}, "removes the learner of " + name + ": the machine came back as another"
	case st.Unfit != "" && othersWait:
		return Step{Do: Remove, ID: l.ID, Name: name}, "removes the learner of " + name + ", which cannot join, and others wait"
	case now == "" && othersWait && s.Silent[name] >= clearAfter:
		return Step{Do: Remove, ID: l.ID, Name: name}, fmt.Sprintf("removes the learner of %s: its agent has been silent for %s, and others wait", name, s.Silent[name].Round(time.Minute))
	case st.Running && st.Member == l.ID:
		return Step{Do: Promote, ID: l.ID, Name: name}, "makes " + name + " a voter"
	}
	if st.Unfit != "" {
		return Step{}, name + ", which was added, cannot join: " + st.Unfit
	}
	return Step{}, "waits for " + name + ", which was added"
}

// dismiss removes a member that left the roster and lives.
func (s State) dismiss(inRoster func(string) bool) (Step, string) {
	var leaves *EtcdMember
	voter := map[string]bool{}
	for i, m := range s.View.Members {
		name, _ := s.owner(m)
		if !inRoster(name) && m.ID != s.View.Self {
			leaves = &s.View.Members[i]
		}
		if !m.Learner && s.proves(m) {
			voter[name] = true
		}
	}
	if leaves == nil {
		return Step{}, ""
	}
	name, _ := s.owner(*leaves)
	for _, r := range s.Roster.Members {
		if !voter[r.Name] {
			return Step{}, fmt.Sprintf("%s left the roster and stays until %s is a member that serves", name, r.Name)
		}
	}
	if not := s.without(*leaves); not != "" {
		return Step{}, fmt.Sprintf("%s left the roster and cannot be removed: %s", name, not)
	}
	return Step{Do: Remove, ID: leaves.ID, Name: name}, "removes " + name + ", which left the roster: all of the roster serve"
}

// added is for a machine without data that a voter added for this very
// incarnation.
func (s State) added(current map[string]Status) *Cluster {
	for _, name := range slices.Sorted(maps.Keys(current)) {
		st := current[name]
		if !st.Data || st.Generation != s.Roster.Generation || st.View == nil || st.View.Cluster != st.Cluster {
			continue
		}
		for _, m := range st.View.Members {
			if m.Name == s.Self && m.Incarnation != "" && m.Incarnation == s.Facts.Incarnation.ID {
				return &Cluster{ID: st.Cluster, Generation: st.Generation, Incarnation: m.Incarnation, Member: m.ID, Added: m.Added, Joining: st.View.initialCluster()}
			}
		}
	}
	return nil
}

// unaware are the members of the cluster that have not shown that they know of
// this one. etcd finds its ID at any of them, and one that lags may still have
// the ID that lost its data under this address. A view is read from a quorum
// through the asked member's own etcd, which by that has applied all before it.
func (s State) unaware(pin Cluster) string {
	current := s.answers()
	var all []string
	for _, pair := range strings.Split(pin.Joining, ",") {
		name, _, _ := strings.Cut(pair, "=")
		v := current[name].View
		if name != s.Self && (v == nil || v.Cluster != pin.ID || v.Revision < pin.Added || v.of(pin.Member) == nil) {
			all = append(all, name)
		}
	}
	return strings.Join(all, ", ")
}

// initialCluster is what a joining etcd must be told: the members that there
// are, or it ends.
func (v *View) initialCluster() string {
	var all []string
	for _, m := range v.Members {
		name := m.Name
		if name == "" {
			name = "unnamed-" + m.ID
		}
		all = append(all, name+"="+m.PeerURL)
	}
	return strings.Join(all, ",")
}

// removed says who knows that the own member was removed; empty: nobody. An ID
// never comes back.
func (s State) removed() string {
	pin := s.Facts.Cluster
	for _, name := range slices.Sorted(maps.Keys(s.answers())) {
		if v := s.answers()[name].View; v != nil && v.Cluster == pin.ID && pin.Member != "" && v.Revision >= pin.Added && v.of(pin.Member) == nil {
			return name
		}
	}
	return ""
}

// repair makes one step, under the lock, if it is still the right one by fresh
// answers: what the decision was made on may be old. Entries of the register are
// no changes, and are made together.
func (a *Agent) repair(ctx context.Context, want Step) error {
	ctx, cancel := context.WithTimeout(ctx, lockSeconds/2*time.Second)
	defer cancel()
	release, err := a.etcd.lock(ctx, a.cfg.Name)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	defer a.view.forget()
	for {
		a.view.forget()
		a.survey(ctx, true)
		s := a.observe(ctx)
		s.Proving = true
		if s.Unknown != "" || s.View == nil {
			return nil
		}
		step, why := nextStep(s)
		if step != want && (want.Do != Register || step.Do != Register) {
			return nil
		}
		a.cfg.Logf("etcd: repair: %s", why)
		if err := a.do(ctx, step); err != nil || step.Do != Register {
			return err
		}
	}
}

// do makes a step.
func (a *Agent) do(ctx context.Context, step Step) error {
	switch step.Do {
	case Register:
		return a.etcd.register(ctx, step.ID, step.Name, step.Incarnation)
	case Add:
		id, err := a.etcd.add(ctx, step.PeerURL)
		if err != nil {
			return fmt.Errorf("adding %s: %w", step.Name, err)
		}
		return a.etcd.register(ctx, id, step.Name, step.Incarnation)
	case Promote:
		if err := a.etcd.promote(ctx, step.ID); err != nil {
			return fmt.Errorf("%s is not yet a voter: %w", step.Name, err)
		}
		return nil
	case Remove:
		if err := a.etcd.remove(ctx, step.ID); err != nil {
			return fmt.Errorf("removing the member of %s: %w", step.Name, err)
		}
		return nil
	}
	return fmt.Errorf("BUG: no way to %q", step.Do)
}
