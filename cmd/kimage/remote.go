package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/pkg/cluster"
)

// remoteCluster is a cluster that runs somewhere else, as its operator sees it.
type remoteCluster struct {
	file    *cluster.File
	client  report.Client
	masters []nodeconf.Master
}

// openRemote takes what proves the operator out of the secrets.
func openRemote(cmd *cobra.Command, file, identity string) (*remoteCluster, error) {
	s, f, err := openOperator(cmd, file, identity)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return remoteOf(f, s)
}

// remoteOf takes what proves the operator out of opened secrets.
func remoteOf(f *cluster.File, s *state.Store) (*remoteCluster, error) {
	r := &remoteCluster{file: f, client: report.Client{CA: x509.NewCertPool(), Now: time.Now,
		Identity: report.Identity{Operator: true, Token: nodeconf.OperatorToken(bytes.TrimSpace(s.Secret(nodeconf.JoinKey)))}}}
	r.client.CA.AppendCertsFromPEM(s.Pair(nodeconf.ClusterCA).Cert)
	for _, t := range f.Nodes {
		if t.Has(cluster.RoleMaster) && len(t.Addresses) > 0 {
			r.masters = append(r.masters, nodeconf.Master{Name: t.Name, Address: t.Addresses[0]})
		}
	}
	if len(r.masters) == 0 {
		return nil, fmt.Errorf("%s gives no master an address: nobody can be asked", f.Path)
	}
	return r, nil
}

// openOperator opens the secrets of a cluster that has no machines on this computer.
func openOperator(cmd *cobra.Command, file, identity string) (*state.Store, *cluster.File, error) {
	f, err := readCluster(cmd, file)
	if err != nil {
		return nil, nil, err
	}
	s, err := state.OpenExisting(openState(cmd, f, identity))
	if errors.Is(err, state.ErrNoState) {
		return nil, nil, fmt.Errorf("%s has no machines on this computer (kimage up -f %s), and no secrets by which others could be asked (kimage config -f %s)", file, file, file)
	}
	return s, f, err
}

// askBudget is for one master's answer, of which an emulated one takes some seconds.
const askBudget = 10 * time.Second

// hearsay is what the masters heard of all machines.
type hearsay struct {
	newest   map[[2]string]heardMachine // by pool and name
	silent   map[string]error           // masters that did not answer
	answered bool                       // one did
	since    time.Time                  // when the first of them began to listen
}

type heardMachine struct {
	report.Machine
	by string // the master
}

// ask asks all masters.
func (r *remoteCluster) ask(ctx context.Context) hearsay {
	ctx, cancel := context.WithTimeout(ctx, askBudget)
	defer cancel()
	answers, errs := make([]report.Cluster, len(r.masters)), make([]error, len(r.masters))
	var wg sync.WaitGroup
	for i, m := range r.masters {
		wg.Go(func() { answers[i], errs[i] = r.client.Cluster(ctx, m) })
	}
	wg.Wait()
	h := hearsay{newest: map[[2]string]heardMachine{}, silent: map[string]error{}, answered: slices.Contains(errs, nil)}
	for i, c := range answers {
		if errs[i] != nil {
			h.silent[r.masters[i].Name] = errs[i]
			continue
		}
		if h.since.IsZero() || c.Since.Before(h.since) {
			h.since = c.Since
		}
		for _, m := range c.Machines {
			key := [2]string{m.Pool, m.Name}
			// Masters' clocks differ: who hears it now is right, whatever the time.
			if last, ok := h.newest[key]; m.Heard != nil && (!ok || last.Silent && !m.Silent || last.Silent == m.Silent && m.Heard.After(*last.Heard)) {
				h.newest[key] = heardMachine{m, c.Master}
			}
		}
	}
	return h
}

// line is one machine.
func (h hearsay) line(pool, name string, roles []string) machineLine {
	const shown = time.DateTime + " MST"
	m, said := machineLine{Name: name, Roles: roles}, h.newest[[2]string{pool, name}]
	switch why := h.silent[name]; {
	case said.Report != nil && !said.Silent:
		m.heardAs(said.Report, said.by)
	case why != nil:
		m.Why = fmt.Sprintf("it was asked: %v", why)
	case !h.answered:
		m.Why = "no master answers"
	case said.Report != nil:
		m.Why, m.From = fmt.Sprintf("not heard of since %s, then it was %s: is it on, and on the network?", said.Heard.UTC().Format(shown), said.Report.Phase), said.by
	default:
		m.Why = fmt.Sprintf("never heard of since %s: is it on, and does it reach TCP %d of the masters?", h.since.UTC().Format(shown), cluster.ReportPort)
	}
	return m
}

// lines are all machines, by what any master heard last.
func (r *remoteCluster) lines(ctx context.Context) ([]machineLine, error) {
	h := r.ask(ctx)
	var out []machineLine
	for _, t := range r.file.Nodes {
		out = append(out, h.line("", t.Name, t.Roles))
	}
	for _, t := range r.file.Pools {
		var of []machineLine
		for key, said := range h.newest {
			if key[0] == t.Name && !said.Silent {
				of = append(of, h.line(t.Name, key[1], t.Roles))
			}
		}
		slices.SortFunc(of, func(a, b machineLine) int { return cmp.Compare(a.Name, b.Name) })
		out = append(out, of...)
		if missing := t.Size - len(of); missing > 0 {
			out = append(out, machineLine{Name: t.Name, Roles: t.Roles, Why: fmt.Sprintf("%d of %d machines of this pool were not heard of", missing, t.Size)})
		}
	}
	if !h.answered {
		return out, fmt.Errorf("%s has no machines on this computer (kimage up), and no master of it answers on TCP %d", r.file.Path, cluster.ReportPort)
	}
	return out, nil
}
