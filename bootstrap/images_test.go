package bootstrap

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/run"
)

var (
	apiserver = Image{Ref: "registry.example/kube-apiserver:v1", Digest: "sha256:aa", Role: "master"}
	proxy     = Image{Ref: "registry.example/kube-proxy:v1", Digest: "sha256:bb"}
)

func TestImagesOfRoles(t *testing.T) {
	m := Manifest{Images: []Image{apiserver, proxy}}
	for _, c := range []struct {
		roles, want []string
	}{
		{[]string{"worker"}, []string{proxy.Ref}},
		{[]string{"master"}, []string{apiserver.Ref, proxy.Ref}},
		{[]string{"etcd", "master", "worker"}, []string{apiserver.Ref, proxy.Ref}},
	} {
		if got := refs(m.imagesOf(c.roles)); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v", c.roles, got)
		}
	}
}

// TestImportAll: what is missing is imported and pinned, several at once; of
// what has no archive nothing is begun; a failure names the image.
func TestImportAll(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"aa.tar", "bb.tar"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var ran []string
	both := make(chan struct{}, 2)
	do := func(ctx context.Context, c run.Cmd) error {
		mu.Lock()
		defer mu.Unlock()
		ran = append(ran, strings.Join(c.Argv[3:], " "))
		if c.Argv[4] == "import" {
			mu.Unlock()
			defer mu.Lock()
			both <- struct{}{}
			for len(both) < 2 && ctx.Err() == nil { // until the other one is being imported as well
				time.Sleep(time.Millisecond)
			}
		}
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := importAll(ctx, []Image{apiserver, proxy}, dir, do); err != nil {
		t.Fatal(err)
	}
	slices.Sort(ran)
	want := []string{"images import --no-unpack=false " + dir + "/aa.tar", "images import --no-unpack=false " + dir + "/bb.tar",
		"images label " + apiserver.Ref + " io.cri-containerd.pinned=pinned", "images label " + proxy.Ref + " io.cri-containerd.pinned=pinned"}
	if !slices.Equal(ran, want) {
		t.Errorf("ran %q", ran)
	}
	fail := func(context.Context, run.Cmd) error { return errors.New("no space left on device") }
	if err := importAll(t.Context(), []Image{proxy}, dir, fail); err == nil || !strings.Contains(err.Error(), proxy.Ref) || !strings.Contains(err.Error(), "no space") {
		t.Errorf("a failed import: %v", err)
	}
	ran = nil
	lost := Image{Ref: "registry.example/lost:v1", Digest: "sha256:cc"}
	if err := importAll(t.Context(), []Image{proxy, lost}, dir, do); err == nil || !strings.Contains(err.Error(), lost.Ref) || strings.Contains(err.Error(), proxy.Ref) || len(ran) > 0 {
		t.Errorf("without an archive: %v, ran %q", err, ran)
	}
}
