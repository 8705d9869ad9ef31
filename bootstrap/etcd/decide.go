package etcd

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/peer"
)

// State is what was observed: the own disk, and what the others answered.
type State struct {
	Self    string
	Unknown string // what could not be established about this machine; empty: all was
	Facts   Facts
	Roster  nodeconf.Roster // Facts.Roster, opened; zero: none
	Digest  string          // of Facts.Roster
	Offer   *nodeconf.SignedRoster
	Refused string // a roster that contradicts the own one; empty: none

	Writes  uint64            // how often this process wrote its facts
	Answers map[string]Answer // by the name of the peer
	Running bool              // the own etcd process runs

	RunsAs  string                   // while it joins: the member that the own etcd says to be; empty: it does not say yet
	Ended   string                   // if etcd should run and does not: its last words
	Trouble string                   // why etcd ended when it was started last, and what to do; empty: it has answered since, or nothing is known
	Unfit   string                   // why the etcd of this image cannot join; empty: it was not seen to fail
	View    *View                    // what the own etcd said of its members lately; nil: nothing
	Alone   *View                    // without a View, since no quorum answers: what it knows by itself; only to explain
	Hears   map[string]bool          // the IDs of those with which it is connected
	Silent  map[string]time.Duration // by the name of the peer: since when it has not answered
	Proving bool                     // the answers are to Question.Prove
}

// Answer is what a peer said, or why it said nothing.
type Answer struct {
	AskedAfter uint64 // State.Writes when the question was sent
	Status     Status
	Err        string
	Ahead      time.Duration // the peer's clock, of the own one
	BadTime    bool          // its certificate is not valid by the own clock
}

// Verb is what is to be done.
type Verb string

const (
	Stop       Verb = "stop"        // nothing may be concluded, nothing is touched
	Wait       Verb = "wait"        // for others, or for a person
	TakeRoster Verb = "take roster" // a higher one
	Renew      Verb = "renew"       // make an incarnation: there is none, or its data is lost
	SetAside   Verb = "set aside"   // data of an older generation
	Hold       Verb = "hold"        // write Record down
	Propose    Verb = "propose"     // Record to the members To
	Found      Verb = "found"       // make the data of Record
	Start      Verb = "start"       // etcd, on the data that is there
	Join       Verb = "join"        // note that etcd joins Cluster
	Joined     Verb = "joined"      // note that its data is whole
	Keep       Verb = "keep"        // etcd runs; Repair, if there is something to
)

// Action is one step, and the reason for it in words for a person.
type Action struct {
	Do     Verb
	Why    string
	Record Record
	To     []string
	Roster nodeconf.SignedRoster

	Cluster Cluster
	Repair  Step
	Note    string // Keep: what repair does, or why it cannot do what is needed
	Stuck   bool   // Keep: etcd has no quorum, says Note
}

// Decide says what a member does next. It is repeated until there is nothing
// left to do; each action is safe to repeat.
func Decide(s State) Action {
	own := s.Facts.Incarnation
	switch {
	case s.Unknown != "":
		return Action{Do: Stop, Why: s.Unknown}
	case s.Offer != nil:
		return Action{Do: TakeRoster, Why: "a newer roster was heard of", Roster: *s.Offer}
	case s.Roster.Generation == 0:
		return Action{Do: Stop, Why: "this machine has no roster: " + nodeconf.RosterFile + " is written by first boot"}
	case own.ID == "" && !s.Facts.Data:
		return Action{Do: Renew, Why: "this machine has no data"}
	case s.rolledBack() != "" && s.Facts.Data:
		return Action{Do: SetAside, Why: fmt.Sprintf("%s: %s has heard of another state of it", oldDisk, s.rolledBack())}
	case s.rolledBack() != "":
		return Action{Do: Renew, Why: fmt.Sprintf("%s: %s has heard of another state of it", oldDisk, s.rolledBack())}
	case s.Facts.lost():
		return Action{Do: Renew, Why: "this machine's data is gone: it comes back as another member"}
	case s.Facts.joining():
		return joining(s)
	case s.Facts.Data:
		return withData(s)
	}
	return withoutData(s)
}

