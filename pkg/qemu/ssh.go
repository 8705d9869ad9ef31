package qemu

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Key is a key pair for logging in to test machines.
type Key struct {
	signer ssh.Signer
	Public string // as in authorized_keys
	PEM    []byte // the private key, as ssh -i reads it
}

// NewKey makes a key pair.
func NewKey() (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return Key{}, err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return Key{}, err
	}
	return Key{signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), pem.EncodeToMemory(block)}, nil
}

// ParseKey reads a key pair from the private key's PEM.
func ParseKey(data []byte) (Key, error) {
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return Key{}, err
	}
	return Key{signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), data}, nil
}

// Result is what a command in a machine did.
type Result struct {
	Stdout, Stderr string
	Status         int
}

// SSH runs a command through the login shell of user. A status other than 0
// is not an error; no answer is.
func (m *Machine) SSH(ctx context.Context, user string, k Key, command string) (Result, error) {
	client, err := m.dial(ctx, user, k)
	if err != nil {
		return Result{}, err
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	session, err := client.NewSession()
	if err != nil {
		return Result{}, err
	}
	defer session.Close()
	var out, errOut bytes.Buffer
	session.Stdout, session.Stderr = &out, &errOut
	err = session.Run(command)
	r := Result{Stdout: out.String(), Stderr: errOut.String()}
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		r.Status, err = exit.ExitStatus(), nil
	}
	if err != nil {
		return r, fmt.Errorf("running %q: %w", command, errors.Join(err, ctx.Err()))
	}
	return r, nil
}

func (m *Machine) dial(ctx context.Context, user string, k Key) (*ssh.Client, error) {
	address := fmt.Sprintf("127.0.0.1:%d", m.SSHPort)
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	// QEMU accepts before the guest does, and an emulated guest takes seconds
	// to shake hands.
	if err := conn.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		conn.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c, chans, reqs, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(k.signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey()}) // its keys are made at first boot, and the port is local
	if err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, chans, reqs), conn.SetDeadline(time.Time{})
}

// WaitSSH waits until user can log in.
func (m *Machine) WaitSSH(ctx context.Context, user string, k Key) error {
	var last error
	for {
		client, err := m.dial(ctx, user, k)
		if err == nil {
			return client.Close()
		}
		last = err
		select {
		case <-ctx.Done():
			return fmt.Errorf("no SSH: %w; the console's end: %s", last, tail(m.Console(), 2000))
		case <-m.exited:
			return fmt.Errorf("the machine went off: %w", errors.Join(m.exitErr, errors.New(tail(m.Console(), 2000))))
		case <-time.After(2 * time.Second):
		}
	}
}
