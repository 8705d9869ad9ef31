package bootstrap

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestOfferRoster: what a person leaves is taken if the operator signed it and it
// is newer, and the person is told what becomes of it.
func TestOfferRoster(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "offered.json")
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	other := ed25519.NewKeyFromSeed([]byte(strings.Repeat("x", ed25519.SeedSize)))
	cluster := nodeconf.Cluster{UID: "uid", RosterKey: base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))}
	make := func(serial int, key ed25519.PrivateKey) []byte {
		signed, err := nodeconf.Roster{ClusterUID: "uid", Generation: 1, Serial: serial, Founding: []string{"a"}, Members: []nodeconf.Member{{Name: "a", PeerURL: "https://10.0.0.1:2380"}}}.Sign(key)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(signed)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	node := func() *rosters {
		return &rosters{cluster: cluster, files: []string{filepath.Join(dir, "first.json"), filepath.Join(dir, "kept.json")}, logf: t.Logf, mayWrite: func() error { return nil }}
	}
	if err := os.WriteFile(filepath.Join(dir, "first.json"), make(2, key), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := node().give(ctx, make(3, key), file); err == nil || !strings.Contains(err.Error(), "is kimage-agent.service running?") {
		t.Errorf("without an agent: %v", err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("what nobody took is left behind")
	}
	go node().offered(t.Context(), file)
	for want, data := range map[string][]byte{"newer roster: generation 1, serial 2": make(1, key), "sign": make(3, other), "no roster": []byte("{")} {
		if _, err := node().give(t.Context(), data, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for range 2 { // what is known already is no error
		r, err := node().give(t.Context(), make(3, key), file)
		if err != nil || r.Serial != 3 {
			t.Errorf("serial %d, %v", r.Serial, err)
		}
	}
	if got := node().highest().Serial; got != 3 {
		t.Errorf("kept is serial %d", got)
	}
}
