package kimage

import (
	"encoding/json"
	"io"
	"os/exec"
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
		"pkg/":             {"cmd/", "images", "ignition", "bootstrap"},
		"images":           {"cmd/", "bootstrap", "ignition"},
		"bootstrap":        {"cmd/", "images", "ignition"},
		"ignition":         {"cmd/", "images"},
		"cmd/kimage-agent": {"images", "ignition", "pkg/oci", "pkg/gobuild", "pkg/qcow2", "pkg/squashfs", "pkg/debs", "pkg/qemu"},
	}
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
				for _, sdk := range []string{"cloud.google.com/", "github.com/aws/", "github.com/Azure/"} {
					if from == "cmd/kimage-agent" && strings.HasPrefix(i, sdk) {
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
