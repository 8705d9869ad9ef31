package etcd

import (
	"fmt"
	"slices"
	"strings"
)

// noQuorumOf says why those that have data add nobody, if no quorum answers them:
// that a majority was lost, or what is to be added to another reason.
func (s State) noQuorumOf(holders []string) (why string, lost bool) {
	current := s.answers()
	for _, name := range holders {
		if current[name].View != nil {
			return "", false
		}
	}
	for _, name := range holders {
		if gone := lostMajority(s, current[name].voters(), name); gone != nil {
			return majorityLost(gone, name), true
		}
		if current[name].Alone != nil {
			why += "; no quorum answers the etcd of " + name + ", which says why"
		}
	}
	return why, false
}

// voters are those of a member whom no quorum answers, as far as it tells.
func (st Status) voters() []EtcdMember {
	switch {
	case st.Alone != nil:
		return st.Alone.voters()
	case st.Record != nil:
		return st.Record.voters()
	}
	return nil
}

// lostMajority names those of the voters whose data is lost, if the others can be
// no quorum; nil otherwise. Only a blank machine counts: one with data under a new
// incarnation was added again. One of the voters is on holder, which has its data.
func lostMajority(s State, voters []EtcdMember, holder string) (lost []string) {
	for _, m := range voters {
		incarnation, data := "", false
		if m.Name == s.Self {
			incarnation, data = s.Facts.Incarnation.ID, s.Facts.Data
		} else if st, ok := s.answers()[m.Name]; ok && m.Name != holder {
			incarnation, data = st.Incarnation, st.Data
		}
		if m.Incarnation != "" && incarnation != "" && incarnation != m.Incarnation && !data {
			lost = append(lost, m.Name)
		}
	}
	if len(voters)-len(lost) > len(voters)/2 {
		return nil
	}
	slices.Sort(lost)
	return lost
}

func majorityLost(lost []string, holder string) string {
	return fmt.Sprintf("a majority was lost: %s were imaged again after %s had started etcd, and what they held is gone; to go on with the data of %s: kimage recover --from %s",
		strings.Join(lost, " and "), holder, holder, holder)
}

// noQuorum says why no quorum answers the own etcd, and what a person can do;
// empty: nothing is known, as of an etcd that has just started, or a learner.
// stuck: there is none, and it will not come by itself.
func (s State) noQuorum() (why string, stuck bool) {
	var voters []EtcdMember
	if s.Alone != nil {
		voters = s.Alone.voters()
	} else if rec := s.Facts.held(s.Self); rec != nil {
		voters = rec.voters()
	}
	if lost := lostMajority(s, voters, s.Self); lost != nil {
		return majorityLost(lost, s.Self), true
	}
	if s.Alone == nil {
		return "", false
	}
	var down []string
	for _, m := range voters {
		if why := s.down(m); why != "" {
			down = append(down, fmt.Sprintf("%s (%s)", m.Name, why))
		}
	}
	slices.Sort(down)
	switch {
	case len(down) == 0:
		return "no quorum has answered etcd yet", false
	case len(voters)-len(down) > len(voters)/2:
		return "no quorum has answered etcd yet; of its voters are down: " + strings.Join(down, ", "), false
	}
	return fmt.Sprintf("etcd has no quorum, and nothing is changed: of its %d voters are down: %s; switch them on; if they are gone for good, go on with the data of %s: kimage recover --from %s",
		len(voters), strings.Join(down, ", "), s.Self, s.Self), true
}

// down says why a voter does not do its part; empty: it seems to.
func (s State) down(m EtcdMember) string {
	if m.ID == s.Alone.Self {
		return ""
	}
	a, asked := s.Answers[m.Name]
	st, current := s.answers()[m.Name]
	switch {
	case s.Hears[m.ID]:
		return "" // its agent alone may be down
	case asked && a.Err != "":
		return a.Err
	case !current:
		return "" // it is being asked
	case st.Unknown != "":
		return "says: " + st.Unknown
	case m.Incarnation != "" && st.Incarnation != m.Incarnation, !st.Data:
		return "its data is gone"
	case !st.Running:
		return "its etcd does not run"
	}
	return "this machine's etcd does not hear its etcd"
}
