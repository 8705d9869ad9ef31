package ignition

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/pkg/cluster"
)

// BenchmarkAll makes the configs of 1,000 machines.
func BenchmarkAll(b *testing.B) {
	var text strings.Builder
	text.WriteString("apiVersion: kimage.dev/v1alpha1\nkind: Cluster\nmetadata: {name: big}\nspec:\n  os: OS\n  network: {pods: [10.128.0.0/10], services: [10.96.0.0/16]}\n" +
		"  machine: {ssh: {authorizedKeys: [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVLc8BFNHkLTYlm1xFCIfgnxKPmJuvT0o3vPZzgYw3K x\"]}}\n  nodes:\n")
	for i := range 1000 {
		roles := "worker"
		if i < 3 {
			roles = "etcd, master"
		}
		fmt.Fprintf(&text, "  - {name: n%d, roles: [%s], address: 172.20.%d.%d}\n", i, roles, i/250, i%250+1)
	}
	for name, o := range testOSes {
		b.Run(name, func(b *testing.B) {
			f, err := cluster.Parse([]byte(strings.Replace(text.String(), "OS", name, 1)), filepath.Join(b.TempDir(), "cluster.yaml"), testSupport)
			if err != nil {
				b.Fatal(err)
			}
			s, err := state.Open(state.Config{File: f})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Ensure(); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				g, err := New(Config{File: f, State: s, OS: o})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := g.All(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
