// Package gce is what a machine on Google Compute Engine learns from its metadata server,
// and how that is closed to pods. It knows none of Google's libraries: the agent has to stay
// small, and this is three questions over HTTP.
package gce

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// product is what the firmware of an instance says (DMI product_name); cloud-init tells
// instances by it too.
const product = "Google Compute Engine"

// Here says whether this machine is an instance. root is where its files begin (empty: /).
func Here(root string) bool {
	data, err := os.ReadFile(filepath.Join("/", root, "/sys/class/dmi/id/product_name"))
	return err == nil && strings.TrimSpace(string(data)) == product
}

// Instance is what the metadata server says of an instance.
type Instance struct {
	Name    string // such as demo-workers-x7f2
	Zone    string // such as europe-west1-b
	Address string // of its first card
}

// Region is that of the zone.
func (i Instance) Region() string {
	if n := strings.LastIndexByte(i.Zone, '-'); n > 0 {
		return i.Zone[:n]
	}
	return i.Zone
}

// server is the metadata server's address: a name would need DNS, which may come later.
const server = "169.254.169.254"

const askTimeout = 5 * time.Second

// Ask asks the metadata server who this machine is.
func Ask(ctx context.Context) (Instance, error) { return ask(ctx, "http://"+server) }

func ask(ctx context.Context, server string) (Instance, error) {
	var i Instance
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/computeMetadata/v1/instance/?recursive=true", nil)
	if err != nil {
		return i, err
	}
	// Without it nothing is said, so that a page that is opened somewhere cannot ask.
	request.Header.Set("Metadata-Flavor", "Google")
	direct := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // never by a proxy
	answer, err := direct.Do(request)
	if err != nil {
		return i, fmt.Errorf("asking the metadata server who this machine is: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return i, fmt.Errorf("asking the metadata server who this machine is: it answers %s", answer.Status)
	}
	// What else is there, as user data, is not kept.
	var said struct {
		Name              string `json:"name"`
		Zone              string `json:"zone"` // projects/NUMBER/zones/ZONE
		NetworkInterfaces []struct {
			IP string `json:"ip"`
		} `json:"networkInterfaces"`
	}
	const most = 1 << 20
	if err := json.NewDecoder(io.LimitReader(answer.Body, most)).Decode(&said); err != nil {
		return i, fmt.Errorf("reading what the metadata server says: %w", err)
	}
	if said.Name == "" || said.Zone == "" || len(said.NetworkInterfaces) == 0 || said.NetworkInterfaces[0].IP == "" {
		return i, fmt.Errorf("the metadata server at %s does not say name, zone and address of this instance", server)
	}
	return Instance{said.Name, path.Base(said.Zone), said.NetworkInterfaces[0].IP}, nil
}

var groupSuffix = regexp.MustCompile(`^-[0-9a-z]{4}$`)

// InGroup says whether an instance's name is one that the managed group of a pool gives:
// CLUSTER-POOL-xxxx.
func InGroup(name, cluster, pool string) bool {
	group := cluster + "-" + pool
	return strings.HasPrefix(name, group) && groupSuffix.MatchString(name[len(group):])
}
