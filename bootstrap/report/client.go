package report

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// Client tells masters.
type Client struct {
	Identity Identity
	CA       *x509.CertPool // the cluster's
	// Now is the clock by which certificates are judged.
	Now  func() time.Time
	Port int // 0: Port
}

// Refused is what a master says that does not take a report.
type Refused struct{ Why string }

func (r *Refused) Error() string { return "it refuses: " + r.Why }

// Send tells one master, and returns its answer and how far its clock is ahead
// of this machine's.
func (c *Client) Send(ctx context.Context, to nodeconf.Master, m Message) (a Answer, ahead time.Duration, err error) {
	body, err := json.Marshal(m)
	if err != nil {
		return a, 0, err
	}
	sent, took, err := c.exchange(ctx, to, http.MethodPost, path, body, &a)
	if err != nil {
		return a, 0, err
	}
	return a, a.Time.Sub(sent.Add(took / 2)), nil
}

// Cluster asks one master what it knows of all machines; only the operator may.
func (c *Client) Cluster(ctx context.Context, to nodeconf.Master) (all Cluster, err error) {
	_, _, err = c.exchange(ctx, to, http.MethodGet, clusterPath, nil, &all)
	return all, err
}

// exchange sends one request and reads the answer, and says when it was sent by this
// machine's clock and what it took. The connection is made for it and closed:
// thousands of idle ones would cost the masters more than a handshake a minute.
func (c *Client) exchange(ctx context.Context, to nodeconf.Master, method, path string, body []byte, into any) (sent time.Time, took time.Duration, err error) {
	conn, err := c.dial(ctx, to)
	if err != nil {
		return sent, 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	req, err := c.request(conn, to, method, path, body)
	if err != nil {
		return sent, 0, err
	}
	sent = c.Now()
	if err := req.Write(conn); err != nil {
		return sent, 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return sent, 0, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return sent, 0, err
	}
	took = c.Now().Sub(sent)
	if resp.StatusCode != http.StatusOK {
		return sent, took, &Refused{Plain(string(bytes.TrimSpace(data)), maxWhy)}
	}
	if err := json.Unmarshal(data, into); err != nil {
		return sent, took, fmt.Errorf("reading the answer: %w", err)
	}
	return sent, took, nil
}

// dial connects to the machine that is a master under this name, and to no
// other that has the address.
func (c *Client) dial(ctx context.Context, to nodeconf.Master) (*tls.Conn, error) {
	port := c.Port
	if port == 0 {
		port = Port
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.CA, ServerName: to.Address, Time: c.Now,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := cs.PeerCertificates[0].Subject.CommonName; got != agentName+to.Name {
				return fmt.Errorf("the machine at the address of %s is %q: two machines have one address, or the roster is old", to.Name, got)
			}
			return nil
		}}
	if c.Identity.Cert != nil {
		// Also to a master that would not accept it, so that it says so.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Identity.Cert, nil }
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", net.JoinHostPort(to.Address, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

func (c *Client) request(conn *tls.Conn, to nodeconf.Master, method, path string, body []byte) (*http.Request, error) {
	req, err := http.NewRequest(method, "https://"+net.JoinHostPort(to.Address, strconv.Itoa(Port))+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	if c.Identity.Token == "" {
		return req, nil
	}
	kind, name := kindNode, c.Identity.Name
	switch {
	case c.Identity.Operator:
		kind, name = kindOperator, kindOperator
	case c.Identity.Pool != "":
		kind, name = kindPool, c.Identity.Pool
	}
	cs := conn.ConnectionState()
	shown, err := proof(c.Identity.Token, kind, name, &cs)
	if err != nil {
		return nil, err
	}
	req.Header.Set(headerKind, kind)
	req.Header.Set(headerName, name)
	req.Header.Set(headerProof, shown)
	return req, nil
}
