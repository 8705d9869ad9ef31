// Package state keeps what belongs to a cluster and is made once: the secrets
// in STEM.secrets (directory of mode 0700, files of mode 0600, encrypted with
// age if the cluster file names recipients) and STEM.state, which holds no
// secret and may be committed.
//
// Only what is missing is ever made. What STEM.state says was made before and
// is not there, or is another cluster's, stops everything: a new authority
// under the name of a lost one would lock all machines out.
package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/pki"
)

// Names of secrets besides those of nodeconf.
const (
	rosterKey = "roster.key"
	admin     = "admin" // the operator's certificate
	record    = "cluster.json"
)

// Authorities, with the common names that Kubernetes documents.
var authorities = []struct{ name, commonName string }{
	{nodeconf.ClusterCA, "kubernetes-ca"},
	{nodeconf.EtcdCA, "etcd-ca"},
	{nodeconf.PeerCA, "etcd-peer-ca"},
	{nodeconf.FrontProxyCA, "kubernetes-front-proxy-ca"},
}

// Public is STEM.state.
type Public struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"` // ClusterState
	Name       string    `json:"name"`
	UID        string    `json:"uid"`
	Created    time.Time `json:"created"`
	// Fingerprints of what was made: of authorities the certificate's SHA-256, of
	// keys that of the public half, of shared keys one that does not reveal them.
	Fingerprints map[string]string `json:"fingerprints"`
	Roster       nodeconf.Roster   `json:"roster"`
}

// Config says which state to open.
type Config struct {
	File     *cluster.File
	Identity string                           // file with an age identity; empty: none
	Now      func() time.Time                 // nil: time.Now
	Logf     func(format string, args ...any) // what was made; nil: silent
}

// Store is the opened state; it is locked until Close.
type Store struct {
	Public
	file       *cluster.File
	dir        string
	statePath  string
	secrets    map[string][]byte // name to plain content
	encrypted  map[string]bool   // as they lie in the directory
	changed    map[string]bool
	recipients []age.Recipient
	now        func() time.Time
	logf       func(string, ...any)
	lock       *os.File
	fresh      bool // nothing was there
	dirty      bool // Public changed
}

// ErrNoState is the error of OpenExisting for a cluster that has no state yet.
var ErrNoState = errors.New("this cluster has no secrets yet: kimage config makes them")

// Open reads the state of the cluster, or begins one in memory. Call Close.
func Open(c Config) (*Store, error) {
	s := &Store{file: c.File, dir: c.File.Stem() + ".secrets", statePath: c.File.Stem() + ".state", secrets: map[string][]byte{}, encrypted: map[string]bool{},
		changed: map[string]bool{}, now: c.Now, logf: c.Logf}
	if s.now == nil {
		s.now = time.Now
	}
	if s.logf == nil {
		s.logf = func(string, ...any) {}
	}
	for _, r := range c.File.Cluster.Spec.Secrets.EncryptTo {
		recipient, err := cluster.Recipient(r)
		if err != nil {
			return nil, fmt.Errorf("spec.secrets.encryptTo: %w", err)
		}
		s.recipients = append(s.recipients, recipient)
	}
	if err := s.load(c.Identity); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// OpenExisting is Open for commands that make nothing.
func OpenExisting(c Config) (*Store, error) {
	s, err := Open(c)
	if err == nil && s.fresh {
		s.Close()
		return nil, ErrNoState
	}
	return s, err
}

// Close gives the lock back.
func (s *Store) Close() {
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
	}
}

// Dir is the directory of the secrets.
func (s *Store) Dir() string { return s.dir }

func (s *Store) load(identity string) error {
	public, err := os.ReadFile(s.statePath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if s.Public, err = decodePublic(public, s.statePath); err != nil {
			return err
		}
	}
	switch fi, err := os.Stat(s.dir); {
	case errors.Is(err, fs.ErrNotExist):
		if public != nil {
			return s.lost("there is no " + s.dir)
		}
		s.fresh = true
		return nil
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory: move it away", s.dir)
	case fi.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s can be read by others (mode %04o): chmod 700 %s", s.dir, fi.Mode().Perm(), s.dir)
	}
	if s.lock, err = os.Open(s.dir); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return fmt.Errorf("locking %s: %w", s.dir, err)
	}
	// Somebody may have changed it while this waited for the lock.
	if again, err := os.ReadFile(s.statePath); err == nil {
		if s.Public, err = decodePublic(again, s.statePath); err != nil {
			return err
		}
		public = again
	}
	if err := s.readSecrets(identity); err != nil {
		return err
	}
	return s.reconcile(public != nil)
}

