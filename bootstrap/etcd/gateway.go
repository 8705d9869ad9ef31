package etcd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// Keys of etcd that the agents use. An entry of the register is made once and
// never changed: a member ID belongs to one incarnation for ever.
const (
	registerPrefix = "/kimage/members/" // and the member's ID
	repairLock     = "/kimage/lock/repair"
)

// entry is the register's value.
type entry struct {
	Name        string `json:"name"`
	Incarnation string `json:"incarnation"`
}

// gateway asks the own etcd through its JSON gateway: the agent stays small
// without etcd's client, and what it asks is little.
type gateway struct {
	client  string // URL
	metrics string // URL, without TLS
	http    *http.Client
}

// lockSeconds is how long a repairer may take for one step.
const lockSeconds = 60

func newGateway(pki, name, client, metrics string, timeout time.Duration) (*gateway, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(pki, nodeconf.EtcdAgent+".crt"), filepath.Join(pki, nodeconf.EtcdAgent+".key"))
	if err != nil {
		return nil, fmt.Errorf("reading the certificate with which this agent is etcd's client: %w", err)
	}
	roots, err := readAuthority(filepath.Join(pki, nodeconf.EtcdCA+".crt"))
	if err != nil {
		return nil, err
	}
	return &gateway{client: client, metrics: metrics, http: &http.Client{Timeout: timeout, Transport: &http.Transport{
		DialContext:     (&net.Dialer{Timeout: timeout}).DialContext,
		MaxIdleConns:    1,
		IdleConnTimeout: 2 * time.Minute,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: name},
	}}}, nil
}

// call posts in to a path of the gateway and decodes the answer.
func (g *gateway) call(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.client+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := g.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the own etcd: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMessageBytes))
	if err != nil {
		return fmt.Errorf("asking the own etcd: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var said struct{ Message string }
		if json.Unmarshal(data, &said) != nil || said.Message == "" {
			said.Message = resp.Status
		}
		return errors.New(said.Message)
	}
	return json.Unmarshal(data, out)
}

// etcdMember is etcd's own Member, as its gateway writes it.
type etcdMember struct {
	ID       uint64 `json:",string"`
	Name     string
	PeerURLs []string
	Learner  bool `json:"isLearner"`
}

type etcdHeader struct {
	Cluster  uint64 `json:"cluster_id,string"`
	Member   uint64 `json:"member_id,string"`
	Revision int64  `json:"revision,string"`
}

// view reads from a quorum.
func (g *gateway) view(ctx context.Context) (View, error) { return g.read(ctx, false) }

// known reads what the own etcd has.
func (g *gateway) known(ctx context.Context) (View, error) { return g.read(ctx, true) }

// alarmed is an alarm as etcd's status tells it.
var alarmed = regexp.MustCompile(`^(?:memberID:\s*(\d+)\s+)?alarm:\s*(\w+)`)

// alarms reads those that the own etcd knows.
func (g *gateway) alarms(ctx context.Context) (all []Alarm, err error) {
	var status struct{ Errors []string }
	if err := g.call(ctx, "/v3/maintenance/status", struct{}{}, &status); err != nil {
		return nil, err
	}
	for _, e := range status.Errors {
		if found := alarmed.FindStringSubmatch(e); found != nil {
			id, _ := strconv.ParseUint(found[1], 10, 64)
			a := Alarm{Kind: found[2]}
			if id != 0 {
				a.Member = hexID(id)
			}
			all = append(all, a)
		}
	}
	return all, nil
}

