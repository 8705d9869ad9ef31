package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/gce/gcetest"
)

// gceProject is a cluster file, a baked image and a project to put them in, with
// credentials of a service account.
func gceProject(t *testing.T, topology, osName string) (dir string, s *gcetest.Server) {
	t.Helper()
	s = gcetest.New(t)
	dir = newClusterDir(t, "--topology", topology, "--os", osName)
	replaceIn(t, filepath.Join(dir, "cluster.yaml"), "spec:\n", `spec:
  platform:
    gce:
      project: my-project
      zone: europe-west1-b
      bucket: my-bucket
      sources: [203.0.113.0/24]
      serviceAccounts: {etcd: e@my-project.iam.gserviceaccount.com, master: m@my-project.iam.gserviceaccount.com, worker: w@my-project.iam.gserviceaccount.com}
  pools:
  - {name: more, size: 2, machine: {gce: {machineType: e2-standard-8, diskGiB: 100}}}
`)
	for _, set := range s.Operator() {
		key, value, _ := strings.Cut(set, "=")
		t.Setenv(key, value)
	}
	gceImage(t, dir, osName, "gce")
	return dir, s
}

// gceImage writes what kimage build --for gce would: a tar's head, and the manifest.
func gceImage(t *testing.T, dir, osName, platform string) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "disk.raw", Mode: 0o644, Size: 1 << 30, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	if err := z.Flush(); err != nil {
		t.Fatal(err)
	}
	f, err := loadCluster(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := fmt.Sprintf(`{"apiVersion": "kimage.dev/v1alpha1", "kind": "ImageManifest", "imageID": "abcdef012345", "os": %q, "for": %q, "kubernetes": %q, "runtime": "containerd", "network": "flannel", "arch": "amd64"}`,
		osName, platform, f.Cluster.Spec.Kubernetes)
	for name, data := range map[string][]byte{"image.tar.gz": b.Bytes(), "image.json": []byte(manifest)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// secretsOf are lines that nobody but a machine may see.
func secretsOf(t *testing.T, dir string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "cluster.secrets", "*.key"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(data), "\n") {
			if len(line) > 30 && !strings.HasPrefix(line, "-----") {
				out = append(out, line)
			}
		}
	}
	return out
}

func gceChanges(s *gcetest.Server) (out []string) {
	for _, r := range s.Requests() {
		if r.Method != http.MethodGet && !strings.HasSuffix(r.ID, "Operations.wait") {
			out = append(out, r.ID)
		}
	}
	return out
}

// TestGCE: push, templates, up, down, by the command itself, and nothing is left.
func TestGCE(t *testing.T) {
	for _, osName := range []string{"debian-13", "flatcar-stable"} {
		t.Run(osName, func(t *testing.T) {
			dir, s := gceProject(t, "6", osName)
			out, errOut, status := in(t, dir, "gce", "up", "--dry-run")
			if status == 0 || !strings.Contains(errOut, "kimage build --for gce, then kimage gce push IMAGE") {
				t.Errorf("up before push: status %d, %s%s", status, out, errOut)
			}
			inOK(t, dir, "gce", "push", "image.tar.gz")
			if got := inOK(t, dir, "gce", "push", "image.tar.gz"); !strings.Contains(got, "it is there already") {
				t.Errorf("a second push: %s", got)
			}
			dry := inOK(t, dir, "gce", "up", "--dry-run")
			names := strings.Fields(inOK(t, dir, "gce", "templates"))
			if len(names) != 7 {
				t.Errorf("templates: %q", names)
			}
			inOK(t, dir, "gce", "up")
			s.Forget()
			inOK(t, dir, "gce", "up")
			if got := gceChanges(s); len(got) > 0 {
				t.Errorf("a second up changed: %q", got)
			}
			inline := inOK(t, dir, "gce", "up", "--dry-run", "--inline")
			all := strings.Join(s.All(), "\n")
			for _, want := range []string{"/instances/demo-k8s-06", "/instances/demo-more-0001", "/instanceGroupManagers/demo-more", "/addresses/demo-k8s-01", "demo-master-6443-people"} {
				if !strings.Contains(all, want) {
					t.Errorf("no %s in\n%s", want, all)
				}
			}
			stub := map[string]string{"debian-13": "#cloud-boothook", "flatcar-stable": `{\"ignition\":{\"version\":\"3.3.0\",\"config\":{\"replace\":{\"source\":\"gs://my-bucket/`}[osName]
			inMetadata := ""
			for _, path := range s.All() {
				if strings.Contains(path, "instanceTemplates/") || strings.Contains(path, "/instances/") {
					data, err := json.Marshal(s.Resource(path))
					if err != nil {
						t.Fatal(err)
					}
					if !strings.Contains(string(data), stub) {
						t.Errorf("%s has not the stub %s: %s", path, stub, data)
					}
					inMetadata += string(data)
				}
			}
			for _, secret := range secretsOf(t, dir) {
				for where, text := range map[string]string{"metadata": inMetadata, "a dry run": dry, "an inline dry run": inline} {
					if strings.Contains(text, secret) {
						t.Errorf("%s has a secret", where)
					}
				}
			}
			if got := inOK(t, dir, "gce", "down", "--dry-run"); !strings.Contains(got, "DELETE "+s.URL+"/compute/v1/projects/my-project/zones/europe-west1-b/instances/demo-k8s-01") {
				t.Errorf("down --dry-run: %s", got)
			}
			inOK(t, dir, "gce", "down")
			if left := s.All(); len(left) > 0 {
				t.Errorf("down leaves %q", left)
			}
		})
	}
}