func (s *Store) takeLock() error {
	err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		s.logf("another kimage works with %s: waiting for it", s.dir)
		err = unix.Flock(int(s.lock.Fd()), unix.LOCK_EX)
	}
	return err
}

func (s *Store) lost(what string) error {
	return fmt.Errorf("%s belongs to cluster %s (%s), but %s: put its secrets back from your backup. Without them no machine can join it; to describe another cluster, move %s away",
		s.statePath, s.Public.Name, s.UID, what, s.statePath)
}

func decodePublic(data []byte, name string) (Public, error) {
	var p Public
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return p, fmt.Errorf("reading %s (put it back from version control): %w", name, err)
	}
	if p.APIVersion != cluster.APIVersion || p.Kind != "ClusterState" || p.UID == "" {
		return p, fmt.Errorf("%s is not the state of a cluster of this kimage (%s %s)", name, p.APIVersion, p.Kind)
	}
	return p, nil
}

// readSecrets reads every file of the directory.
func (s *Store) readSecrets(identity string) error {
	var identities []age.Identity
	if identity != "" {
		var err error
		if identities, err = readIdentities(identity); err != nil {
			return err
		}
	}
	return filepath.WalkDir(s.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			return err
		}
		name, err := filepath.Rel(s.dir, p)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if plain, ok := strings.CutSuffix(name, ".age"); ok {
			if data, err = decrypt(data, identities); err != nil {
				return fmt.Errorf("reading %s: %w", p, err)
			}
			name = plain
			s.encrypted[name] = true
		}
		s.secrets[name] = data
		return nil
	})
}

// reconcile compares the secrets with the state. The secrets hold a copy of
// the state: a rolled-back or missing STEM.state is made good from it.
func (s *Store) reconcile(havePublic bool) error {
	data, ok := s.secrets[record]
	if !ok {
		if havePublic {
			return s.lost(s.dir + " lacks " + record)
		}
		s.fresh = true // the first run was cut off before anything depended on it
		clear(s.secrets)
		return nil
	}
	mine, err := decodePublic(data, filepath.Join(s.dir, record))
	if err != nil {
		return err
	}
	if !havePublic {
		s.logf("%s was missing; it is made again from %s", s.statePath, s.dir)
		s.Public, s.dirty = mine, true
	}
	if mine.UID != s.UID {
		return s.lost(s.dir + " belongs to cluster " + mine.Name + " (" + mine.UID + ")")
	}
	if name := s.file.Cluster.Metadata.Name; s.Public.Name != name {
		return fmt.Errorf("%s is the state of cluster %s, and the cluster file's name is %s: the name is part of the secrets and never changes; give another cluster another file", s.statePath, s.Public.Name, name)
	}
	newer, err := mine.Roster.Newer(s.Roster)
	if err != nil {
		return fmt.Errorf("%s and %s: %w", s.dir, s.statePath, err)
	}
	if newer {
		s.logf("%s is older than %s; the newer one counts", s.statePath, s.dir)
		s.Public, s.dirty = mine, true
	}
	for name, want := range s.Fingerprints {
		got, err := s.fingerprint(name)
		if err != nil {
			return s.lost(fmt.Sprintf("%s: %s: %v", s.dir, name, err))
		}
		if got != want {
			return s.lost(fmt.Sprintf("%s in %s is another one (fingerprint %.16s, not %.16s)", name, s.dir, got, want))
		}
	}
	return nil
}

