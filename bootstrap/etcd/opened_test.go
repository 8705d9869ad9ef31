package etcd

import (
	"errors"
	"testing"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestOpened: what was verified is not verified again, and nothing else counts
// as verified.
func TestOpened(t *testing.T) {
	asked := 0
	open := opened(func(s nodeconf.SignedRoster) (nodeconf.Roster, error) {
		asked++
		if string(s.Signature) != "good" {
			return nodeconf.Roster{}, errors.New("bad signature")
		}
		return nodeconf.Roster{ClusterUID: string(s.Payload)}, nil
	})
	for _, tt := range []struct {
		payload, signature string
		ok                 bool
		asked              int // in all
	}{{"a", "bad", false, 1}, {"a", "bad", false, 2}, {"a", "good", true, 3}, {"a", "good", true, 3}, {"a", "bad", false, 4}, {"b", "good", true, 5}, {"a", "good", true, 5}} {
		r, err := open(nodeconf.SignedRoster{Payload: []byte(tt.payload), Signature: []byte(tt.signature)})
		if (err == nil) != tt.ok || tt.ok && r.ClusterUID != tt.payload || asked != tt.asked {
			t.Errorf("%s signed %s: %+v, %v, verified %d times, want %d", tt.payload, tt.signature, r, err, asked, tt.asked)
		}
	}
}
