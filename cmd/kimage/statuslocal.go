package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// lines are all machines, those that run and those that the cluster file names besides.
// It works with none of them on.
func (l *localCluster) lines(ctx context.Context) ([]machineLine, error) {
	spec, err := l.Spec()
	if err != nil {
		return nil, err
	}
	st, err := l.Status(ctx)
	if err != nil && !errors.Is(err, local.ErrNotRunning) {
		return nil, err
	}
	on := map[string]local.MachineStatus{}
	for _, m := range st.Machines {
		on[m.Name] = m
	}
	heard, master := l.heard(ctx, spec, on)
	var out []machineLine
	for _, m := range spec.Machines {
		out = append(out, l.line(m, on[m.Name], heard, master))
	}
	for _, m := range l.notMade(spec) {
		out = append(out, machineLine{Name: m.Name, Roles: m.Roles, Power: powerOff, Why: "it is not made: kimage up -f " + l.path + " boots it"})
	}
	return out, nil
}

// line is one machine, by what a master has heard of it, or else by its console.
func (l *localCluster) line(m local.Machine, now local.MachineStatus, heard map[string]report.Machine, master string) machineLine {
	line := machineLine{Name: m.Name, Roles: m.Roles, Power: powerOff, From: "console"}
	if !now.On {
		line.Why = "it is off: kimage up -f " + l.path + " boots it from its disk again"
		return line
	}
	s := l.Screen(m.Name)
	line.Power, line.Phase, line.Since, line.Why = powerOn, s.Phase, s.Since, s.Why
	name := m.Name
	if m.Pool != "" {
		// An error: it has none, and is not heard of.
		name, _ = kube.PoolNameOf(m.Pool, m.UUID, m.Serial, m.MAC)
	}
	// A report from before the machine was switched on is of the one before it.
	if h, ok := heard[name]; ok && !h.Silent && h.Heard.After(now.Since) {
		line.heardAs(h.Report, master)
	}
	return line
}

// notMade are the machines that the cluster file names and kimage up has yet to boot.
// A file that is wrong by now names none.
func (l *localCluster) notMade(spec local.Spec) []local.Machine {
	f, err := loadCluster(l.path)
	if err != nil {
		return nil
	}
	plan, err := local.Plan(f, spec.Accel)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(plan.Machines, func(m local.Machine) bool { return spec.Machine(m.Name) != nil })
}

// heard asks the masters that are on what they have heard, by name; the first answer
// counts.
func (l *localCluster) heard(ctx context.Context, spec local.Spec, on map[string]local.MachineStatus) (all map[string]report.Machine, master string) {
	const budget = 15 * time.Second // of an emulated one
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	asked := 0
	answers := make(chan *report.Cluster, len(spec.Machines))
	for _, m := range spec.Machines {
		if !m.API || !on[m.Name].On {
			continue
		}
		asked++
		go func() {
			r, err := l.ask(ctx, on[m.Name], "sudo kimage-agent status --cluster --json")
			var c report.Cluster
			if err != nil || json.Unmarshal([]byte(r), &c) != nil || len(c.Machines) == 0 {
				answers <- nil
				return
			}
			answers <- &c
		}()
	}
	for range asked {
		if c := <-answers; c != nil {
			all = map[string]report.Machine{}
			for _, x := range c.Machines {
				all[x.Name] = x
			}
			return all, c.Master
		}
	}
	return nil, ""
}

// ask runs a command in a machine and returns what it prints.
func (l *localCluster) ask(ctx context.Context, m local.MachineStatus, command string) (string, error) {
	key, err := l.key()
	if err != nil {
		return "", err
	}
	spec, err := l.Spec()
	if err != nil {
		return "", err
	}
	r, err := (&qemu.Machine{SSHPort: m.SSHPort}).SSH(ctx, spec.User, key, command)
	return r.Stdout, err
}

// AwaitReady waits until all machines are Ready, and tells how far they are.
func (l *localCluster) AwaitReady(ctx context.Context, out io.Writer) error {
	w := local.Wait{Set: l.Set, Out: out, Ask: func(ctx context.Context, m local.MachineStatus) (s local.Screen, err error) {
		text, err := l.ask(ctx, m, "cat /run/kimage/phase.json")
		if err == nil {
			err = json.Unmarshal([]byte(text), &s)
		}
		return s, err
	}}
	return w.Ready(ctx)
}
