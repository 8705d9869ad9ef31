package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/gce"
)

// poolHashLen is how many hex digits of a machine's identity are in the name of
// a pool's node: with 10, two machines among a thousand share one once in two
// million pools.
const poolHashLen = 10

// maxNameLen is that of a label, which a Node's name becomes.
const maxNameLen = 63

// identity is what tells one machine from every other and stays when it is
// imaged again.
type identity struct {
	uuid, serial string
	macs         []string // of the machine's own cards, sorted
}

// PoolName is the name of this machine as a node of pool: POOL-HASH. root is
// where its files begin (empty: /).
func PoolName(pool, root string) (string, error) {
	return poolName(pool, readIdentity(root))
}

// PoolNameOf is the PoolName that a machine gives itself which tells this of itself. Where
// cards alone tell machines apart, mac has to be that of the first.
func PoolNameOf(pool, uuid, serial, mac string) (string, error) {
	return poolName(pool, identity{uuid: uuid, serial: serial, macs: []string{mac}})
}

func poolName(pool string, id identity) (string, error) {
	var from string
	switch {
	case usable(id.uuid):
		from = "uuid " + strings.ToLower(id.uuid)
	case usable(id.serial):
		from = "serial " + id.serial
	case len(id.macs) > 0:
		from = "mac " + id.macs[0]
	default:
		return "", errors.New("the machine has no SMBIOS UUID, no serial number and no network card: list it under spec.nodes with a name")
	}
	sum := sha256.Sum256([]byte("kimage.dev machine v1\n" + from))
	if n := maxNameLen - 1 - poolHashLen; len(pool) > n {
		return "", errors.New("the pool's name is too long: use at most 52 letters")
	}
	return pool + "-" + hex.EncodeToString(sum[:])[:poolHashLen], nil
}

var poolSuffix = regexp.MustCompile(`^-[0-9a-f]{10}$`)

// inPool says whether a name is one that PoolName makes for pool, or one of an instance of
// the cluster's pool on Compute Engine.
func inPool(name, cluster, pool string) bool {
	return strings.HasPrefix(name, pool) && poolSuffix.MatchString(name[len(pool):]) || gce.InGroup(name, cluster, pool)
}

// placeholders are what makers leave in SMBIOS instead of a number of the machine.
var placeholders = []string{"", "0", "none", "not settable", "not present", "not specified", "not available", "n/a", "default string", "to be filled by o.e.m.",
	"system serial number", "123456789", "0123456789", "03000200-0400-0500-0006-000700080009"}

func usable(s string) bool {
	s = strings.ToLower(strings.TrimSpace(s))
	if slices.Contains(placeholders, s) {
		return false
	}
	// All zeros, all f: no number was set.
	return strings.Trim(s, "0- ") != "" && strings.Trim(s, "f- ") != ""
}

func readIdentity(root string) identity {
	read := func(name string) string {
		data, _ := os.ReadFile(filepath.Join("/", root, "/sys/class/dmi/id", name))
		return strings.TrimSpace(string(data))
	}
	id := identity{uuid: read("product_uuid"), serial: read("product_serial")}
	// A card of the machine has a device below it; bridges and pods' ends have none.
	cards, _ := filepath.Glob(filepath.Join("/", root, "/sys/class/net/*/device"))
	for _, c := range cards {
		data, _ := os.ReadFile(filepath.Join(filepath.Dir(c), "address"))
		if mac, err := net.ParseMAC(strings.TrimSpace(string(data))); err == nil && len(mac) == 6 && strings.Trim(mac.String(), "0:") != "" {
			id.macs = append(id.macs, mac.String())
		}
	}
	slices.Sort(id.macs)
	return id
}
