package kimage

import (
	"debug/elf"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kimage-project/kimage/"

// TestImportsPointOneWay: cmd -> images, ignition, bootstrap -> pkg.
func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	forbidden := map[string][]string{
		"pkg/":      {"cmd/", "images", "ignition", "bootstrap"},
		"images":    {"cmd/", "bootstrap", "ignition"},
		"bootstrap": {"cmd/", "images", "ignition"},
		"ignition":  {"cmd/", "images"},
		"cmd/kimage-agent": {"images", "ignition", "pkg/oci", "pkg/gobuild", "pkg/qcow2", "pkg/squashfs", "pkg/debs", "pkg/qemu", "pkg/lan", "pkg/local",
			"pkg/install/pack", "pkg/packed", "pkg/initrd"},
	}
	// What an image comes in when it is installed over the network.
	const compress = "github.com/klauspost/compress"
	unpacker := []string{compress, compress + "/zstd", compress + "/fse", compress + "/huff0"}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath    string
			Imports, Deps []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, i := range p.Imports {
			for _, sdk := range []string{"cloud.google.com/", "google.golang.org/api/"} {
				if strings.HasPrefix(i, sdk) && path != "pkg/gce" {
					t.Errorf("%s imports %s, which is pkg/gce's alone", path, i)
				}
			}
		}
		for from, not := range forbidden {
			if !strings.HasPrefix(path, from) {
				continue
			}
			seen++
			imports := p.Imports
			if from == "cmd/kimage-agent" {
				imports = p.Deps
			}
			for _, i := range imports {
				for _, n := range not {
					if strings.HasPrefix(strings.TrimPrefix(i, module), n) && strings.HasPrefix(i, module) {
						t.Errorf("%s imports %s", path, strings.TrimPrefix(i, module))
					}
				}
				// SDKs of clouds and clusters, and code for images: of no use on a node.
				for _, sdk := range []string{"cloud.google.com/", "github.com/aws/", "github.com/Azure/", "k8s.io/", "google.golang.org/grpc", "go.etcd.io/etcd/",
					"github.com/google/go-containerregistry", "github.com/containerd/", "github.com/opencontainers/", "github.com/diskfs/go-diskfs/disk", "github.com/diskfs/go-diskfs/filesystem", "github.com/coreos/", "github.com/klauspost/"} {
					if from == "cmd/kimage-agent" && strings.HasPrefix(i, sdk) && !slices.ContainsFunc(unpacker, func(u string) bool { return i == u || strings.HasPrefix(i, u+"/internal/") }) {
						t.Errorf("the agent depends on %s", i)
					}
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// TestAgentIsSmallAndStatic: it is on every node, and as a balancer in every
// node's memory.
func TestAgentIsSmallAndStatic(t *testing.T) {
	const limitBytes = 15 << 20
	file := filepath.Join(t.TempDir(), "kimage-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", file, "./cmd/kimage-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", fi.Size())
	if fi.Size() > limitBytes {
		t.Errorf("the agent has %d bytes, more than %d", fi.Size(), limitBytes)
	}
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Errorf("it is linked against %v, %v", libs, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("it needs a dynamic loader")
		}
	}
}
