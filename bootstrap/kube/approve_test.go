package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// aRequest is one that a kubelet w1 with w1's token makes at noon.
func aRequest(t *testing.T, change func(*csr, *x509.CertificateRequest)) csr {
	t.Helper()
	var c csr
	c.Metadata = metadata{Name: "csr-1", CreationTimestamp: noon}
	c.Spec.SignerName, c.Spec.Username = kubeletSigner, "system:bootstrap:abcdef"
	c.Spec.Groups = []string{"system:bootstrappers", JoinGroup, tokenGroup(false, "w1"), "system:authenticated"}
	c.Spec.Usages = []string{"digital signature", "client auth"}
	x := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:w1", Organization: []string{"system:nodes"}}}
	change(&c, x)
	if c.Spec.Request == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, x, key)
		if err != nil {
			t.Fatal(err)
		}
		c.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	return c
}

func aNode(name string, created time.Time, ready bool) map[string]apiNode {
	n := apiNode{Metadata: metadata{Name: name, UID: "uid-" + name, CreationTimestamp: created}}
	if ready {
		n.Status.Conditions = []condition{{Type: "Ready", Status: "True"}}
	} else {
		n.Status.Conditions = []condition{{Type: "Ready", Status: "Unknown"}}
	}
	return map[string]apiNode{name: n}
}

