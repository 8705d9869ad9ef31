// Package pki makes certificate authorities, the certificates that they issue,
// and the keys of both, as PEM. It keeps nothing: where PEM lies, and who may
// read it, is the caller's business.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"time"
)

// Lifetimes.
const (
	CALifetime = 10 * 365 * 24 * time.Hour
	// Backdated is how far before its making a certificate begins to be valid: a
	// machine's clock may be behind.
	Backdated = 24 * time.Hour
)

// Pair is a certificate and its key, PEM. An authority's Cert may hold several
// certificates: the first is the one that signs, all are trusted.
type Pair struct {
	Cert, Key []byte
}

// Request says what a certificate is for.
type Request struct {
	CommonName   string
	Organization []string
	Names        []string // DNS names and addresses
	Server       bool
	Client       bool
	NotBefore    time.Time // zero: Backdated
	NotAfter     time.Time // zero: as long as its authority
}

// DefaultAlgorithm is how keys are made where a cluster's kubeadm.encryptionAlgorithm
// says nothing.
const DefaultAlgorithm = "ECDSA-P256"

// NewKey makes a private key, PKCS #8 PEM. algorithm is one of kubeadm's:
// ECDSA-P256, RSA-2048, RSA-3072, RSA-4096.
func NewKey(algorithm string) ([]byte, error) {
	key, err := newKey(algorithm)
	if err != nil {
		return nil, err
	}
	return encodeKey(key)
}

func newKey(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case DefaultAlgorithm:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "RSA-2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "RSA-3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA-4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("unknown key algorithm %q", algorithm)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads a private key: PKCS #8, PKCS #1 or SEC 1.
func ParseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM private key")
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	return nil, errors.New("the private key is of no kind that is known") // the cause could quote it
}

// Public is the public half of a private key, PEM.
func Public(key []byte) ([]byte, error) {
	k, err := ParseKey(key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// ParseCerts reads every certificate of a bundle.
func ParseCerts(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(bytes.TrimSpace(data)) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("not PEM")
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate")
	}
	return out, nil
}

// Fingerprint is the SHA-256 of a bundle's first certificate, hex.
func Fingerprint(cert []byte) (string, error) {
	certs, err := ParseCerts(cert)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(certs[0].Raw)
	return hex.EncodeToString(sum[:]), nil
}

// NewCA makes an authority that signs leaves only.
func NewCA(commonName, organization, algorithm string, now time.Time) (Pair, error) {
	key, err := newKey(algorithm)
	if err != nil {
		return Pair{}, err
	}
	now = now.UTC().Truncate(time.Second)
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: commonName, Organization: []string{organization}},
		NotBefore: now.Add(-Backdated), NotAfter: now.Add(CALifetime),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	return create(template, template, key, key)
}

// Issue makes a key and a certificate for it.
func (ca Pair) Issue(r Request, algorithm string, now time.Time) (Pair, error) {
	certs, err := ParseCerts(ca.Cert)
	if err != nil {
		return Pair{}, fmt.Errorf("reading the authority of %s: %w", r.CommonName, err)
	}
	signer, err := ParseKey(ca.Key)
	if err != nil {
		return Pair{}, fmt.Errorf("reading the key of the authority of %s: %w", r.CommonName, err)
	}
	key, err := newKey(algorithm)
	if err != nil {
		return Pair{}, err
	}
	now = now.UTC().Truncate(time.Second)
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: r.CommonName, Organization: r.Organization},
		NotBefore: now.Add(-Backdated), NotAfter: r.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	if !r.NotBefore.IsZero() {
		template.NotBefore = r.NotBefore
	}
	if template.NotBefore.Before(certs[0].NotBefore) {
		template.NotBefore = certs[0].NotBefore
	}
	if r.NotAfter.IsZero() || r.NotAfter.After(certs[0].NotAfter) {
		template.NotAfter = certs[0].NotAfter
	}
	if _, ok := key.(*rsa.PrivateKey); ok {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	for _, n := range r.Names {
		if ip, err := netip.ParseAddr(n); err == nil {
			template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	return create(template, certs[0], key, signer)
}

func create(template, parent *x509.Certificate, key, signer crypto.Signer) (Pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return Pair{}, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return Pair{}, fmt.Errorf("signing the certificate of %s: %w", template.Subject.CommonName, err)
	}
	keyPEM, err := encodeKey(key)
	return Pair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM}, err
}

// Covers says whether a certificate is signed by ca, carries exactly these
// names, and lives longer than until.
func Covers(leaf, ca []byte, names []string, until time.Time) bool {
	certs, err := ParseCerts(leaf)
	if err != nil {
		return false
	}
	authorities, err := ParseCerts(ca)
	if err != nil || certs[0].CheckSignatureFrom(authorities[0]) != nil || certs[0].NotAfter.Before(until) {
		return false
	}
	have := map[string]bool{}
	for _, n := range certs[0].DNSNames {
		have[n] = true
	}
	for _, a := range certs[0].IPAddresses {
		if ip, ok := netip.AddrFromSlice(a); ok {
			have[ip.Unmap().String()] = true
		}
	}
	for _, n := range names {
		if !have[n] {
			return false
		}
		delete(have, n)
	}
	return len(have) == 0
}
