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
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	forbidden := map[string][]string{
		"pkg/":      {"cmd/", "images", "ignition", "bootstrap"},
		"images":    {"cmd/", "bootstrap", "ignition"},
		"bootstrap": {"cmd/", "images", "ignition"},
		"ignition":  {"cmd/", "images"},
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
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
			for _, i := range p.Imports {
				for _, n := range not {
					if strings.HasPrefix(strings.TrimPrefix(i, module), n) && strings.HasPrefix(i, module) {
						t.Errorf("%s imports %s", path, strings.TrimPrefix(i, module))
					}
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// ofAgent is all that the agent may depend on besides the standard library: no SDK of a
// cloud or of Kubernetes, and of the code for images what writes one to a disk.
// A name that ends in / is that of all packages below.
var ofAgent = []string{
	module + "bootstrap", module + "bootstrap/", module + "cmd/kimage-agent",
	module + "pkg/atomicfile", module + "pkg/blkpg", module + "pkg/ext4", module + "pkg/install", module + "pkg/kubeapi", module + "pkg/parttable",
	module + "pkg/pki", module + "pkg/run", module + "pkg/sparse", module + "pkg/tree",

	"github.com/spf13/cobra", "github.com/spf13/pflag", "go.yaml.in/yaml/v3", "golang.org/x/mod/semver", "golang.org/x/sync/errgroup", "golang.org/x/sys/unix",

	"github.com/inetaf/tcpproxy",            // balancers
	"go.etcd.io/bbolt", "go.etcd.io/bbolt/", // etcd's data, made offline
	"github.com/diskfs/go-diskfs/backend", // partition tables
	"github.com/diskfs/go-diskfs/partition/",
	"github.com/google/uuid",
	"github.com/klauspost/compress", // what an image comes in, like the next ones
	"github.com/klauspost/compress/fse",
	"github.com/klauspost/compress/huff0",
	"github.com/klauspost/compress/internal/",
	"github.com/klauspost/compress/zstd",
	"github.com/klauspost/compress/zstd/internal/",
}

func TestAgentDependsOnLittle(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/kimage-agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, path := range strings.Fields(string(out)) {
		i := slices.IndexFunc(ofAgent, func(of string) bool { return path == of || strings.HasSuffix(of, "/") && strings.HasPrefix(path, of) })
		if i < 0 {
			t.Errorf("the agent depends on %s", path)
			continue
		}
		used[ofAgent[i]] = true
	}
	for _, of := range ofAgent {
		if !used[of] {
			t.Errorf("the agent does not depend on %s any more: take it off the list", of)
		}
	}
}

// TestAgentIsSmallAndStatic: it is on every node, and as a balancer in every
// node's memory.
func TestAgentIsSmallAndStatic(t *testing.T) {
	const limitBytes = 15 << 20
	for _, arch := range []string{"amd64", "arm64"} {
		file := filepath.Join(t.TempDir(), "kimage-agent")
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", file, "./cmd/kimage-agent")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", arch, fi.Size())
		if fi.Size() > limitBytes {
			t.Errorf("the agent for %s has %d bytes, more than %d", arch, fi.Size(), limitBytes)
		}
		f, err := elf.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
			t.Errorf("%s: it is linked against %v, %v", arch, libs, err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s: it needs a dynamic loader", arch)
			}
		}
	}
}