func TestJudge(t *testing.T) {
	peers := nodeconf.Peers{Nodes: []nodeconf.Peer{{Name: "m1"}, {Name: "w1"}, {Name: "spare-0123456789"}}, Pools: []nodeconf.Peer{{Name: "spare"}}}
	type change = func(*csr, *x509.CertificateRequest)
	asks := func(name string) change {
		return func(_ *csr, x *x509.CertificateRequest) { x.Subject.CommonName = nodeUser + name }
	}
	poolAsks := func(name string) change {
		return func(c *csr, x *x509.CertificateRequest) {
			c.Spec.Groups[2], x.Subject.CommonName = tokenGroup(true, "spare"), nodeUser+name
		}
	}
	for _, tt := range []struct {
		name   string
		change change
		nodes  map[string]apiNode
		want   string // approve, approve+delete, deny: WHY, later
	}{
		{"own name", func(*csr, *x509.CertificateRequest) {}, nil, "approve"},
		{"RSA usages", func(c *csr, _ *x509.CertificateRequest) { c.Spec.Usages = append(c.Spec.Usages, "key encipherment") }, nil, "approve"},
		{"another's name", asks("m1"), nil, "deny: the token of w1 asked for m1"},
		{"a longer name", asks("w1.example"), nil, "deny: the token of w1 asked for"},
		{"no name", asks(""), nil, "deny: it does not ask to be a Node"},
		{"an administrator", func(_ *csr, x *x509.CertificateRequest) { x.Subject.Organization = []string{"system:masters"} }, nil, "deny: it does not ask to be a Node"},
		{"also an administrator", func(_ *csr, x *x509.CertificateRequest) {
			x.Subject.Organization = []string{"system:nodes", "system:masters"}
		}, nil, "deny: it does not ask to be a Node"},
		{"a server", func(c *csr, _ *x509.CertificateRequest) { c.Spec.Usages = []string{"digital signature", "server auth"} }, nil, "deny: it asks for the usages"},
		{"also a server", func(c *csr, _ *x509.CertificateRequest) { c.Spec.Usages = append(c.Spec.Usages, "server auth") }, nil, "deny: it asks for the usages"},
		{"further names", func(_ *csr, x *x509.CertificateRequest) { x.DNSNames = []string{"kubernetes"} }, nil, "deny: it asks for further names"},
		{"further addresses", func(_ *csr, x *x509.CertificateRequest) { x.IPAddresses = []net.IP{{10, 0, 0, 1}} }, nil, "deny: it asks for further names"},
		{"no request", func(c *csr, _ *x509.CertificateRequest) { c.Spec.Request = []byte("x") }, nil, "deny: it is not a PEM"},
		{"a Ready Node has the name", func(*csr, *x509.CertificateRequest) {}, aNode("w1", noon.Add(-time.Hour), true), "later"},
		{"a stale Node has the name", func(*csr, *x509.CertificateRequest) {}, aNode("w1", noon.Add(-time.Hour), false), "approve+delete"},
		{"it has become a Node since", func(*csr, *x509.CertificateRequest) {}, aNode("w1", noon.Add(time.Minute), false), "deny: the machine has become a Node since"},
		{"another's name, stale", asks("m1"), aNode("m1", noon.Add(-time.Hour), false), "deny: the token of w1 asked for m1"},
		// Not made with a token of kimage's: somebody else's business.
		{"another signer", func(c *csr, _ *x509.CertificateRequest) { c.Spec.SignerName = "kubernetes.io/kubelet-serving" }, nil, "later"},
		{"a renewal", func(c *csr, _ *x509.CertificateRequest) {
			c.Spec.Username, c.Spec.Groups = "system:node:w1", []string{"system:nodes", "system:authenticated"}
		}, nil, "later"},
		{"a user who claims the group", func(c *csr, _ *x509.CertificateRequest) { c.Spec.Username = "eve" }, nil, "later"},
		{"a token of kubeadm's", func(c *csr, _ *x509.CertificateRequest) {
			c.Spec.Groups = []string{"system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token"}
		}, nil, "later"},
		{"two names", func(c *csr, _ *x509.CertificateRequest) {
			c.Spec.Groups = append(c.Spec.Groups, tokenGroup(false, "m1"))
		}, nil, "later"},
		{"approved already", func(c *csr, _ *x509.CertificateRequest) {
			c.Status.Conditions = []condition{{Type: "Approved", Status: "True"}}
		}, nil, "later"},
		{"denied already", func(c *csr, _ *x509.CertificateRequest) {
			c.Status.Conditions = []condition{{Type: "Denied", Status: "True"}}
		}, nil, "later"},
		// Pools.
		{"pool", poolAsks("spare-aaaaaaaaaa"), nil, "approve"},
		{"pool, a stale Node", poolAsks("spare-aaaaaaaaaa"), aNode("spare-aaaaaaaaaa", noon.Add(-time.Hour), false), "approve+delete"},
		{"pool, a named machine", poolAsks("w1"), nil, "deny: the token of pool spare asked for w1"},
		{"pool, a named machine that looks like its own", poolAsks("spare-0123456789"), nil, "deny: the token of pool spare asked for"},
		{"pool, another pool", poolAsks("other-aaaaaaaaaa"), nil, "deny: the token of pool spare asked for"},
		{"pool, a longer pool", poolAsks("spare-b-aaaaaaaaaa"), nil, "deny: the token of pool spare asked for"},
		{"pool, no hash", poolAsks("spare-zzzzzzzzzz"), nil, "deny: the token of pool spare asked for"},
		{"pool, its own name", poolAsks("spare"), nil, "deny: the token of pool spare asked for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := words(judge([]csr{aRequest(t, tt.change)}, tt.nodes, "demo", peers)); len(got) != 1 || !strings.HasPrefix(got[0], tt.want) {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func words(verdicts []verdict) (out []string) {
	for _, v := range verdicts {
		switch {
		case v.approve && v.stale != nil:
			out = append(out, "approve+delete")
		case v.approve:
			out = append(out, "approve")
		default:
			out = append(out, "deny: "+v.why)
		}
	}
	if len(out) == 0 {
		return []string{"later"}
	}
	return out
}

// TestJudgeSeveral: of several requests for a name the newest counts, also
// when it is decided already.
func TestJudgeSeveral(t *testing.T) {
	at := func(d time.Duration, conditions ...condition) csr {
		return aRequest(t, func(c *csr, _ *x509.CertificateRequest) {
			c.Metadata.CreationTimestamp, c.Status.Conditions = noon.Add(d), conditions
		})
	}
	foreign := aRequest(t, func(c *csr, x *x509.CertificateRequest) {
		c.Metadata.CreationTimestamp = noon.Add(time.Hour)
		x.Subject.CommonName, c.Spec.Groups[2] = nodeUser+"w1", tokenGroup(false, "m1")
	})
	const newer = "deny: a newer request of the same machine takes its place"
	for _, tt := range []struct {
		name     string
		requests []csr
		want     []string
	}{
		{"two", []csr{at(0), at(time.Minute)}, []string{newer, "approve"}},
		{"the newer one is approved", []csr{at(0), at(time.Minute, condition{Type: "Approved", Status: "True"})}, []string{newer}},
		{"somebody else's does not count", []csr{at(0), foreign}, []string{"approve", "deny: the token of m1 asked for w1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, words(judge(tt.requests, nil, "demo", nodeconf.Peers{}))); d != "" {
				t.Error(d)
			}
		})
	}
}
