package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// The endpoint has one path; a question with a record is a proposal.
const (
	questionPath    = "/v1/founding"
	maxMessageBytes = 1 << 20
)

// trust is the identity of this agent, and whom it believes.
type trust struct {
	cert  tls.Certificate
	roots *x509.CertPool
	now   func() time.Time
}

// loadTrust reads the peer certificate. now is never before floor: a machine
// whose clock was lost would find every certificate not yet valid.
func loadTrust(dir string, now func() time.Time, floor time.Time) (*trust, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, nodeconf.EtcdPeer+".crt"), filepath.Join(dir, nodeconf.EtcdPeer+".key"))
	if err != nil {
		return nil, fmt.Errorf("reading this member's peer certificate: %w", err)
	}
	roots, err := readAuthority(filepath.Join(dir, nodeconf.PeerCA+".crt"))
	if err != nil {
		return nil, err
	}
	return &trust{cert, roots, func() time.Time {
		if t := now(); t.After(floor) {
			return t
		}
		return floor
	}}, nil
}

// readAuthority reads the certificates of an authority.
func readAuthority(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate: make the machine's config again with kimage config", file)
	}
	return roots, nil
}

// config is for both sides: each must be of the peer authority, and its name is
// its certificate's common name. The address is not compared: a machine may
// move, and the name is what the roster is about.
func (t *trust) config(use x509.ExtKeyUsage, name func(string) error) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{t.cert},
		ClientAuth:   tls.RequireAnyClientCert,
		Time:         t.now,
		// VerifyConnection does all of it.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the peer shows no certificate")
			}
			leaf, between := cs.PeerCertificates[0], x509.NewCertPool()
			for _, c := range cs.PeerCertificates[1:] {
				between.AddCert(c)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: t.roots, Intermediates: between, CurrentTime: t.now(), KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				return err
			}
			return name(leaf.Subject.CommonName)
		},
	}
}

// client asks other agents.
type client struct {
	trust *trust
	uid   string
	port  string
	http  func(name string) *http.Client // one for each peer, so that connections are kept
}

func newClient(t *trust, uid string, port int, timeout time.Duration) *client {
	clients := map[string]*http.Client{}
	var mu sync.Mutex
	return &client{t, uid, strconv.Itoa(port), func(name string) *http.Client {
		mu.Lock()
		defer mu.Unlock()
		if clients[name] == nil {
			clients[name] = &http.Client{Timeout: timeout, Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: timeout / 2}).DialContext,
				TLSHandshakeTimeout: timeout,
				MaxIdleConns:        1,
				IdleConnTimeout:     30 * time.Second,
				TLSClientConfig: t.config(x509.ExtKeyUsageServerAuth, func(got string) error {
					if got != name {
						return fmt.Errorf("the machine at the address of %s is %s: two machines have one address, or the roster is old", name, got)
					}
					return nil
				}),
			}}
		}
		return clients[name]
	}}
}

// ask sends a question to a member of the roster.
func (c *client) ask(ctx context.Context, to nodeconf.Member, q Question) (Status, error) {
	peer, err := url.Parse(to.PeerURL)
	if err != nil {
		return Status{}, err
	}
	body, err := json.Marshal(q)
	if err != nil {
		return Status{}, err
	}
	target := "https://" + net.JoinHostPort(peer.Hostname(), c.port) + questionPath
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return Status{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http(to.Name).Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the address says nothing that the name does not
		}
		return Status{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMessageBytes))
	if err != nil {
		return Status{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Status{}, fmt.Errorf("it refuses: %s", bytes.TrimSpace(data))
	}
	var st Status
	if err := json.Unmarshal(data, &st); err != nil {
		return Status{}, fmt.Errorf("reading the answer: %w", err)
	}
	if st.ClusterUID != c.uid || st.Name != to.Name {
		return Status{}, fmt.Errorf("it answers as %s of cluster %s", st.Name, st.ClusterUID)
	}
	return st, nil
}

// handler answers other agents: all with a certificate of the peer authority may
// ask, since those that left the roster are members until they are replaced, and
// those that came may be in a newer one, which they bring. Only the own roster's
// members may propose.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+questionPath, func(w http.ResponseWriter, r *http.Request) {
		var q Question
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxMessageBytes)).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			http.Error(w, "no certificate", http.StatusForbidden)
			return
		}
		st, err := a.answer(r.Context(), r.TLS.PeerCertificates[0].Subject.CommonName, q)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		st.Time = a.cfg.Now()
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(st)
	})
	return mux
}

// answer is what is said to the member name.
func (a *Agent) answer(ctx context.Context, name string, q Question) (Status, error) {
	if q.ClusterUID != a.cfg.Cluster.UID {
		return Status{}, fmt.Errorf("this is cluster %s, not %s", a.cfg.Cluster.UID, q.ClusterUID)
	}
	if _, err := a.member.open(q.Roster); err != nil {
		return Status{}, err
	}
	s := a.member.observe()
	member := func(m nodeconf.Member) bool { return m.Name == name }
	a.offer(q.Roster)
	if name != a.cfg.Name && q.PeerURL != "" {
		a.mu.Lock()
		a.callers[name] = caller{nodeconf.Member{Name: name, PeerURL: q.PeerURL}, a.cfg.Now()}
		a.mu.Unlock()
	}
	if q.Record == nil || !slices.ContainsFunc(s.Roster.Members, member) {
		st := s.tell(a.cfg.Cluster.UID)
		a.live(ctx, &st, q.Prove)
		return st, nil
	}
	st, err := a.member.accept(*q.Record)
	if err != nil {
		a.cfg.Logf("%s proposes a record that is not held: %v", name, err)
	} else {
		a.wake()
	}
	return st, nil
}
