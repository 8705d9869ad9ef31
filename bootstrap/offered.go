package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// offeredFile is where a person leaves a roster for the agent, which removes it.
const offeredFile = "/run/kimage/roster.json"

const offeredEvery = 2 * time.Second

// OfferRoster gives this machine a roster that kimage config wrote, and returns
// when its agent keeps it: from here it reaches every other machine. A machine
// that boots with a newer roster brings it along by itself; this is for a change
// that boots none, as a cluster that only becomes smaller.
func OfferRoster(ctx context.Context, data []byte) (nodeconf.Roster, error) {
	conf, err := readConfig()
	if err != nil {
		return nodeconf.Roster{}, err
	}
	r := newRosters(conf.Cluster, func(string, ...any) {})
	return r.give(ctx, data, offeredFile)
}

// give leaves data in file and waits until it is the highest roster.
func (r *rosters) give(ctx context.Context, data []byte, file string) (nodeconf.Roster, error) {
	var signed nodeconf.SignedRoster
	if err := json.Unmarshal(data, &signed); err != nil {
		return nodeconf.Roster{}, fmt.Errorf("this is no roster: %w", err)
	}
	open, err := signed.Open(r.cluster.RosterKey, r.cluster.UID)
	if err != nil {
		return open, err
	}
	own := r.highest()
	if own.Serial > 0 && own.Signed.Digest() != signed.Digest() {
		newer, err := open.Newer(own.Roster)
		if err != nil {
			return open, err
		}
		if !newer {
			return open, fmt.Errorf("this machine has a newer roster: generation %d, serial %d", own.Generation, own.Serial)
		}
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return open, err
	}
	for {
		now := r.highest()
		if now.Signed.Digest() == signed.Digest() {
			return open, nil
		}
		if newer, err := now.Newer(open); err == nil && newer {
			return now.Roster, nil // came from elsewhere meanwhile
		}
		if err := sleep(ctx, offeredEvery/4); err != nil {
			os.Remove(file) // nobody shall find it later
			return open, errors.New("the agent does not keep it: is kimage-agent.service running? why not, says journalctl -u kimage-agent")
		}
	}
}

// offered takes what a person left in file, for as long as ctx lasts.
func (r *rosters) offered(ctx context.Context, file string) {
	for sleep(ctx, offeredEvery) == nil {
		signed, err := readRoster(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			r.logf("%v", err)
		} else {
			r.take(signed, "the operator")
		}
		os.Remove(file)
	}
}
