package report

import (
	"context"
	"crypto/hmac"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/pki"
)

// maxConnections bounds what strangers can make a master keep in memory.
const maxConnections = 64

// ServerConfig is what a master's side needs.
type ServerConfig struct {
	Name       string                                     // of this master, as in the roster
	Addresses  []string                                   // it listens on the first
	ClusterUID string                                     // tells its cluster from others
	CA         pki.Pair                                   // the cluster's; the key signs this master's own certificate
	EtcdCA     []byte                                     // PEM; clients of etcd are of it
	JoinKey    []byte                                     // tokens of all names are derived from it
	Store      *Store                                     // where reports are kept
	Roster     func() SignedAndOpen                       // the highest that is known here
	Offer      func(s nodeconf.SignedRoster, from string) // one that came with a report; its signature is not verified yet
	Now        func() time.Time
	Logf       func(string, ...any)
	Port       int           // 0: Port
	Retry      time.Duration // between attempts to listen, while the address is not there; 0: two seconds
}

// SignedAndOpen is a verified roster and the bytes it came in.
type SignedAndOpen struct {
	Signed nodeconf.SignedRoster
	nodeconf.Roster
}

// Server is a master's side.
type Server struct {
	cfg ServerConfig
	tls *tls.Config
}

// NewServer issues the certificate that machines will ask for. It is valid as
// long as the authority: a master whose clock is wrong must be told so by
// others, and not be taken for a stranger.
func NewServer(cfg ServerConfig) (*Server, error) {
	authorities, err := pki.ParseCerts(cfg.CA.Cert)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's CA: %w", err)
	}
	leaf, err := cfg.CA.Issue(pki.Request{CommonName: agentName + cfg.Name, Names: cfg.Addresses, Server: true}, "ECDSA-P256", authorities[0].NotBefore)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(leaf.Cert, leaf.Key)
	if err != nil {
		return nil, err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(cfg.EtcdCA) {
		return nil, errors.New("the CA of etcd's clients holds no certificate: make the machine's config again with kimage config")
	}
	if cfg.Port == 0 {
		cfg.Port = Port
	}
	if cfg.Retry == 0 {
		cfg.Retry = 2 * time.Second
	}
	return &Server{cfg, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients, Time: cfg.Now}}, nil
}

// Run listens, as soon as the machine has the address, and answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	for said := ""; ; {
		ln, err := net.Listen("tcp", net.JoinHostPort(s.cfg.Addresses[0], strconv.Itoa(s.cfg.Port)))
		if err == nil {
			return s.serve(ctx, ln)
		}
		if err.Error() != said {
			said = err.Error()
			s.cfg.Logf("reports of other machines are not heard yet: %v", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.cfg.Retry):
		}
	}
}

func (s *Server) serve(ctx context.Context, ln net.Listener) error {
	const limit = 10 * time.Second // an emulated processor needs one for a handshake
	server := &http.Server{Handler: s.Handler(), ReadTimeout: limit, WriteTimeout: limit, MaxHeaderBytes: 8 << 10, ErrorLog: log.New(io.Discard, "", 0)}
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.Serve(tls.NewListener(&bounded{ln, make(chan struct{}, maxConnections)}, s.tls))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Handler answers machines; it needs the connection's TLS state.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		name, pool, operator, err := s.who(r) // first: of strangers nothing is read
		if err == nil && operator {
			err = errors.New("the operator is no machine")
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		var m Message
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxMessageBytes)).Decode(&m); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		a, err := s.answer(name, pool, from, m)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("GET "+clusterPath, func(w http.ResponseWriter, r *http.Request) {
		_, _, operator, err := s.who(r)
		if err == nil && !operator {
			err = errors.New("only the operator may ask about all machines")
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s.cfg.Store.Cluster())
	})
	return mux
}

// answer takes in the message of a machine, or of one of a pool.
func (s *Server) answer(name, pool, from string, m Message) (Answer, error) {
	if m.ClusterUID != s.cfg.ClusterUID {
		return Answer{}, fmt.Errorf("this is cluster %s, not %s", s.cfg.ClusterUID, m.ClusterUID)
	}
	switch {
	case pool != "" && !strings.HasPrefix(m.Report.Name, pool+"-"):
		return Answer{}, fmt.Errorf("%q is no machine of the pool %s", m.Report.Name, pool)
	case pool == "" && m.Report.Name != name:
		return Answer{}, fmt.Errorf("%q is not %s", m.Report.Name, name)
	}
	// First: a machine that is new to this master brings the roster that lists it.
	if m.Roster != nil {
		s.cfg.Offer(*m.Roster, Plain(m.Report.Name, maxWord))
	}
	if err := s.cfg.Store.Put(pool, from, m.Report); err != nil {
		return Answer{}, err
	}
	a := Answer{Time: s.cfg.Now()}
	if own := s.cfg.Roster(); own.Serial > 0 && m.Digest != own.Signed.Digest() {
		a.Roster = &own.Signed
	}
	return a, nil
}

// errStranger says no more to one who does not know a token.
var errStranger = errors.New("this master does not know this machine's token: its config is older than this machine's, or the token was revoked")

// who is the machine, the pool, or the operator, that the connection proves.
func (s *Server) who(r *http.Request) (name, pool string, operator bool, err error) {
	if r.TLS == nil {
		return "", "", false, errors.New("BUG: without TLS")
	}
	if len(r.TLS.VerifiedChains) > 0 {
		name, ok := strings.CutPrefix(r.TLS.PeerCertificates[0].Subject.CommonName, agentName)
		if !ok {
			return "", "", false, errors.New("the certificate is no agent's")
		}
		return name, "", false, nil
	}
	kind, claimed := r.Header.Get(headerKind), r.Header.Get(headerName)
	var token string
	switch {
	case kind == kindOperator && claimed == kindOperator:
		token = nodeconf.OperatorToken(s.cfg.JoinKey)
	case (kind == kindNode || kind == kindPool) && claimed != "":
		token = nodeconf.Token(s.cfg.JoinKey, kind == kindPool, claimed)
	default:
		return "", "", false, errStranger
	}
	want, err := proof(token, kind, claimed, r.TLS)
	if err != nil {
		return "", "", false, err
	}
	if !hmac.Equal([]byte(want), []byte(r.Header.Get(headerProof))) {
		return "", "", false, errStranger
	}
	switch kind {
	case kindOperator:
		return "", "", true, nil
	case kindPool:
		return "", claimed, false, nil
	}
	return claimed, "", false, nil
}

// bounded accepts no more connections than slots has room for.
type bounded struct {
	net.Listener
	slots chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	b.slots <- struct{}{}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &slot{Conn: conn, slots: b.slots}, nil
}

// slot gives its place back once.
type slot struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (s *slot) Close() error {
	s.once.Do(func() { <-s.slots })
	return s.Conn.Close()
}
