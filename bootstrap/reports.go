package bootstrap

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/peer"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/pki"
)

// Pauses between reports; a change of the phase is reported at once.
const (
	reportMoving  = 15 * time.Second
	reportSettled = time.Minute
	reportBudget  = 20 * time.Second // for one
)

// clusterSocket is where a master's agent says what it knows of all machines.
const clusterSocket = "/run/kimage/cluster.sock"

// reports tells every master how far this machine is, and takes in what their
// answers show of rosters and clocks.
func (a *Agent) reports(ctx context.Context) error {
	client, err := a.reportClient(nodeconf.TokenFile, nodeconf.PKIDir)
	if err != nil {
		return err
	}
	changed := a.phase.listen()
	ear := a.newEar()
	for {
		ear.heard(ctx, a.reportAll(ctx, client))
		pause := reportMoving
		if a.phase.current().Phase == PhaseReady {
			// Machines that were switched on together do not stay together.
			pause = reportSettled + rand.N(reportSettled/6)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-changed:
			sleep(ctx, time.Second) // what comes in a row is told once
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// reportClient proves this machine's name by its token, or where it has none by
// its certificate as etcd's client.
func (a *Agent) reportClient(tokenFile, pkiDir string) (*report.Client, error) {
	id := report.Identity{Name: a.name, Pool: a.conf.Node.Pool}
	token, err := os.ReadFile(tokenFile)
	switch {
	case err == nil:
		id.Token = strings.TrimSpace(string(token))
	case errors.Is(err, os.ErrNotExist):
		file := filepath.Join(pkiDir, nodeconf.EtcdAgent)
		cert, err := tls.LoadX509KeyPair(file+".crt", file+".key")
		if err != nil {
			return nil, fmt.Errorf("reading by what this machine proves its name: %w", err)
		}
		id.Cert = &cert
	default:
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(pkiDir, nodeconf.ClusterCA+".crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the cluster's CA holds no certificate: make the machine's config again with kimage config")
	}
	return &report.Client{Identity: id, CA: roots, Now: time.Now}, nil
}

// reportAll tells all masters at once, and waits for their answers. answered: one
// of them has.
func (a *Agent) reportAll(ctx context.Context, client *report.Client) (answered bool) {
	roster := a.rosters.highest()
	phase := a.phase.current()
	m := report.Message{ClusterUID: a.conf.Cluster.UID, Report: report.Report{Name: a.name, Addresses: a.seen.currentAddresses(), ImageID: a.image.ImageID, OS: a.image.OS,
		Kubernetes: a.image.Kubernetes, Phase: phase.Phase, Since: phase.Since, Why: phase.Why, Time: time.Now()}}
	if roster.Serial > 0 {
		m.Roster, m.Digest = &roster.Signed, roster.Signed.Digest()
	}
	if a.store != nil {
		if err := a.store.Put("", "itself", m.Report); err != nil {
			a.logf("%v", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, reportBudget)
	defer cancel()
	var wg sync.WaitGroup
	var some atomic.Bool
	for _, to := range roster.Masters {
		if to.Name != a.name {
			wg.Go(func() {
				if a.reportTo(ctx, client, to, m) {
					some.Store(true)
				}
			})
		}
	}
	wg.Wait()
	// A member of etcd compares its clock with the others' already.
	if a.store != nil && !a.conf.Node.Has(nodeconf.RoleEtcd) {
		a.askEtcdClocks(ctx, roster)
	}
	return some.Load()
}

func (a *Agent) reportTo(ctx context.Context, client *report.Client, to nodeconf.Master, m report.Message) (answered bool) {
	if has, ok := a.agreed.Load(to); ok && has == m.Digest {
		m.Roster = nil // a thousand machines that sent all of it every minute would be heard
	}
	a.agreed.Delete(to)
	answer, ahead, err := client.Send(ctx, to, m)
	if err != nil {
		var clock *peer.Clock
		refusal := ""
		switch {
		case peer.BadTime(err):
			clock = &peer.Clock{Name: to.Name, Unknown: true}
		case !peer.Unreachable(err):
			refusal = peer.Why(err, time.Now())
		}
		a.seen.noteClock(to.Name, byReport, clock)
		a.seen.noteRefusal(to.Name, refusal)
		_, answered = errors.AsType[*report.Refused](err)
		return answered
	}
	a.seen.noteClock(to.Name, byReport, &peer.Clock{Name: to.Name, Ahead: ahead})
	a.seen.noteRefusal(to.Name, "")
	if answer.Roster != nil {
		a.rosters.take(*answer.Roster, to.Name)
	} else {
		a.agreed.Store(to, m.Digest)
	}
	return true
}

// askEtcdClocks compares a master's clock with those of etcd's members, by the
// date in the head of their answers: two masters alone could not tell whose is
// wrong.
func (a *Agent) askEtcdClocks(ctx context.Context, roster report.SignedAndOpen) {
	file := func(name string) string { return filepath.Join(nodeconf.PKIDir, name) }
	cert, err := tls.LoadX509KeyPair(file(nodeconf.APIServerEtcd+".crt"), file(nodeconf.APIServerEtcd+".key"))
	if err != nil {
		return
	}
	roots := x509.NewCertPool()
	if ca, err := os.ReadFile(file(nodeconf.EtcdCA + ".crt")); err != nil || !roots.AppendCertsFromPEM(ca) {
		return
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}
	asked := map[string]bool{a.name: true}
	for _, m := range roster.Masters {
		asked[m.Name] = true
	}
	var wg sync.WaitGroup
	for _, k := range report.KnownMachines(roster.Roster) {
		if !asked[k.Name] && len(k.Addresses) > 0 {
			wg.Go(func() {
				a.seen.noteClock(k.Name, byEtcd, clockOf(ctx, k.Name, "https://"+net.JoinHostPort(k.Addresses[0], etcdClientPort)+"/version", transport))
			})
		}
	}
	wg.Wait()
}

const etcdClientPort = "2379"

// clockOf is nil where nothing can be told.
func clockOf(ctx context.Context, name, url string, transport http.RoundTripper) *peer.Clock {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil
	}
	sent := time.Now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if peer.BadTime(err) {
			return &peer.Clock{Name: name, Unknown: true}
		}
		return nil
	}
	resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return nil
	}
	return &peer.Clock{Name: name, Ahead: date.Sub(sent.Add(time.Since(sent) / 2))}
}

// hearReports is a master's side: it listens for reports, and answers on this
// machine what it heard. pkiDir and socket are where things are.
func (a *Agent) hearReports(ctx context.Context, pkiDir, socket string) error {
	secrets := map[string][]byte{}
	for _, name := range []string{nodeconf.ClusterCA + ".crt", nodeconf.ClusterCA + ".key", nodeconf.EtcdCA + ".crt", nodeconf.JoinKey} {
		data, err := os.ReadFile(filepath.Join(pkiDir, name))
		if err != nil {
			return err
		}
		secrets[name] = data
	}
	server, err := report.NewServer(report.ServerConfig{Name: a.name, Addresses: a.conf.Node.Addresses, ClusterUID: a.conf.Cluster.UID,
		CA: pki.Pair{Cert: secrets[nodeconf.ClusterCA+".crt"], Key: secrets[nodeconf.ClusterCA+".key"]}, EtcdCA: secrets[nodeconf.EtcdCA+".crt"],
		JoinKey: bytes.TrimSpace(secrets[nodeconf.JoinKey]), Store: a.store, Roster: a.rosters.highest, Now: time.Now, Logf: a.logf,
		Offer: func(s nodeconf.SignedRoster, from string) { a.rosters.take(s, from) }})
	if err != nil {
		return err
	}
	go a.answerLocally(ctx, socket)
	go a.deliverRosters(ctx)
	return server.Run(ctx)
}

// newStore is where a master keeps reports.
func (a *Agent) newStore() *report.Store {
	return &report.Store{ClusterName: a.conf.Cluster.Name, Master: a.name, Since: time.Now(), Now: time.Now, Ready: PhaseReady, Known: func() []report.Known {
		return report.KnownMachines(a.rosters.highest().Roster)
	}}
}

// answerLocally serves kimage-agent status --cluster.
func (a *Agent) answerLocally(ctx context.Context, socket string) {
	os.Remove(socket)
	err := os.MkdirAll(filepath.Dir(socket), 0o755)
	var ln net.Listener
	if err == nil {
		ln, err = net.Listen("unix", socket)
	}
	if err == nil {
		err = os.Chmod(socket, 0o600)
	}
	if err != nil {
		a.logf("listening on %s: %v", socket, err)
		return
	}
	server := &http.Server{ReadTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(a.store.Cluster())
	})}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	server.Serve(ln)
}

// ObserveCluster is what this master's agent knows of all machines.
func ObserveCluster(ctx context.Context) (report.Cluster, error) {
	return askCluster(ctx, clusterSocket)
}

func askCluster(ctx context.Context, socket string) (c report.Cluster, err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/", nil)
	if err != nil {
		return c, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return c, fmt.Errorf("asking this machine's agent about the cluster (only masters know; journalctl -u kimage-agent): %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(data, &c)
}
