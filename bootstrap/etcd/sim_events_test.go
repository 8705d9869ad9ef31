package etcd

import (
	"context"
	"slices"
	"strings"
)

// crash ends the agent's life, as kill -9 does.
func (s *sim) crash(m *simMachine) {
	m.agent, m.busy = nil, false
	m.life++
}

// events lets other things happen.
func (s *sim) events(most int) {
	if !s.faults || s.depth > 1 || s.failed != "" {
		return
	}
	s.depth++
	defer func() { s.depth-- }()
	for range s.r.IntN(most + 1) {
		s.event()
	}
}

// lose counts a disk or its data as lost.
func (s *sim) lose() {
	s.images--
	s.lost()
}

// lost counts what etcd has lost, be it for a while.
func (s *sim) lost() {
	if s.repair != nil {
		s.repair.losses++
	}
}

func (s *sim) event() {
	if s.repair != nil && s.r.IntN(5) == 0 {
		s.repair.event(s)
		return
	}
	m := s.machines[s.r.IntN(len(s.machines))]
	switch x := s.r.IntN(100); {
	case x < 62:
		if m.agent == nil {
			s.boot(m)
		}
		s.step(m)
	case x < 66:
		s.log("%s: killed", m.name)
		s.crash(m)
	case x < 68:
		s.log("%s: power cut", m.name)
		s.lost()
		s.crash(m)
		m.etcd = false
	case x < 72 && s.images > 0:
		s.lose()
		s.log("%s: imaged again", m.name)
		s.crash(m)
		m.facts, m.data, m.etcd, m.config, m.unmounted = Facts{}, nil, false, s.rosters[s.r.IntN(len(s.rosters))], false
		if s.repair != nil {
			m.config = s.rosters[len(s.rosters)-1] // kimage config writes no other
		}
	case x < 74 && s.images > 0 && m.data != nil:
		s.lose()
		s.log("%s: data removed, etcd %t", m.name, m.etcd)
		if m.etcd && s.r.IntN(2) == 0 {
			m.ghost = m.data // it keeps its files open
		} else {
			m.etcd = false
		}
		m.data = nil
	case x < 76:
		m.unmounted = !m.unmounted
	case x < 80:
		o := s.machines[s.r.IntN(len(s.machines))]
		s.cut[m.name+o.name] = !s.cut[m.name+o.name]
		s.log("%s to %s: cut %t", m.name, o.name, s.cut[m.name+o.name])
		s.lost()
	case x < 90 && len(s.late) > 0:
		s.late[s.r.IntN(len(s.late))]()
	case x < 96:
		s.forge(m)
	case x < 97:
		r := s.roster()
		switch {
		case s.r.IntN(3) == 0 && r.Generation < 3:
			s.addRoster(len(s.machines), r.Generation+1, r.Serial+1)
		case r.Serial < 4:
			s.addRoster(len(s.machines), r.Generation, r.Serial+1)
		}
		m.config = s.rosters[len(s.rosters)-1]
		s.log("%s: told of roster %d", m.name, len(s.rosters))
		s.crash(m)
	}
}

// forge proposes some record that names incarnations which existed: nothing may
// hang on who proposes.
func (s *sim) forge(m *simMachine) {
	if m.agent == nil {
		return
	}
	which := s.r.IntN(len(s.rosters))
	signed, r := s.rosters[which], s.opened[which]
	incarnation := map[string]string{}
	for _, o := range s.machines {
		all := s.incarnations[o.name]
		if len(all) == 0 {
			return
		}
		incarnation[o.name] = all[s.r.IntN(len(all))]
		if s.r.IntN(2) > 0 {
			incarnation[o.name] = all[len(all)-1]
		}
	}
	defer func() {
		if e := recover(); e != nil {
			if _, ok := e.(died); !ok {
				panic(e)
			}
		}
	}()
	rec := compose(r, signed.Digest(), incarnation)
	m.agent.answer(context.Background(), s.machines[s.r.IntN(len(s.machines))].name, Question{ClusterUID: "uid", Roster: signed, Record: &rec})
}

// calm ends all faults; after some rounds the cluster must be founded, or say
// why it cannot be.
func (s *sim) calm() {
	s.faults, s.late, s.cut = false, nil, map[string]bool{}
	s.log("faults end")
	for _, m := range s.machines {
		m.unmounted = false
		if m.agent == nil {
			s.boot(m)
		}
	}
	for range 30 {
		for _, m := range s.machines {
			s.step(m)
		}
	}
	if s.repair != nil {
		return // see repaired
	}
	generation := s.roster().Generation
	if !slices.ContainsFunc(s.machines, func(m *simMachine) bool { return m.config.Digest() == s.rosters[len(s.rosters)-1].Digest() }) {
		return // nobody was told of the newest roster
	}
	var rec *Record
	for _, m := range s.machines {
		if m.data != nil && m.data.generation == generation {
			if rec = m.agent.member.status().Record; rec == nil {
				s.fail("L1: %s has data, and nobody can know of which founding", m.name)
				return
			}
		}
	}
	if rec == nil {
		s.fail("L1: nothing is founded")
		return
	}
	members := 0
	for _, m := range s.machines {
		if named := rec.names(m.name, m.facts.Incarnation.ID); named && (m.data == nil || !m.etcd) {
			s.fail("L1: %s is named by the founding and does not run", m.name)
		} else if named {
			members++
		}
	}
	if members > len(s.machines)/2 {
		return
	}
	for _, m := range s.machines {
		if !strings.Contains(m.said.Why, "a majority was lost") {
			s.fail("L1: a majority was lost, and %s does not say so but: %s", m.name, m.said.Why)
		}
	}
}
