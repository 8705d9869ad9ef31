package balancer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/kimage-project/kimage/pkg/atomicfile"
)

// apiServers is the file that holds the endpoints of the Service kubernetes as
// last seen: a node that was down while its masters were replaced finds the
// new ones by it.
type apiServers struct {
	ClusterUID string   `json:"clusterUID"`
	Addresses  []string `json:"addresses"` // ADDRESS:PORT, sorted
}

// WriteAPIServers keeps the API servers last seen in the state directory. An
// unchanged list is not written, and an empty one never.
func WriteAPIServers(state, clusterUID string, addrs []string) error {
	if len(addrs) == 0 {
		return nil
	}
	want := apiServers{clusterUID, slices.Compact(slices.Sorted(slices.Values(addrs)))}
	if err := want.check(clusterUID); err != nil {
		return fmt.Errorf("writing %s: %w", APIServersFile, err)
	}
	file := filepath.Join(state, APIServersFile)
	if have, err := readAPIServers(file, clusterUID); err == nil && slices.Equal(have, want.Addresses) {
		return nil
	}
	data, err := json.Marshal(want)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(file, append(data, '\n'), 0o600)
}

// readAPIServers returns nothing when there is no file.
func readAPIServers(file, clusterUID string) ([]string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var a apiServers
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if err := a.check(clusterUID); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return a.Addresses, nil
}

func (a apiServers) check(clusterUID string) error {
	if a.ClusterUID != clusterUID {
		return fmt.Errorf("it is of cluster %s, and this machine belongs to %s", a.ClusterUID, clusterUID)
	}
	for _, s := range a.Addresses {
		if _, err := netip.ParseAddrPort(s); err != nil {
			return fmt.Errorf("%q is not an address and a port", s)
		}
	}
	return nil
}
