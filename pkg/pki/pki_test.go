package pki

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOpenSSL: OpenSSL verifies chain, names, usage and lifetime.
func TestOpenSSL(t *testing.T) {
	now := time.Now()
	for _, algorithm := range []string{"ECDSA-P256", "RSA-2048"} {
		t.Run(algorithm, func(t *testing.T) {
			dir := t.TempDir()
			ca, err := NewCA("etcd-ca", "kimage:demo", algorithm, now)
			if err != nil {
				t.Fatal(err)
			}
			other, err := NewCA("etcd-ca", "kimage:demo", algorithm, now)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := ca.Issue(Request{CommonName: "k8s-01", Names: []string{"k8s-01", "172.17.8.101", "::1"}, Server: true}, algorithm, now)
			if err != nil {
				t.Fatal(err)
			}
			for name, data := range map[string][]byte{"ca": ca.Cert, "other": other.Cert, "leaf": leaf.Cert, "key": leaf.Key} {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			openssl := func(args ...string) (string, error) {
				cmd := exec.Command("openssl", args...)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			for _, args := range []string{
				"verify -x509_strict -CAfile ca -purpose sslserver -verify_hostname k8s-01 leaf",
				"verify -x509_strict -CAfile ca -purpose sslserver -verify_ip 172.17.8.101 leaf",
				"verify -x509_strict -CAfile ca -purpose sslserver -verify_ip ::1 leaf",
				"pkey -in key -check -noout",
				"x509 -in leaf -checkend 314000000 -noout", // nearly ten years
			} {
				if out, err := openssl(strings.Fields(args)...); err != nil {
					t.Errorf("openssl %s: %v\n%s", args, err, out)
				}
			}
			for _, args := range []string{
				"verify -CAfile other leaf",
				"verify -CAfile ca -purpose sslclient leaf",
				"verify -CAfile ca -verify_hostname k8s-02 leaf",
				"x509 -in leaf -checkend 316000000 -noout",
			} {
				if out, err := openssl(strings.Fields(args)...); err == nil {
					t.Errorf("openssl %s succeeded:\n%s", args, out)
				}
			}
		})
	}
}

func TestCovers(t *testing.T) {
	now := time.Now()
	ca, err := NewCA("a", "b", "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewCA("a", "b", "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(Request{CommonName: "x", Names: []string{"x", "10.0.0.1", "fd00::1"}}, "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	bundle := append(append([]byte{}, ca.Cert...), other.Cert...)
	for _, test := range []struct {
		name  string
		ca    []byte
		names []string
		until time.Time
		want  bool
	}{
		{"as made", ca.Cert, []string{"x", "10.0.0.1", "fd00::1"}, now, true},
		{"first of a bundle", bundle, []string{"fd00::1", "x", "10.0.0.1"}, now, true},
		{"another authority", other.Cert, []string{"x", "10.0.0.1", "fd00::1"}, now, false},
		{"a name less", ca.Cert, []string{"x", "10.0.0.1"}, now, false},
		{"a name more", ca.Cert, []string{"x", "10.0.0.1", "fd00::1", "y"}, now, false},
		{"for longer", ca.Cert, []string{"x", "10.0.0.1", "fd00::1"}, now.Add(11 * 365 * 24 * time.Hour), false},
	} {
		if got := Covers(leaf.Cert, test.ca, test.names, test.until); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

func TestParseKeyDoesNotQuote(t *testing.T) {
	for _, bad := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"} {
		if _, err := ParseKey([]byte(bad)); err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "c2Vj") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
