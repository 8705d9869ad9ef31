package gce

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/gce/gcetest"
)

const testID = "0a1b2c3d-1111-4222-8333-444455556666"

func newCloud(t *testing.T, s *gcetest.Server) *Cloud {
	t.Helper()
	c, err := New(Config{GCE: cluster.GCE{Project: s.Project, Zone: "europe-west1-b", Bucket: "my-bucket", Sources: []string{"203.0.113.0/24"},
		ServiceAccounts: cluster.ServiceAccounts{Etcd: "e@my-project.iam.gserviceaccount.com", Master: "m@my-project.iam.gserviceaccount.com", Worker: "w@my-project.iam.gserviceaccount.com"}},
		Cluster: "demo", ID: testID, Endpoint: s.URL, Client: s.Client(), Operation: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const secret = "a secret of the cluster"

// demo is a master, an etcd member and a pool of two.
func demo() Cluster {
	machine := func(name, address string, roles ...string) Machine {
		t := cluster.Target{Name: name, Roles: roles}
		if address != "" {
			t.Addresses = []string{address}
		}
		return Machine{Target: t, Config: []byte("#cloud-config\n# " + secret + " for " + name + "\n"), Boot: "boot of " + name}
	}
	pool := machine("workers", "", "worker")
	pool.Pool, pool.Size = true, 2
	return Cluster{Image: "projects/my-project/global/images/some", FirstBoot: CloudInit, Machines: []Machine{machine("m1", "10.132.0.11", "etcd", "master"), machine("e2", "10.132.0.12", "etcd"), pool},
		Ports: []cluster.Port{{To: "etcd", From: "etcd, master", Protocol: "tcp", Port: "2379"}, {To: "master", From: "all, people", Protocol: "tcp", Port: "7443"}, {To: "worker", From: "people", Protocol: "tcp, udp", Port: "30000-32767"}}}
}

// changes are the requests that were to change something.
func changes(s *gcetest.Server) (out []string) {
	for _, r := range s.Requests() {
		if r.Method != http.MethodGet && !strings.HasSuffix(r.ID, "Operations.wait") {
			out = append(out, r.ID+" "+r.Path)
		}
	}
	return out
}

func up(t *testing.T, c *Cloud, x Cluster) []string {
	t.Helper()
	notes, err := c.Up(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	return notes
}

func TestUpDown(t *testing.T) {
	s := gcetest.New(t)
	c := newCloud(t, s)
	s.Polls = 1
	if notes := up(t, c, demo()); len(notes) > 0 {
		t.Errorf("notes: %q", notes)
	}
	s.Polls = 0
	all := strings.Join(s.All(), "\n")
	for _, want := range []string{"zones/europe-west1-b/instances/demo-m1", "zones/europe-west1-b/instances/demo-e2", "zones/europe-west1-b/instances/demo-workers-0001", "zones/europe-west1-b/instanceGroupManagers/demo-workers",
		"global/firewalls/demo-master-7443-people", "global/firewalls/demo-etcd-2379-nodes", "regions/europe-west1/addresses/demo-m1", "gs://my-bucket/kimage/" + testID + "/master/m1-", "gs://my-bucket/kimage/" + testID + "/worker/workers-"} {
		if !strings.Contains(all, want) {
			t.Errorf("there is no %s in\n%s", want, all)
		}
	}
	m1 := s.Resource("zones/europe-west1-b/instances/demo-m1")
	if got := text(t, m1["networkInterfaces"]); !strings.Contains(got, `"networkIP":"10.132.0.11"`) || !strings.Contains(got, "regions/europe-west1/subnetworks/default") {
		t.Errorf("m1 has not its address: %s", got)
	}
	if got := text(t, m1["serviceAccounts"]); !strings.Contains(got, "m@my-project") {
		t.Errorf("m1 acts as another than masters: %s", got)
	}
	for _, r := range s.Requests() {
		if strings.HasPrefix(r.ID, "compute.") && bytes.Contains(r.Body, []byte(secret)) {
			t.Errorf("%s tells Compute Engine a secret", r.ID)
		}
	}
	policy := s.Policy("my-bucket")
	if want := `resource.name.startsWith(\"projects/_/buckets/my-bucket/objects/kimage/` + testID + `/master/\")`; strings.Count(policy, want) != 1 {
		t.Errorf("the policy does not have %s once: %s", want, policy)
	}
	s.Forget()
	up(t, c, demo())
	if got := changes(s); len(got) > 0 {
		t.Errorf("a second up changed: %q", got)
	}
	if err := c.Down(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if left := s.All(); len(left) > 0 {
		t.Errorf("down leaves %q", left)
	}
}

// TestFollows: what the cluster file has by now is made, what runs is told of.
func TestFollows(t *testing.T) {
	s := gcetest.New(t)
	c := newCloud(t, s)
	up(t, c, demo())
	x := demo()
	x.Machines[0].Boot, x.Machines[0].Config = "another", []byte("#cloud-config\n# other\n")
	x.Machines[2].Size = 3
	x.Ports = x.Ports[:2]
	x.Machines = append(x.Machines[:1], x.Machines[2:]...) // without e2
	notes := strings.Join(up(t, c, x), "\n")
	for _, want := range []string{"m1 runs as an older cluster file", "demo-e2 is no longer in the cluster file, and runs until kimage gce down e2"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no %q in %q", want, notes)
		}
	}
	all := strings.Join(s.All(), "\n")
	if !strings.Contains(all, "instances/demo-workers-0002") || strings.Contains(all, "30000") {
		t.Errorf("pool or firewall do not follow:\n%s", all)
	}
	if err := c.Drop(t.Context(), []string{"m1", "e2"}); err != nil {
		t.Fatal(err)
	}
	if notes := up(t, c, x); len(notes) > 0 {
		t.Errorf("notes after down of both: %q", notes)
	}
	all = strings.Join(s.All(), "\n")
	if strings.Count(all, "instanceTemplates/demo-m1") != 1 || strings.Contains(all, "e2-") || strings.Count(all, "/master/m1-") != 1 {
		t.Errorf("old templates or configs are left:\n%s", all)
	}
	if err := c.Drop(t.Context(), []string{"m7"}); err == nil || !strings.Contains(err.Error(), "did you mean m1") {
		t.Errorf("down of an unknown machine: %v", err)
	}
}

// TestCutOff: cut off after any request, the same command goes on, and ends with the
// same; and so does down.
func TestCutOff(t *testing.T) {
	whole := gcetest.New(t)
	up(t, newCloud(t, whole), demo())
	want, total := whole.All(), len(whole.Requests())
	for n := 1; n <= total; n++ {
		s := gcetest.New(t)
		c := newCloud(t, s)
		cut(t, s, n, func(ctx context.Context) error { _, err := c.Up(ctx, demo()); return err })
		up(t, c, demo())
		if diff := cmp.Diff(want, s.All()); diff != "" {
			t.Errorf("up, cut off after request %d (-whole +after):\n%s", n, diff)
		}
		cut(t, s, n, func(ctx context.Context) error { return c.Down(ctx, false) })
		if err := c.Down(t.Context(), false); err != nil {
			t.Errorf("down, cut off after request %d: %v", n, err)
		}
		if left := s.All(); len(left) > 0 {
			t.Errorf("down, cut off after request %d, leaves %q", n, left)
		}
	}
}

// cut runs do until n requests are carried out; the answer to the last is lost.
func cut(t *testing.T, s *gcetest.Server, n int, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.Forget()
	s.Answered = func(_ gcetest.Request, at int) {
		if at == n {
			cancel()
		}
	}
	if err := do(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cut off after request %d: %v", n, err)
	}
	s.Answered = nil
}

// TestAgain: what may succeed later is tried again.
func TestAgain(t *testing.T) {
	for _, f := range []struct {
		name  string
		fault gcetest.Fault
	}{
		{"429", gcetest.Fault{Status: 429, Reason: "rateLimitExceeded", Message: "Rate Limit Exceeded", After: "0"}},
		{"403 for 429", gcetest.Fault{Status: 403, Reason: "rateLimitExceeded", Message: "Rate Limit Exceeded"}},
		{"503", gcetest.Fault{Status: 503, Reason: "backendError", Message: "Backend Error"}},
		{"lost answers", gcetest.Fault{Lost: true}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s := gcetest.New(t)
			s.Fault = func(_ gcetest.Request, n int) gcetest.Fault {
				if n%3 == 0 {
					return f.fault
				}
				return gcetest.Fault{}
			}
			c := newCloud(t, s)
			up(t, c, demo())
			// A call that is made again has the ID of the first, by which Google knows it.
			ids := map[string]string{}
			for _, r := range s.Requests() {
				if strings.HasSuffix(r.ID, ".insert") && strings.HasPrefix(r.ID, "compute.") {
					id, what := r.Query.Get("requestId"), r.Path+string(r.Body)
					if id == "" || ids[what] != "" && ids[what] != id {
						t.Errorf("%s: request ID %q, before %q", r.ID, id, ids[what])
					}
					ids[what] = id
				}
			}
			if got := strings.Count(strings.Join(s.All(), "\n"), "/instances/"); got != 4 {
				t.Errorf("%d instances", got)
			}
			if err := c.Down(t.Context(), false); err != nil || len(s.All()) > 0 {
				t.Errorf("%v, left %q", err, s.All())
			}
		})
	}
}

func TestErrors(t *testing.T) {
	on := func(id string, f gcetest.Fault) func(*gcetest.Server) {
		return func(s *gcetest.Server) {
			s.Fault = func(r gcetest.Request, _ int) gcetest.Fault {
				if r.ID == id {
					return f
				}
				return gcetest.Fault{}
			}
		}
	}
	for _, tt := range []struct {
		name  string
		setUp func(*gcetest.Server)
		want  string
	}{
		{"expired", on("compute.instances.insert", gcetest.Fault{Status: 401, Reason: "authError", Message: "Invalid Credentials"}), "expired or revoked): run gcloud auth application-default login"},
		{"permission", on("compute.instances.insert", gcetest.Fault{Status: 403, Reason: "forbidden", Message: "Required 'compute.instances.create' permission for 'projects/my-project/zones/europe-west1-b/instances/demo-m1'"}), "lack the permission compute.instances.create"},
		{"storage's permission", on("storage.objects.insert", gcetest.Fault{Status: 403, Reason: "forbidden", Message: "a@b.c does not have storage.objects.create access to the Google Cloud Storage object."}), "lack the permission storage.objects.create: have the owner of project my-project grant a role that has it (roles/storage.admin)"},
		{"actAs", on("compute.instances.insert", gcetest.Fault{Status: 403, Reason: "forbidden", Message: "The user does not have access to service account 'm@x'. Permission iam.serviceAccounts.actAs"}), "roles/iam.serviceAccountUser"},
		{"API off", on("compute.firewalls.insert", gcetest.Fault{Status: 403, Reason: "accessNotConfigured", Message: "Compute Engine API has not been used in project 1 before or it is disabled."}), "gcloud services enable compute.googleapis.com --project my-project"},
		{"quota", on("compute.instances.insert", gcetest.Fault{Status: 403, Reason: "quotaExceeded", Message: "Quota 'CPUS' exceeded. Limit: 8.0 in region europe-west1."}), "the quota CPUS is exhausted"},
		{"quota of an operation", func(s *gcetest.Server) {
			s.FailOperation = map[string][2]string{"instances.insert": {"QUOTA_EXCEEDED", "Quota 'SSD_TOTAL_GB' exceeded. Limit: 100"}}
		}, "making instances/demo-m1: the quota SSD_TOTAL_GB is exhausted"},
		{"no capacity", func(s *gcetest.Server) {
			s.FailOperation = map[string][2]string{"instances.insert": {"ZONE_RESOURCE_POOL_EXHAUSTED", "The zone does not have enough resources"}}
		}, "take another zone (machine.gce.zone)"},
		{"bucket of others", on("storage.buckets.get", gcetest.Fault{Status: 403, Reason: "forbidden", Message: "no"}), "spec.platform.gce.bucket: my-bucket belongs to somebody else"},
		{"account that is not there", on("storage.buckets.setIamPolicy", gcetest.Fault{Status: 400, Reason: "invalid", Message: "Service account does not exist."}), "gcloud iam service-accounts create"},
		{"name taken", func(s *gcetest.Server) {
			s.Put("zones/europe-west1-b/instances/demo-e2", map[string]any{"labels": map[string]any{"kimage-cluster": "demo", "kimage-cluster-id": "another"}})
		}, "instances/demo-e2 exists in project my-project and is not this cluster's"},
		{"address in use", func(s *gcetest.Server) {
			s.Put("zones/europe-west1-b/instances/x", map[string]any{"networkInterfaces": []any{map[string]any{"networkIP": "10.132.0.12"}}})
		}, "IP 10.132.0.12 is in use"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := gcetest.New(t)
			tt.setUp(s)
			_, err := newCloud(t, s).Up(t.Context(), demo())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestOperationThatNeverEnds(t *testing.T) {
	s := gcetest.New(t)
	s.Polls = -1
	c := newCloud(t, s)
	c.Operation = 300 * time.Millisecond
	_, err := c.Up(t.Context(), demo())
	if err == nil || !strings.Contains(err.Error(), "has not ended after 300ms; Google goes on with it: run this again") {
		t.Errorf("%v", err)
	}
	s.Polls = 0
	up(t, c, demo())
}

// TestOthers: what is not this cluster's survives, however it is called.
func TestOthers(t *testing.T) {
	s := gcetest.New(t)
	s.PutBucket("my-bucket", map[string][]byte{"kimage/another/master/m1": []byte("x"), "photo.jpg": []byte("x")})
	s.Put("zones/europe-west1-b/instances/demo-m9", map[string]any{"labels": map[string]any{"kimage-cluster": "demo"}})
	s.Put("zones/europe-west1-c/instances/demo-workers-9999", map[string]any{"labels": map[string]any{"kimage-cluster": "demo", "kimage-cluster-id": "another"}})
	s.Put("global/firewalls/demo-master-22", map[string]any{"description": "made by kimage; kimage-cluster=demo kimage-cluster-id=another;"})
	s.Put("global/firewalls/demo-quoted", map[string]any{"description": "not like: made by kimage; kimage-cluster=demo kimage-cluster-id=" + testID + ";"})
	before, policy := s.All(), s.Policy("my-bucket")
	c := newCloud(t, s)
	up(t, c, demo())
	if err := c.Down(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, s.All()); diff != "" {
		t.Errorf("others' (-before +after):\n%s", diff)
	}
	if after := s.Policy("my-bucket"); after != policy {
		t.Errorf("the bucket's policy was %s, is %s", policy, after)
	}
}

// imageFile is what Compute Engine's format begins like; its content is random.
func imageFile(t *testing.T, mib int) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.tar.gz")
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "disk.raw", Mode: 0o644, Size: gib, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	z.Flush()
	content := make([]byte, mib<<20)
	rand.NewChaCha8([32]byte{}).Read(content)
	b.Write(content)
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func text(t *testing.T, v any) string {
	t.Helper()
	return strings.ReplaceAll(strings.ReplaceAll(fmt.Sprintf("%s", must(t, v)), " ", ""), "\n", "")
}

// TestLongNames: Google allows a group's machines 58 letters, five fewer than the group
// itself, for what it appends (the text at baseInstanceName in its document).
func TestLongNames(t *testing.T) {
	s := gcetest.New(t)
	c := newCloud(t, s)
	c.Cluster = strings.Repeat("c", 30)
	x := demo()
	x.Machines[2].Name = strings.Repeat("p", 31)
	if _, err := c.Up(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	group := s.Resource("zones/europe-west1-b/instanceGroupManagers/" + name(c.Cluster, x.Machines[2].Name))
	if base, _ := group["baseInstanceName"].(string); base == "" || len(base) > 58 {
		t.Errorf("machines of the group are called %q, %d letters", base, len(base))
	}
}
