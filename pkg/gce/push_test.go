package gce

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/gce/gcetest"
)

func must(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func debian(file string) Image {
	return Image{File: file, OS: "debian-13", Kubernetes: "v1.37.2", Runtime: "containerd", Network: "flannel", Arch: "amd64", ID: "abcdef012345"}
}

func push(t *testing.T, c *Cloud, file string) Pushed {
	t.Helper()
	p, err := c.Push(t.Context(), debian(file))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPush(t *testing.T) {
	file := imageFile(t, 20)
	if err := CheckImage(file); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		setUp func(*gcetest.Server)
	}{
		{"undisturbed", func(*gcetest.Server) {}},
		{"lost bytes", func(s *gcetest.Server) { s.Drop = 300 << 10 }},
		{"lost chunks", func(s *gcetest.Server) { s.Drop = 16 << 20 }},
		{"lost answers", func(s *gcetest.Server) {
			s.Fault = func(r gcetest.Request, n int) gcetest.Fault {
				return gcetest.Fault{Lost: strings.HasSuffix(r.ID, "chunk") && n%3 == 0}
			}
		}},
		{"503", func(s *gcetest.Server) {
			s.Fault = func(r gcetest.Request, n int) gcetest.Fault {
				if strings.HasSuffix(r.ID, "chunk") && n%3 == 0 {
					return gcetest.Fault{Status: 503, Reason: "backendError", Message: "Backend Error"}
				}
				return gcetest.Fault{}
			}
		}},
		{"expired", func(s *gcetest.Server) {
			chunks := 0
			s.Answered = func(r gcetest.Request, _ int) {
				if strings.HasSuffix(r.ID, "chunk") {
					if chunks++; chunks == 2 {
						s.ExpireUploads()
					}
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := gcetest.New(t)
			tt.setUp(s)
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c := newCloud(t, s)
			if answered := s.Answered; true {
				s.Answered = func(r gcetest.Request, n int) {
					if answered != nil {
						answered(r, n)
					}
					if r.ID == "compute.images.insert" {
						for _, o := range s.All() {
							if name, ok := strings.CutPrefix(o, "gs://my-bucket/"); ok && !bytes.Equal(s.Object("my-bucket", name), content) {
								t.Error("what was uploaded is not the file")
							}
						}
					}
				}
			}
			p := push(t, c, file)
			if p.There {
				t.Error("it was there already")
			}
			image := s.Resource("global/images/" + p.Name)
			if got := text(t, image); !strings.Contains(got, `"family":"demo-debian-13"`) || !strings.Contains(got, `"architecture":"X86_64"`) || !strings.Contains(got, `{"type":"UEFI_COMPATIBLE"}`) || !strings.Contains(got, `"kimage-kubernetes":"v1-37-2"`) {
				t.Errorf("the image: %s", got)
			}
			if left := strings.Join(s.All(), " "); strings.Contains(left, ".tar.gz") {
				t.Errorf("the upload is left: %s", left)
			}
			if _, err := os.Stat(file + ".upload"); err == nil {
				t.Error("the upload's state is left")
			}
			s.Forget()
			if p := push(t, c, file); !p.There || len(changes(s)) > 0 {
				t.Errorf("a second push: %+v, %q", p, changes(s))
			}
			if link, err := c.FindImage(t.Context(), "", debian("")); err != nil || !strings.HasSuffix(link, p.Name) {
				t.Errorf("the image for templates: %s, %v", link, err)
			}
			if _, err := c.FindImage(t.Context(), "", Image{OS: "debian-12", Kubernetes: "v1.37.2", Runtime: "containerd", Network: "flannel"}); err == nil || !strings.Contains(err.Error(), "kimage gce push") {
				t.Errorf("another system's: %v", err)
			}
		})
	}
}

// TestPushCutOff: cut off after any request, push goes on, and sends no chunk again that
// has arrived.
func TestPushCutOff(t *testing.T) {
	file := imageFile(t, 20)
	whole := gcetest.New(t)
	push(t, newCloud(t, whole), file)
	total := len(whole.Requests())
	for n := 1; n <= total; n++ {
		s := gcetest.New(t)
		c := newCloud(t, s)
		cut(t, s, n, func(ctx context.Context) error { _, err := c.Push(ctx, debian(file)); return err })
		sent := 0
		for _, r := range s.Requests() {
			sent += bodyOf(r)
		}
		s.Forget()
		push(t, c, file)
		for _, r := range s.Requests() {
			sent += bodyOf(r)
		}
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if int64(sent) != fi.Size() {
			t.Errorf("cut off after request %d: %d bytes were sent of a file of %d", n, sent, fi.Size())
		}
		if left := s.All(); len(left) != 2 { // bucket and image
			t.Errorf("cut off after request %d: %q", n, left)
		}
	}
}

func bodyOf(r gcetest.Request) int {
	if strings.HasSuffix(r.ID, "chunk") {
		return len(r.Body)
	}
	return 0
}

func TestCheckImage(t *testing.T) {
	file := t.TempDir() + "/x"
	if err := os.WriteFile(file, []byte("not a tar"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := CheckImage(file); err == nil || !strings.Contains(err.Error(), "kimage build --for gce") {
		t.Error(err)
	}
}

// TestDryRun: it changes nothing, and shows no secret, inline neither.
func TestDryRun(t *testing.T) {
	for _, inline := range []bool{false, true} {
		s := gcetest.New(t)
		c := newCloud(t, s)
		var out bytes.Buffer
		c.DryRun = &out
		x := demo()
		x.Inline = inline
		up(t, c, x)
		if got := changes(s); len(got) > 0 {
			t.Errorf("a dry run made %q", got)
		}
		for _, want := range []string{"POST " + s.URL + "/compute/v1/projects/my-project/zones/europe-west1-b/instances?sourceInstanceTemplate=", "/global/firewalls\n", `"networkIP": "10.132.0.11"`} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, out.String())
			}
		}
		if strings.Contains(out.String(), secret) {
			t.Errorf("inline %v: a dry run shows a secret", inline)
		}
	}
}
