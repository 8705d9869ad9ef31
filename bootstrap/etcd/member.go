package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"sync"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// member is a machine's own part: its facts, and the order of their writes.
type member struct {
	name   string
	uid    string // of the cluster
	open   func(nodeconf.SignedRoster) (nodeconf.Roster, error)
	random func() string // a new incarnation, or tag of a count
	disk   disk

	mu     sync.Mutex // facts are read, told and written under it
	writes uint64     // see State.Writes
}

// errMoved: something was written since the decision, so it is no longer valid.
var errMoved = errors.New("the facts changed since the decision")

// observe is the machine's own part of a State.
func (m *member) observe() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.look()
}

func (m *member) look() State {
	s := State{Self: m.name, Writes: m.writes}
	unknown := func(err error) State {
		return State{Self: m.name, Writes: m.writes, Unknown: err.Error()}
	}
	var err error
	if s.Facts, err = m.disk.load(); err != nil {
		return unknown(err)
	}
	if own := s.Facts.Incarnation; own.ID != "" && (own.ClusterUID != m.uid || own.Node != m.name) {
		return unknown(fmt.Errorf("the data partition is that of %s in cluster %s, and this machine is %s in cluster %s: image the machine again, or give it back its config", own.Node, own.ClusterUID, m.name, m.uid))
	}
	if s.Facts.Roster != nil {
		if s.Roster, err = m.open(*s.Facts.Roster); err != nil {
			return unknown(fmt.Errorf("reading the stored roster: %w", err))
		}
		s.Digest = s.Facts.Roster.Digest()
	}
	return s
}

// status is what others are told.
func (m *member) status() Status { return m.observe().tell(m.uid) }

// tell makes the status of a member's own part of a state.
func (s State) tell(uid string) Status {
	st := Status{ClusterUID: uid, Name: s.Self, Unknown: s.Unknown, Digest: s.Digest, Roster: s.Facts.Roster,
		Counter: s.Facts.Incarnation.Counter, Tag: s.Facts.Incarnation.tag(s.Facts.Incarnation.Counter), Heard: s.Facts.Heard}
	if s.Unknown != "" || s.Facts.lost() {
		return st
	}
	st.Incarnation = s.Facts.Incarnation.ID
	st.Record = s.Facts.held(s.Self)
	if s.Facts.Data {
		if st.Record != nil && st.Record.ClusterID() != s.Facts.Cluster.ID {
			st.Record = nil // nobody may join by it
		}
		st.Data, st.Generation, st.Cluster, st.Member = true, s.Facts.Cluster.Generation, s.Facts.Cluster.ID, s.Facts.Cluster.Member
	}
	return st
}

// accept writes a proposed record down if it may be held, and tells the status
// after that, and why it may not.
func (m *member) accept(rec Record) (Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.look()
	if err := s.mayHold(rec); err != nil {
		return s.tell(m.uid), err
	}
	if held := s.Facts.held(m.name); held == nil || held.Token() != rec.Token() {
		if err := m.write(recordFile, rec); err != nil {
			return m.look().tell(m.uid), err
		}
	}
	return m.look().tell(m.uid), nil
}

// mayHold says why a record must not be held; nil: it may.
func (s State) mayHold(rec Record) error {
	switch {
	case s.Unknown != "":
		return errors.New(s.Unknown)
	case s.Facts.Data || s.Facts.joining():
		return fmt.Errorf("%s has data", s.Self)
	case s.Facts.lost() || !rec.names(s.Self, s.Facts.Incarnation.ID):
		return fmt.Errorf("the record names another incarnation of %s", s.Self)
	case !rec.of(s.Roster, s.Digest):
		return fmt.Errorf("the record is not of the roster that %s has", s.Self)
	}
	return nil
}

// write makes one fact durable. Whatever was asked before it counts no more.
func (m *member) write(file string, content any) error {
	m.writes++
	return m.disk.save(file, content)
}

// hold writes down a record that was decided on.
func (m *member) hold(s State, rec Record) error {
	return m.change(s, func(now State) error {
		if now.Facts.Data {
			return errMoved
		}
		return m.write(recordFile, rec)
	})
}

// change runs do if nothing was written since s was observed.
func (m *member) change(s State, do func(now State) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.look()
	if now.Unknown != "" {
		return errors.New(now.Unknown)
	}
	if now.Writes != s.Writes || now.Facts.Incarnation.ID != s.Facts.Incarnation.ID {
		return errMoved
	}
	return do(now)
}

