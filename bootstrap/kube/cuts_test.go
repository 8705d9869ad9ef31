//go:build integration

package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestPowerCuts cuts the power of a master at random moments of its
// initialisation, KIMAGE_CUTS times, and lets it keep its disk. KIMAGE_SEED
// repeats a run.
func TestPowerCuts(t *testing.T) {
	cuts, _ := strconv.Atoi(os.Getenv("KIMAGE_CUTS"))
	if cuts == 0 {
		t.Skip("set KIMAGE_CUTS to the number of power cuts")
	}
	seed, err := strconv.ParseUint(os.Getenv("KIMAGE_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("KIMAGE_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	peers := storyPeers()
	peers.Nodes = append(peers.Nodes[:1], peers.Nodes[2:]...)
	c := newCluster(t, peers)
	logFile := filepath.Join(c.dir, "m1/log")
	seen := 0
	for range cuts {
		c.startMaster("m1", m1)
		c.until("m1 does something", 2*time.Minute, func(context.Context) error {
			data, _ := os.ReadFile(logFile)
			if n := strings.Count(string(data), "DECIDE init") + strings.Count(string(data), "DECIDE clean"); n == seen {
				return errors.New("it waits")
			} else {
				seen = n
			}
			return nil
		})
		if c.joinedBy("m1") != "" {
			t.Fatal("it has joined: choose another seed")
		}
		after := time.Duration(random.Int64N(int64(14 * time.Second)))
		time.Sleep(after)
		c.kill("m1")
		data, _ := os.ReadFile(logFile)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		t.Logf("cut %s after it began; its last words: %.160s", after.Round(time.Millisecond), lines[len(lines)-1])
		if c.joinedBy("m1") != "" {
			break
		}
	}
	c.startMaster("m1", m1)
	c.joined("m1")
	c.ready(m1, "m1", "")
	c.provisioned()
	c.pkiUnchanged("m1")
}
