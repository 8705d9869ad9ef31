// Package gce puts a cluster on Google Compute Engine: its image, a template per
// machine and pool, instances, managed groups, addresses and firewall rules; and takes
// them away again.
//
// It keeps no state of its own: what there is is found in the project, by labels, or,
// where a kind has none, by the same text in its description. So every command can be
// cut off anywhere and run again, and what does not say that it is this cluster's is
// never changed nor deleted.
//
// It is the only package that knows Google's libraries: credentials from
// cloud.google.com/go/auth, and of google.golang.org/api, which is generated from the
// discovery documents, the types. All calls go through one function (Cloud.do), where they
// are retried, explained and, in a dry run, printed. The clients of
// cloud.google.com/go/compute and storage would make kimage 27 MB larger than these do,
// for gRPC, xDS and protobuf descriptors that are of no use here.
package gce

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/progress"
)

// Config says whose project, and how to behave there.
type Config struct {
	cluster.GCE
	Cluster   string             // its name
	ID        string             // its UID: two clusters of one name are told apart
	Endpoint  string             // of both APIs, such as a private endpoint's; empty: Google's
	DryRun    io.Writer          // calls that change something are printed there and not made; nil: they are made
	Report    *progress.Reporter // nil: silent
	Operation time.Duration      // how long one operation may take; 0: 20 minutes
	Client    *http.Client       // that authenticates; nil: by Application Default Credentials
}

// Cloud is one cluster's place in one project.
type Cloud struct {
	Config
	http   *http.Client
	secret map[string]string // texts that a dry run must not print, and what it prints
}

const scope = "https://www.googleapis.com/auth/cloud-platform"

// New checks c. Credentials are asked for here, and used first by a call.
func New(c Config) (*Cloud, error) {
	for _, x := range []struct{ key, value, remedy string }{
		{"project", c.Project, "whose machines are they? (gcloud projects list shows yours)"},
		{"zone", c.Zone, "where do they run? (such as europe-west1-b; gcloud compute zones list)"},
		{"bucket", c.Bucket, "name a Cloud Storage bucket for images and configs; it is made if it is not there"},
	} {
		if x.value == "" {
			return nil, fmt.Errorf("spec.platform.gce.%s is missing in the cluster file: %s", x.key, x.remedy)
		}
	}
	if c.Network == "" {
		c.Network = "default"
	}
	if c.Subnetwork == "" { // networks of auto mode call theirs like themselves
		c.Subnetwork = c.Network
	}
	if c.Operation == 0 {
		c.Operation = 20 * time.Minute
	}
	cloud := &Cloud{Config: c, http: c.Client, secret: map[string]string{}}
	cloud.Endpoint = strings.TrimSuffix(c.Endpoint, "/")
	if cloud.http == nil {
		found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{scope}})
		if err != nil {
			return nil, fmt.Errorf("no credentials for Google Cloud: run gcloud auth application-default login, or name a key file by $GOOGLE_APPLICATION_CREDENTIALS: %w", err)
		}
		if cloud.http, err = httptransport.NewClient(&httptransport.Options{Credentials: found, DisableTelemetry: true}); err != nil {
			return nil, err
		}
	}
	return cloud, nil
}

// Labels are on all that is the cluster's.
func (c *Cloud) labels() map[string]string {
	return map[string]string{"kimage-cluster": c.Cluster, "kimage-cluster-id": c.ID}
}

// description stands in for labels where a kind has none.
func (c *Cloud) description() string {
	return fmt.Sprintf("made by kimage; kimage-cluster=%s kimage-cluster-id=%s;", c.Cluster, c.ID)
}

// region is that of a zone.
func region(zone string) string {
	if i := strings.LastIndexByte(zone, '-'); i > 0 {
		return zone[:i]
	}
	return zone
}
