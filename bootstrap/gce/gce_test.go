package gce

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHere(t *testing.T) {
	for product, want := range map[string]bool{"Google Compute Engine\n": true, "Standard PC (Q35 + ICH9, 2009)\n": false, "": false} {
		root := t.TempDir()
		dir := filepath.Join(root, "sys/class/dmi/id")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "product_name"), []byte(product), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := Here(root); got != want {
			t.Errorf("%q: %t", product, got)
		}
	}
	if Here(t.TempDir()) {
		t.Error("a machine without firmware tables is an instance")
	}
}

// TestAsk: the server answers as Google's does, which refuses a question without the header.
func TestAsk(t *testing.T) {
	const full = `{"attributes": {"user-data": "secret"}, "id": 1, "name": "demo-workers-x7f2", "zone": "projects/123456/zones/europe-west1-b", "networkInterfaces": [{"ip": "10.0.0.9", "mac": "42:01:0a:00:00:09"}]}`
	for _, tt := range []struct {
		name, body string
		status     int
		want       string // of the error; empty: none
	}{
		{name: "as it should be", body: full},
		{name: "not started yet", body: "busy", status: http.StatusServiceUnavailable, want: "503"},
		{name: "another server", body: "<html>", want: "reading what the metadata server says"},
		{name: "without a card", body: `{"name": "a", "zone": "z"}`, want: "does not say name, zone and address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Path != "/computeMetadata/v1/instance/" || r.URL.Query().Get("recursive") != "true" {
					http.Error(w, "missing Metadata-Flavor:Google header", http.StatusForbidden)
					return
				}
				if tt.status != 0 {
					w.WriteHeader(tt.status)
				}
				w.Write([]byte(tt.body))
			}))
			defer s.Close()
			got, err := ask(t.Context(), s.URL)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(Instance{"demo-workers-x7f2", "europe-west1-b", "10.0.0.9"}, got); d != "" {
				t.Error(d)
			}
			if got.Region() != "europe-west1" {
				t.Error(got.Region())
			}
		})
	}
}

func TestInGroup(t *testing.T) {
	for _, tt := range []struct {
		name, cluster, pool string
		want                bool
	}{
		{"demo-workers-x7f2", "demo", "workers", true},
		{"demo-workers-x7f2", "demo", "demo-workers", false},
		{"demo-workers-0123456789", "demo", "workers", false},
		{"demo-workers-x7f", "demo", "workers", false},
		{"demo-a-workers-x7f2", "demo", "workers", false},
		{"other-workers-x7f2", "demo", "workers", false},
		{"demo-workers", "demo", "workers", false},
	} {
		if got := InGroup(tt.name, tt.cluster, tt.pool); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
}