// read reads the register and then the members. In this order: who is registered
// at the view's revision and not among its members was removed.
func (g *gateway) read(ctx context.Context, alone bool) (View, error) {
	var reg struct {
		Header etcdHeader
		KVs    []struct {
			Key, Value []byte
			Created    int64 `json:"create_revision,string"`
		}
	}
	end := []byte(registerPrefix)
	end[len(end)-1]++
	if err := g.call(ctx, "/v3/kv/range", map[string]any{"key": []byte(registerPrefix), "range_end": end, "serializable": alone}, &reg); err != nil {
		return View{}, err
	}
	var list struct {
		Header  etcdHeader
		Members []etcdMember
	}
	if err := g.call(ctx, "/v3/cluster/member/list", map[string]any{"linearizable": !alone}, &list); err != nil {
		return View{}, err
	}
	v := View{Cluster: hexID(list.Header.Cluster), Self: hexID(list.Header.Member), Revision: reg.Header.Revision}
	for _, m := range list.Members {
		one := EtcdMember{ID: hexID(m.ID), Name: m.Name, Learner: m.Learner, Started: m.Name != ""}
		if len(m.PeerURLs) > 0 {
			one.PeerURL = m.PeerURLs[0]
		}
		for _, kv := range reg.KVs {
			var e entry
			if string(kv.Key) == registerPrefix+one.ID {
				if err := json.Unmarshal(kv.Value, &e); err != nil {
					return View{}, fmt.Errorf("reading %s in etcd: %w", kv.Key, err)
				}
				one.Name, one.Incarnation, one.Added = e.Name, e.Incarnation, kv.Created
			}
		}
		v.Members = append(v.Members, one)
	}
	var err error
	v.Alarms, err = g.alarms(ctx)
	return v, err
}

// self asks which member the own etcd is: a learner answers that too.
func (g *gateway) self(ctx context.Context) (string, error) {
	var status struct{ Header etcdHeader }
	err := g.call(ctx, "/v3/maintenance/status", struct{}{}, &status)
	return hexID(status.Header.Member), err
}

// create makes a key that is not there yet, and says whether it did.
func (g *gateway) create(ctx context.Context, key string, value any, lease int64) (bool, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return false, err
	}
	var done struct{ Succeeded bool }
	err = g.call(ctx, "/v3/kv/txn", map[string]any{
		"compare": []any{map[string]any{"key": []byte(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}},
		"success": []any{map[string]any{"request_put": map[string]any{"key": []byte(key), "value": data, "lease": strconv.FormatInt(lease, 10)}}},
	}, &done)
	return done.Succeeded, err
}

// lock takes the lock of repair; it ends with release, or by itself.
func (g *gateway) lock(ctx context.Context, name string) (release func(), err error) {
	var lease struct {
		ID int64 `json:",string"`
	}
	if err := g.call(ctx, "/v3/lease/grant", map[string]any{"TTL": strconv.Itoa(lockSeconds)}, &lease); err != nil {
		return nil, err
	}
	release = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		var ignored struct{}
		g.call(ctx, "/v3/lease/revoke", map[string]any{"ID": strconv.FormatInt(lease.ID, 10)}, &ignored)
	}
	if got, err := g.create(ctx, repairLock, name, lease.ID); err != nil || !got {
		release()
		if err == nil {
			err = errLocked
		}
		return nil, err
	}
	return release, nil
}

// register says for ever which incarnation a member ID belongs to. An entry
// that is there already stays.
func (g *gateway) register(ctx context.Context, id, name, incarnation string) error {
	_, err := g.create(ctx, registerPrefix+id, entry{name, incarnation}, 0)
	return err
}

// add adds a learner and returns its ID.
func (g *gateway) add(ctx context.Context, peerURL string) (string, error) {
	var added struct{ Member etcdMember }
	err := g.call(ctx, "/v3/cluster/member/add", map[string]any{"peerURLs": []string{peerURL}, "isLearner": true}, &added)
	return hexID(added.Member.ID), err
}

func (g *gateway) remove(ctx context.Context, id string) error { return g.change(ctx, "remove", id) }

func (g *gateway) promote(ctx context.Context, id string) error { return g.change(ctx, "promote", id) }

func (g *gateway) change(ctx context.Context, verb, id string) error {
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return err
	}
	var ignored struct{}
	return g.call(ctx, "/v3/cluster/member/"+verb, map[string]any{"ID": strconv.FormatUint(n, 10)}, &ignored)
}

// hears are the IDs of the members with which the own etcd is connected.
func (g *gateway) hears(ctx context.Context) (map[string]bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.metrics+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := g.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	all := map[string]bool{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		// etcd_network_active_peers{Local="a",Remote="b"} 1
		rest, ok := strings.CutPrefix(lines.Text(), "etcd_network_active_peers{")
		if !ok {
			continue
		}
		labels, value, _ := strings.Cut(rest, "} ")
		_, remote, _ := strings.Cut(labels, `Remote="`)
		if id, _, ok := strings.Cut(remote, `"`); ok && value != "0" {
			all[id] = true
		}
	}
	return all, lines.Err()
}
