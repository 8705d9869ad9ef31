package gce

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ign "github.com/coreos/ignition/v2/config/v3_3"
)

func TestIgnitionStub(t *testing.T) {
	config := []byte(`{"ignition":{"version":"3.3.0"}}`)
	data, err := UserData(Ignition, "my-bucket", "kimage/id/master/m1-0123", config)
	if err != nil {
		t.Fatal(err)
	}
	c, r, err := ign.Parse(data)
	if err != nil || len(r.Entries) > 0 {
		t.Fatalf("Ignition's own parser: %v, %s", err, r)
	}
	if got, want := *c.Ignition.Config.Replace.Source, "gs://my-bucket/kimage/id/master/m1-0123"; got != want {
		t.Errorf("source %s, not %s", got, want)
	}
	hash := sha512.Sum512(config)
	if got, want := *c.Ignition.Config.Replace.Verification.Hash, "sha512-"+hex.EncodeToString(hash[:]); got != want {
		t.Errorf("hash %s, not %s", got, want)
	}
}

// TestCloudInitStub runs the script with the hosts and the file changed to the test's.
func TestCloudInitStub(t *testing.T) {
	config := "#cloud-config\nhostname: m1\n"
	served, asked := []string{"", "#cloud-config\nhostname: evil\n", config}, 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/computeMetadata/v1/instance/service-accounts/default/token":
			if r.Header.Get("Metadata-Flavor") != "Google" {
				http.Error(w, "no flavour", http.StatusForbidden)
				return
			}
			w.Write([]byte(`{"access_token":"t0ken","expires_in":3599,"token_type":"Bearer"}`))
		case "/my-bucket/kimage/id/master/m1-0123":
			if r.Header.Get("Authorization") != "Bearer t0ken" {
				http.Error(w, "who are you", http.StatusForbidden)
				return
			}
			content := served[min(asked, len(served)-1)]
			if asked++; content == "" {
				http.Error(w, "not yet", http.StatusServiceUnavailable)
				return
			}
			w.Write([]byte(content))
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	data, err := UserData(CloudInit, "my-bucket", "kimage/id/master/m1-0123", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	rest, ok := strings.CutPrefix(string(data), "#cloud-boothook\n#!/usr/bin/python3\n")
	if !ok {
		t.Fatalf("no boothook: %.60s", data)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "99-kimage-config.cfg")
	script := strings.NewReplacer("http://169.254.169.254", s.URL, "https://storage.googleapis.com", s.URL, "/etc/cloud/cloud.cfg.d/99-kimage-config.cfg", file, "/dev/console", filepath.Join(dir, "console")).Replace(rest)
	run := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "python3", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	// Unreachable at first, then another's content, then the config.
	if out := run(); !strings.Contains(out, "503") || !strings.Contains(out, "another digest") {
		t.Errorf("it said %q", out)
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != config {
		t.Errorf("got %q, %v", got, err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", fi.Mode(), err)
	}
	// At the next boot nothing is asked for.
	before := asked
	if run(); asked != before {
		t.Error("it was fetched again")
	}
}