// fingerprint identifies a root secret.
func (s *Store) fingerprint(name string) (string, error) {
	switch name {
	case nodeconf.EncryptionKey, nodeconf.JoinKey:
		data, ok := s.secrets[name]
		if !ok {
			return "", errors.New("is missing")
		}
		sum := sha256.Sum256(append([]byte("kimage.dev fingerprint "+name+"\n"), data...))
		return hex.EncodeToString(sum[:]), nil
	case rosterKey, nodeconf.ServiceAccountKey:
		public, err := pki.Public(s.secrets[name])
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(public)
		return hex.EncodeToString(sum[:]), nil
	}
	if _, ok := s.secrets[name+".key"]; !ok {
		return "", errors.New("the key is missing")
	}
	return pki.Fingerprint(s.secrets[name+".crt"])
}

func (s *Store) set(name string, data []byte) {
	s.secrets[name] = data
	s.changed[name] = true
}

// Secret is the content of one secret; nil: there is none.
func (s *Store) Secret(name string) []byte { return s.secrets[name] }

// Pair is a certificate and its key.
func (s *Store) Pair(name string) pki.Pair {
	return pki.Pair{Cert: s.secrets[name+".crt"], Key: s.secrets[name+".key"]}
}

// Node is the name of a machine's own secret.
func Node(node, name string) string { return "nodes/" + node + "/" + name }

// Fresh says whether nothing was there before.
func (s *Store) Fresh() bool { return s.fresh }

// SignedRoster is the roster as machines get it.
func (s *Store) SignedRoster() (nodeconf.SignedRoster, error) {
	key, err := pki.ParseKey(s.secrets[rosterKey])
	if err != nil {
		return nodeconf.SignedRoster{}, fmt.Errorf("%s in %s: %w", rosterKey, s.dir, err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nodeconf.SignedRoster{}, fmt.Errorf("%s in %s is not an Ed25519 key", rosterKey, s.dir)
	}
	return s.Roster.Sign(private)
}

// RosterKey is the public key of rosters, base64.
func (s *Store) RosterKey() (string, error) {
	key, err := pki.ParseKey(s.secrets[rosterKey])
	if err != nil {
		return "", fmt.Errorf("%s in %s: %w", rosterKey, s.dir, err)
	}
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("%s in %s is not an Ed25519 key", rosterKey, s.dir)
	}
	return base64.StdEncoding.EncodeToString(public), nil
}

// Save writes what changed: the secrets, then the copy of the state among
// them, then the state.
func (s *Store) Save() error {
	if len(s.changed) == 0 && !s.dirty {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("the secrets' directory: %w", err)
	}
	atomicfile.Sweep(s.dir)
	data, err := json.MarshalIndent(s.Public, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	for _, name := range slices.Sorted(maps.Keys(s.changed)) {
		if err := s.write(name); err != nil {
			return err
		}
	}
	s.secrets[record] = data
	if err := s.write(record); err != nil {
		return err
	}
	if err := atomicfile.Write(s.statePath, data, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", s.statePath, err)
	}
	clear(s.changed)
	s.dirty, s.fresh = false, false
	return nil
}

// private says whether a secret is one: certificates and the record are not.
func private(name string) bool {
	return !strings.HasSuffix(name, ".crt") && !strings.HasSuffix(name, ".pub") && name != record
}

func (s *Store) write(name string) error {
	data, file := s.secrets[name], filepath.Join(s.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	other := file + ".age"
	if private(name) && len(s.recipients) > 0 {
		var err error
		if data, err = encrypt(data, s.recipients); err != nil {
			return fmt.Errorf("encrypting %s: %w", name, err)
		}
		file, other = other, file
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	s.encrypted[name] = strings.HasSuffix(file, ".age")
	if err := os.Remove(other); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// newUID is a random UUID, version 4.
func newUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func newEd25519() ([]byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// Certificate is one certificate of the state, as people see it.
type Certificate struct {
	Name     string    `json:"name"`
	NotAfter time.Time `json:"notAfter"`
}

// Certificates lists all certificates by name.
func (s *Store) Certificates() (out []Certificate) {
	for _, name := range slices.Sorted(maps.Keys(s.secrets)) {
		if !strings.HasSuffix(name, ".crt") {
			continue
		}
		if certs, err := pki.ParseCerts(s.secrets[name]); err == nil {
			out = append(out, Certificate{strings.TrimSuffix(name, ".crt"), certs[0].NotAfter})
		}
	}
	return out
}