// withData is for a member of a cluster.
func withData(s State) Action {
	pin := s.Facts.Cluster
	switch {
	case pin.Incarnation != s.Facts.Incarnation.ID:
		return Action{Do: Stop, Why: "the data's cluster is not recorded: " + clusterFile + " names another incarnation"}
	case s.Facts.held(s.Self) != nil && s.Facts.held(s.Self).ClusterID() != pin.ID:
		return Action{Do: Stop, Why: fmt.Sprintf("the data is of cluster %s, and %s would have founded another: image the machine again", pin.ID, recordFile)}
	case pin.Generation < s.Roster.Generation:
		return Action{Do: SetAside, Why: fmt.Sprintf("the data is of generation %d, and the operator made generation %d", pin.Generation, s.Roster.Generation)}
	case pin.Generation > s.Roster.Generation:
		return Action{Do: Stop, Why: fmt.Sprintf("the data is of generation %d, and the roster of %d: give this machine the newer roster", pin.Generation, s.Roster.Generation)}
	case s.removed() != "":
		return Action{Do: SetAside, Why: s.removed() + " says that the cluster has removed this member"}
	case !s.Running && unusableBy(s.Ended) != "":
		return corrupt(s)
	case !s.Running || !s.Facts.Incarnation.Started:
		return Action{Do: Start, Why: because("there is data", s.Trouble)}
	}
	a := Action{Do: Keep, Why: "etcd runs"}
	if s.View == nil {
		a.Note, a.Stuck = s.noQuorum()
		a.Note = because(a.Note, s.Trouble)
	} else if own := s.View.of(pin.Member); own != nil && !own.Learner {
		a.Repair, a.Note = nextStep(s)
		a.Note = because(s.alarms(), a.Note)
	}
	a.Why = because(a.Why, a.Note) + also(s)
	return a
}

// because are the reasons, of which some may be empty.
func because(reasons ...string) string {
	return strings.Join(slices.DeleteFunc(reasons, func(r string) bool { return r == "" }), "; ")
}

// joining is for a machine whose etcd makes its data from the members that it
// joins. It is started once for that, while somebody says that the member is
// this incarnation's: what it left, if it ended before its data was whole, is
// not used again.
func joining(s State) Action {
	pin := s.Facts.Cluster
	switch {
	case s.removed() != "" || pin.Generation != s.Roster.Generation:
		return Action{Do: SetAside, Why: "the cluster has removed this member before it had joined"}
	case s.Running && s.RunsAs != "" && s.RunsAs != pin.Member:
		// A learner was added late for an incarnation that is no more, and has this
		// machine's address.
		return Action{Do: SetAside, Why: fmt.Sprintf("etcd has joined as member %s, and was to be %s", s.RunsAs, pin.Member)}
	case s.Running && s.Facts.Data && s.RunsAs != "":
		return Action{Do: Joined, Why: "etcd has joined"}
	case s.Running && s.RunsAs != "":
		return Action{Do: SetAside, Why: "this machine's data is gone, and etcd runs: it comes back as another member"}
	case s.Running:
		return Action{Do: Wait, Why: "etcd joins"}
	case s.Facts.Data:
		return Action{Do: Start, Why: "there is data"}
	case s.Facts.Incarnation.Started && s.Unfit != "":
		// Another attempt would end like this one, and be another member.
		return Action{Do: Wait, Why: s.Unfit + also(s)}
	case s.Facts.Incarnation.Started:
		return Action{Do: SetAside, Why: "etcd ended before it had joined: this machine comes back as another member"}
	}
	if why, stop := peer.JudgeClocks(s.clocks()); stop {
		return Action{Do: Stop, Why: why}
	}
	now := s.added(s.answers())
	switch {
	case now == nil:
		return Action{Do: Wait, Why: "waits for a member that knows this one" + also(s)}
	case *now != pin:
		return Action{Do: Join, Why: "the members have changed", Cluster: *now}
	}
	if unaware := s.unaware(pin); unaware != "" {
		return Action{Do: Wait, Why: "was added, and waits until each of the other members has shown that it knows: " + unaware + also(s)}
	}
	return Action{Do: Start, Why: "this machine was added"}
}