// renew makes a new incarnation. The old one's record and data name the old one
// and count no more.
func (m *member) renew(s State) error {
	return m.change(s, func(now State) error {
		if now.Facts.Data {
			return errMoved
		}
		fresh := Incarnation{ID: m.random(), ClusterUID: m.uid, Node: m.name, Counter: now.Facts.Incarnation.Counter}
		return m.write(incarnationFile, fresh.counted(m.random()))
	})
}

// takeRoster stores a roster that is higher than the stored one.
func (m *member) takeRoster(s State, signed nodeconf.SignedRoster) error {
	return m.change(s, func(now State) error {
		r, err := m.open(signed)
		if err != nil {
			return err
		}
		if now.Facts.Roster != nil {
			if newer, err := r.Newer(now.Roster); err != nil || !newer {
				return err
			}
		}
		return m.write(rosterFile, signed)
	})
}

// found makes the data of the record that is held. Making takes a while, in
// which others may be answered; the name is given only if nothing was written
// meanwhile.
func (m *member) found(ctx context.Context, s State, rec Record, restore func(context.Context, Record) (string, error)) error {
	made, err := restore(ctx, rec)
	if err != nil {
		return err
	}
	return m.change(s, func(now State) error {
		if held := now.Facts.held(m.name); now.Facts.Data || now.Facts.lost() || held == nil || held.Token() != rec.Token() {
			return errMoved
		}
		pin := Cluster{ID: rec.ClusterID(), Generation: rec.Generation, Incarnation: now.Facts.Incarnation.ID, Member: hexID(rec.MemberID(m.name))}
		if err := m.write(clusterFile, pin); err != nil {
			return err
		}
		return m.disk.move(made, now.Facts.Incarnation.ID)
	})
}

// join notes which member this machine was added as. The data's name is not
// used for anything else from now on, although etcd has not yet begun to make it.
func (m *member) join(s State, to Cluster) error {
	return m.change(s, func(now State) error {
		if now.Facts.lost() || now.Facts.Data && !now.Facts.joining() {
			return errMoved
		}
		return m.write(clusterFile, to)
	})
}

// joined notes that the data is whole: from now on it can be lost.
func (m *member) joined(s State) error {
	return m.change(s, func(now State) error {
		if !now.Facts.Data || !now.Facts.joining() {
			return errMoved
		}
		to := now.Facts.Cluster
		to.Joining = ""
		return m.write(clusterFile, to)
	})
}

// started records that etcd is about to run on the data.
func (m *member) started(s State) error {
	return m.change(s, func(now State) error {
		switch own := now.Facts.Incarnation; {
		case !now.Facts.Data && !now.Facts.joining():
			return errMoved
		case !own.Started:
			own.Started = true
			return m.write(incarnationFile, own.counted(m.random()))
		}
		return nil
	})
}

// setAside gives data another name, under which nothing starts it. etcd must
// have been stopped.
func (m *member) setAside(s State) error {
	return m.change(s, func(now State) error {
		own := now.Facts.Incarnation
		if !now.Facts.Data && !now.Facts.joining() {
			return errMoved
		}
		to := now.Facts.Cluster
		to.Left = true
		if err := m.write(clusterFile, to); err != nil {
			return err
		}
		own.Started = true // even if it was not: its name is not used again
		if err := m.write(incarnationFile, own.counted(m.random())); err != nil {
			return err
		}
		if !now.Facts.joining() {
			return m.disk.move(own.ID, asideHead+own.ID)
		}
		// etcd may have made nothing yet, or half of it.
		if err := m.disk.move(own.ID, asideHead+own.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		to.Joining = ""
		return m.write(clusterFile, to)
	})
}

// heard remembers how far others have counted: of counts as high, the first. No answer depends on it, so it
// is no write in the sense of State.Writes.
func (m *member) heard(name string, c Count) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.look()
	if last := now.Facts.Heard[name]; now.Unknown != "" || c.Incarnation == "" || last.Incarnation == c.Incarnation && last.Counter >= c.Counter {
		return nil
	}
	all := maps.Clone(now.Facts.Heard)
	if all == nil {
		all = map[string]Count{}
	}
	all[name] = c
	return m.disk.save(heardFile, all)
}

// count raises the counter. It is on the disk before anybody is told of it, so
// that a kill leaves at most a count of which nobody has heard.
func (m *member) count() error {
	s := m.observe()
	if s.Unknown != "" {
		return errors.New(s.Unknown)
	}
	if s.Facts.Incarnation.ID == "" {
		return nil // the first one will count
	}
	return m.change(s, func(now State) error {
		return m.write(incarnationFile, now.Facts.Incarnation.counted(m.random()))
	})
}
