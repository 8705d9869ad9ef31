// Package report carries what a machine says of itself to the masters' agents,
// so that one question to a master shows every machine of the cluster file,
// also those never heard of.
//
// A machine sends, once a minute and whenever something changed, one request
// over a TLS connection of its own to every master of the roster.
//
//	who answers   a master shows a certificate that it issued to itself under the
//	              cluster's CA, for its address and the name "kimage-agent:NAME".
//	              Every machine has that CA's certificate; only masters have its
//	              key. A kubelet's serving certificate has another name and does
//	              not pass for it.
//	who asks      a machine with a bootstrap token shows that it knows it by an
//	              HMAC over the TLS connection's exported keying material (RFC
//	              8446, 7.5), which no other connection shares: the token is not sent,
//	              and what is sent is of no use to anybody else, not even to a
//	              false master. Masters derive the tokens of all names and keep
//	              none. A machine of a pool proves its pool and says which of its
//	              machines it is. An etcd member without a kubelet has no token,
//	              and shows its client certificate for etcd, whose common name is
//	              "kimage-agent:NAME".
//
// Who has the cluster's secrets may ask for what a master heard of all machines.
//
// This needs no secret that the machine does not have already. It has a port of
// its own, beside that of founding: those who may be heard here are many more
// than those who may have a say in etcd, and neither can reach the other's code.
//
// A report can do nothing but be shown. It is kept in memory, for names of the
// roster only, in bounded length and without control characters. What
// decides is not taken from it: not the sender's clock, and not its roster. The
// roster that travels beside it, and back with the answer, is the operator's
// word: who gets one verifies the signature, and only a higher one counts. A
// worker that no master of its roster answers is brought a newer one: see Deliver.
package report

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// Port is where masters' agents are told.
const Port = 7443

const (
	path            = "/v1/report"
	clusterPath     = "/v1/cluster"
	maxMessageBytes = 1 << 20  // the longest roster, and more
	maxAnswerBytes  = 16 << 20 // some thousand machines
	headerKind      = "Kimage-Kind"
	headerName      = "Kimage-Name" // of the machine, or of its pool
	headerProof     = "Kimage-Proof"
	agentName       = "kimage-agent:" // begins the common names of agents' certificates
)

// Kinds of names.
const (
	kindNode     = "node"
	kindPool     = "pool"
	kindOperator = "operator" // one name, the same
)

// Report is what a machine says of itself.
type Report struct {
	Name       string    `json:"name"`
	Addresses  []string  `json:"addresses,omitempty"` // those that it has
	ImageID    string    `json:"imageID,omitempty"`
	OS         string    `json:"os,omitempty"`
	Kubernetes string    `json:"kubernetes,omitempty"`
	Phase      string    `json:"phase"`
	Since      time.Time `json:"since"`         // of the phase, by its clock
	Why        string    `json:"why,omitempty"` // what it waits for, and what to do about it
	Time       time.Time `json:"time"`          // its clock when it sent this
}

// Message is a request: the report, and which is the highest roster of the sender.
type Message struct {
	ClusterUID string                 `json:"clusterUID"`
	Report     Report                 `json:"report"`
	Digest     string                 `json:"digest"`           // of the roster; empty: none
	Roster     *nodeconf.SignedRoster `json:"roster,omitempty"` // nil also where the master has said that it has it
}

// Answer is what a master says to it.
type Answer struct {
	Time   time.Time              `json:"time"`             // its clock
	Roster *nodeconf.SignedRoster `json:"roster,omitempty"` // its highest; nil: the sender's own
}

// Identity proves the name of a machine.
type Identity struct {
	Name string
	Pool string // empty: a machine of the cluster file
	// Operator is somebody who has the cluster's secrets, and who may ask about all
	// machines. Name and Pool are empty.
	Operator bool
	Token    string           // empty: Cert proves it
	Cert     *tls.Certificate // of an etcd member without a kubelet
}

// proof binds a token's knowledge to one connection.
func proof(token, kind, name string, cs *tls.ConnectionState) (string, error) {
	binding, err := cs.ExportKeyingMaterial("EXPORTER-kimage-report", nil, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("kimage.dev report v1\n" + kind + "\n" + name + "\n"))
	mac.Write(binding)
	return hex.EncodeToString(mac.Sum(nil)), nil
}

// What is kept of one report at most.
const (
	maxWord      = 128
	maxWhy       = 2048
	maxAddresses = 8
)

// clean bounds what is kept, and takes out what a terminal would obey.
func (r Report) clean() Report {
	for field, limit := range map[*string]int{&r.Name: maxWord, &r.ImageID: maxWord, &r.OS: maxWord, &r.Kubernetes: maxWord, &r.Phase: maxWord, &r.Why: maxWhy} {
		*field = Plain(*field, limit)
	}
	r.Addresses = slices.Clone(r.Addresses[:min(len(r.Addresses), maxAddresses)])
	for i := range r.Addresses {
		r.Addresses[i] = Plain(r.Addresses[i], maxWord)
	}
	return r
}

// Plain is at most limit bytes of a text, one line of what can be printed.
func Plain(s string, limit int) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '\n' || c == '\t':
			c = ' '
		case !unicode.IsPrint(c):
			c = '?'
		}
		if b.Len()+len(string(c)) > limit {
			break
		}
		b.WriteRune(c)
	}
	return b.String()
}

// Wrap breaks text between words, and a word that is too long anywhere.
func Wrap(text string, width int) (lines []string) {
	line := ""
	for _, w := range strings.Fields(text) {
		for len([]rune(w)) > width {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			r := []rune(w)
			lines, w = append(lines, string(r[:width])), string(r[width:])
		}
		switch {
		case line == "":
			line = w
		case len([]rune(line))+1+len([]rune(w)) <= width:
			line += " " + w
		default:
			lines, line = append(lines, line), w
		}
	}
	return append(lines, line)
}
