package gobuild

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestStagingModules(t *testing.T) {
	file := filepath.Join(t.TempDir(), "go.mod")
	const text = `module k8s.io/kubernetes

require k8s.io/api v0.0.0

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/sample-controller => ./staging/src/k8s.io/sample-controller
	example.com/fork => example.com/other v1.0.0
)

replace k8s.io/client-go => ./staging/src/k8s.io/client-go
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := stagingModules(file)
	if want := []string{"k8s.io/api", "k8s.io/sample-controller", "k8s.io/client-go"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if err := os.WriteFile(file, []byte("module x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := stagingModules(file); err == nil {
		t.Errorf("a module without a staging tree gives %v", got)
	}
}

func TestModFile(t *testing.T) {
	b := Build{Module: "k8s.io/kubernetes", Version: "v1.37.2", StagingVersion: "v0.37.2",
		Replace: map[string]string{"example.com/b": "example.com/b@v1.1.0", "example.com/a": "example.com/fork@v2.0.0"}}
	got := string(b.modFile([]string{"k8s.io/api", "k8s.io/sample-controller"}, []string{"k8s.io/sample-controller"}))
	const want = `module kimage.invalid/build

go 1.24

require k8s.io/kubernetes v1.37.2
replace example.com/a => example.com/fork v2.0.0
replace example.com/b => example.com/b v1.1.0
replace k8s.io/api => k8s.io/api v0.37.2
replace k8s.io/sample-controller => ./unused/k8s.io/sample-controller
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
