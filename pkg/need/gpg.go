package need

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Signer is a vendor with a GnuPG of its own: a primary key that certifies for ever, and
// subkeys that sign. Days are "2026-11-26".
type Signer struct {
	t           testing.TB
	home        string
	Fingerprint string // of the primary key
}

// NewSigner makes a primary key on a day, with a subkey that lives two years.
func NewSigner(t testing.TB, day string) *Signer {
	t.Helper()
	Program(t, "gpg", "gnupg")
	home, err := os.MkdirTemp("", "gpg") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	s := &Signer{t: t, home: home}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	s.GPG(day, nil, "--quick-generate-key", "Vendor <vendor@example.com>", "ed25519", "cert", "never")
	for line := range strings.Lines(string(s.GPG(day, nil, "--with-colons", "--list-keys"))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			s.Fingerprint = f[9]
		}
	}
	s.AddSubkey(day)
	return s
}

// AddSubkey makes another signing subkey, which signs from that day on.
func (s *Signer) AddSubkey(day string) {
	s.t.Helper()
	s.GPG(day, nil, "--quick-add-key", s.Fingerprint, "rsa2048", "sign", "2y")
}

// Keys exports the public keys, armored.
func (s *Signer) Keys(day string) []byte {
	s.t.Helper()
	return s.GPG(day, nil, "--armor", "--export")
}

// Sign makes a detached signature; options stand before the command.
func (s *Signer) Sign(day string, content []byte, options ...string) []byte {
	s.t.Helper()
	return s.GPG(day, content, append(options, "--detach-sign")...)
}

// GPG runs a command of GnuPG on a day.
func (s *Signer) GPG(day string, in []byte, args ...string) []byte {
	s.t.Helper()
	cmd := exec.Command("gpg", append([]string{"--homedir", s.home, "--batch", "--quiet", "--no-tty", "--passphrase", "", "--pinentry-mode", "loopback", "--trust-model", "always",
		"--faked-system-time", strings.ReplaceAll(day, "-", "") + "T120000"}, args...)...)
	cmd.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("gpg %v: %v\n%s", args, err, errs.String())
	}
	return out
}