// withoutData is for a machine that may become a member.
func withoutData(s State) Action {
	now := s.added(s.answers())
	if now == nil && !slices.ContainsFunc(s.Roster.Members, func(m nodeconf.Member) bool { return m.Name == s.Self }) {
		return Action{Do: Wait, Why: "this machine is no etcd member by the newest roster: it can be switched off" + also(s)}
	}
	if why, stop := peer.JudgeClocks(s.clocks()); stop {
		return Action{Do: Stop, Why: why}
	}
	if now != nil {
		return Action{Do: Join, Why: "this machine was added", Cluster: *now}
	}
	if !slices.Contains(s.Roster.Founding, s.Self) {
		why, lost := s.noQuorumOf(s.holders())
		if !lost {
			why = "not a founding member: waits to be added by the others" + why
		}
		return Action{Do: Wait, Why: why + also(s)}
	}
	current := s.answers()
	if a, done := joinFounded(s, current); done {
		return a
	}
	if s.left() {
		return Action{Do: Wait, Why: fmt.Sprintf("cluster %s went on without this machine, and nobody that answers has its data: switch on who has it, or make a new generation with kimage recover", s.Facts.Cluster.ID) + also(s)}
	}
	if gone := notMembers(s.Roster); len(gone) > 0 {
		return Action{Do: Wait, Why: fmt.Sprintf("the founding members %s left the roster before etcd was founded: make a new generation with kimage recover", strings.Join(gone, ", "))}
	}
	if silent := s.silent(s.Roster.Members, current); silent != "" {
		return Action{Do: Wait, Why: "the roster has members besides the founding ones, so the cluster may exist: all must answer once: " + silent + also(s)}
	}
	if silent := s.silent(s.Roster.Left, current); silent != "" {
		return Action{Do: Wait, Why: fmt.Sprintf("members have left the roster, so the cluster may exist there: switch on %s, or make a new generation with kimage recover", silent) + also(s)}
	}
	held := s.Facts.held(s.Self)
	if held != nil && held.of(s.Roster, s.Digest) && allHold(s, current, *held) {
		return Action{Do: Found, Why: "all founding members hold the same record", Record: *held}
	}
	if missing := s.missing(current); missing != "" {
		return Action{Do: Wait, Why: "all founding members must answer once: " + missing + also(s)}
	}
	if s.Self != s.Roster.Founding[0] {
		return Action{Do: Wait, Why: "waits for the proposal of " + s.Roster.Founding[0] + also(s)}
	}
	return propose(s, current, held)
}

// answers are those that count: to questions asked after the own last write.
// What was asked before may have been true only before that write.
func (s State) answers() map[string]Status {
	current := map[string]Status{}
	for name, a := range s.Answers {
		if a.Err == "" && a.AskedAfter == s.Writes {
			current[name] = a.Status
		}
	}
	return current
}

// joinFounded is for a member that somebody has founded without or before.
func joinFounded(s State, current map[string]Status) (Action, bool) {
	own := s.Facts.Incarnation.ID
	var strangers []string
	for _, name := range s.holders() {
		st := current[name]
		if st.Record == nil || !st.Record.names(s.Self, own) || st.Record.Generation != s.Roster.Generation {
			strangers = append(strangers, name)
			continue
		}
		if held := s.Facts.held(s.Self); held == nil || held.Token() != st.Record.Token() {
			return Action{Do: Hold, Why: name + " has founded this record", Record: *st.Record}, true
		}
		return Action{Do: Found, Why: name + " has founded the record that is held", Record: *st.Record}, true
	}
	if len(strangers) == 0 {
		return Action{}, false
	}
	why, lost := s.noQuorumOf(strangers)
	if !lost {
		why = "the cluster exists and does not know this machine's data: waits to be added by " + strings.Join(strangers, ", ") + why
	}
	return Action{Do: Wait, Why: why + also(s)}, true
}