func TestGCERefusals(t *testing.T) {
	dir, s := gceProject(t, "1", "debian-13")
	file := filepath.Join(dir, "cluster.yaml")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		setUp func()
		args  []string
		want  string
	}{
		{"another platform", func() { gceImage(t, dir, "debian-13", "qemu") }, []string{"push", "image.tar.gz"}, "image.tar.gz was baked for qemu: kimage build --for gce"},
		{"another system", func() { gceImage(t, dir, "debian-12", "gce") }, []string{"push", "image.tar.gz"}, "the image has the system debian-12, and debian-13 is wanted"},
		{"another format", func() { os.WriteFile(filepath.Join(dir, "image.qcow2"), []byte("QFI"), 0o644) }, []string{"push", "image.qcow2"}, "is not a .tar.gz"},
		{"no manifest", func() { os.Remove(filepath.Join(dir, "image.json")) }, []string{"push", "image.tar.gz"}, "image.json, which kimage build wrote beside it"},
		{"the manifest", func() {}, []string{"push", "image.json"}, "image.json is not a .tar.gz"},
		{"no project", func() { replaceIn(t, file, "project: my-project", "network: default") }, []string{"templates"}, "spec.platform.gce.project is missing in the cluster file"},
		{"no account", func() { replaceIn(t, file, "master: m@my-project.iam.gserviceaccount.com, ", "") }, []string{"templates", "--image", "projects/p/global/images/i"}, "spec.platform.gce.serviceAccounts.master is missing in the cluster file"},
		{"IPv6", func() { replaceIn(t, file, "172.17.8.101", "fd00::1") }, []string{"templates", "--image", "projects/p/global/images/i"}, "IPv4"},
		{"another region", func() { replaceIn(t, file, "diskGiB: 100", "zone: us-central1-a") }, []string{"templates", "--image", "projects/p/global/images/i"}, "is in another region"},
		{"no credentials", func() { t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(dir, "gone")) }, []string{"templates"}, "gcloud auth application-default login"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(file, whole, 0o644); err != nil {
				t.Fatal(err)
			}
			gceImage(t, dir, "debian-13", "gce")
			tt.setUp()
			_, errOut, status := in(t, dir, append([]string{"gce"}, tt.args...)...)
			if status != statusCouldNotTell || !strings.Contains(errOut, tt.want) {
				t.Errorf("status %d\ngot  %s\nwant %s", status, errOut, tt.want)
			}
		})
	}
	if got := gceChanges(s); len(got) > 0 {
		t.Errorf("what is refused changed %q", slices.Compact(got))
	}
}

// TestGCEExpired: credentials that Google takes no more end a command at once.
func TestGCEExpired(t *testing.T) {
	dir, s := gceProject(t, "1", "debian-13")
	s.Fault = func(r gcetest.Request, _ int) gcetest.Fault {
		return gcetest.Fault{Status: 401, Reason: "invalid_grant", Message: "Token has been expired or revoked."}
	}
	_, errOut, status := in(t, dir, "gce", "push", "image.tar.gz")
	if status != statusCouldNotTell || !strings.Contains(errOut, "gcloud auth application-default login") || len(s.Requests()) > 1 {
		t.Errorf("status %d, %d requests: %s", status, len(s.Requests()), errOut)
	}
}