// holders are those that answer and have data of this generation.
func (s State) holders() (all []string) {
	for name, st := range s.answers() {
		if st.Data && st.Generation == s.Roster.Generation {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// allHold says whether every founding member holds the record, under the
// incarnation that the record names for it.
func allHold(s State, current map[string]Status, rec Record) bool {
	for _, name := range s.Roster.Founding {
		if name == s.Self {
			continue
		}
		st, ok := current[name]
		if !ok || st.Data || st.Record == nil || st.Record.Token() != rec.Token() || !rec.names(name, st.Incarnation) {
			return false
		}
	}
	return true
}

// propose is for the first founding member; the others would do no harm, but
// could keep each other from ever agreeing.
func propose(s State, current map[string]Status, held *Record) Action {
	incarnation := map[string]string{s.Self: s.Facts.Incarnation.ID}
	for _, name := range s.Roster.Founding {
		if name != s.Self {
			incarnation[name] = current[name].Incarnation
		}
	}
	rec := compose(s.Roster, s.Digest, incarnation)
	if held == nil || held.Token() != rec.Token() {
		return Action{Do: Hold, Why: "all founding members answer", Record: rec}
	}
	a := Action{Do: Propose, Why: "all founding members answer", Record: rec}
	for _, name := range s.Roster.Founding {
		if st := current[name]; name != s.Self && (st.Record == nil || st.Record.Token() != rec.Token()) {
			a.To = append(a.To, name)
		}
	}
	return a
}

// silent are those of members that found nothing and do not answer. Who founds must
// know that none of them has data: founding members that were dismissed, and are
// blank and in the roster again, would else found once more.
func (s State) silent(members []nodeconf.Member, current map[string]Status) string {
	var all []string
	for _, m := range members {
		if st, ok := current[m.Name]; m.Name != s.Self && !slices.Contains(s.Roster.Founding, m.Name) && (!ok || st.Unknown != "") {
			all = append(all, m.Name)
		}
	}
	return strings.Join(all, ", ")
}

// missing says which founding members did not answer, or not in a way that a
// record could be made of.
func (s State) missing(current map[string]Status) string {
	var all []string
	for _, name := range s.Roster.Founding {
		if name == s.Self {
			continue
		}
		st, ok := current[name]
		switch {
		case !ok && s.Answers[name].Err != "":
			all = append(all, name+" ("+s.Answers[name].Err+")")
		case !ok:
			all = append(all, name+" (being asked)")
		case st.Unknown != "":
			all = append(all, name+" (says: "+st.Unknown+")")
		case st.Incarnation == "":
			all = append(all, name+" (is not ready)")
		case st.Digest != s.Digest:
			all = append(all, name+" (has another roster)")
		}
	}
	return strings.Join(all, ", ")
}

// clock is what an answer shows of the clock of name; nil: nothing.
func (a Answer) clock(name string) *peer.Clock {
	if a.Err != "" && !a.BadTime {
		return nil
	}
	return &peer.Clock{Name: name, Ahead: a.Ahead, Unknown: a.BadTime}
}

// clocks are those of the members that answer, or whose certificates tell.
func (s State) clocks() (all []peer.Clock) {
	for name, a := range s.Answers {
		if c := a.clock(name); c != nil {
			all = append(all, *c)
		}
	}
	return all
}

// also is what a person should know beside the reason.
func also(s State) (words string) {
	if s.Refused != "" {
		words = "; " + s.Refused
	}
	if s.Unfit != "" && !s.Facts.joining() && !s.Facts.Data {
		words += "; " + s.Unfit
	}
	if why, _ := peer.JudgeClocks(s.clocks()); why != "" {
		words += "; " + why
	}
	return words
}

// notMembers are founding members that the roster no longer has as members.
func notMembers(r nodeconf.Roster) (gone []string) {
	for _, name := range r.Founding {
		if !slices.ContainsFunc(r.Members, func(m nodeconf.Member) bool { return m.Name == name }) {
			gone = append(gone, name)
		}
	}
	return gone
}
