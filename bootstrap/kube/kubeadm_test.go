package kube

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/need"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// single is a cluster of one machine with every role.
func single() nodeconf.Config {
	return nodeconf.Config{
		APIVersion: nodeconf.APIVersion, Kind: nodeconf.Kind,
		Cluster: nodeconf.Cluster{Name: "demo", UID: "uid-1"},
		Node: nodeconf.Node{Name: "k8s-01", Roles: []string{"etcd", "master", "worker"}, Addresses: []string{"172.17.8.101"},
			Labels: map[string]string{"example.com/rack": "a", "disk": "ssd"}},
		Image: nodeconf.Image{OS: "debian-13", Kubernetes: "v1.37.2", Runtime: "containerd", Plugin: "flannel"},
		Network: nodeconf.Network{Pods: []string{"10.244.0.0/16"}, Services: []string{"10.96.0.0/12"}, Nodes: []string{"172.17.8.0/24"},
			DNSDomain: "cluster.local", DNS: []string{"10.96.0.10"}},
	}
}

func singleRoster() nodeconf.Roster {
	return nodeconf.Roster{Peers: nodeconf.Peers{Nodes: []nodeconf.Peer{{Name: "k8s-01", Roles: []string{"etcd", "master", "worker"}, Addresses: []string{"172.17.8.101"},
		Labels: map[string]string{"node-role.kubernetes.io/worker": ""}}}}}
}

// dual is the second of three masters of a cluster with both families, which
// do no other work, and with settings of the user's own.
func dual() nodeconf.Config {
	c := single()
	c.Node = nodeconf.Node{Name: "m2", Roles: []string{"master"}, Addresses: []string{"fd00:17:8::2", "172.17.8.2"},
		Taints: []nodeconf.Taint{{Key: "example.com/gpu", Value: "no", Effect: "NoExecute"}}}
	c.Network = nodeconf.Network{Pods: []string{"fd00:10:244::/48", "10.244.0.0/16"}, Services: []string{"fd00:10:96::/112", "10.96.0.0/12"},
		DNSDomain: "k8s.example", DNS: []string{"fd00:10:96::a", "10.96.0.10"}}
	c.API = nodeconf.API{Endpoint: "api.example.com:443", CertSANs: []string{"10.9.9.9", "m1"}}
	c.Kubeadm = raw(`{"apiServer":{"extraArgs":[{"name":"oidc-issuer-url","value":"https://id.example.com"}],
		"extraVolumes":[{"name":"audit","hostPath":"/var/log/audit","mountPath":"/var/log/audit"}],"certSANs":["ignored.example"]},
		"featureGates":{"RootlessControlPlane":false},"kubernetesVersion":"v1.0.0","scheduler":{"extraArgs":[{"name":"v","value":"4"}]}}`)
	c.Kubelet = raw(`{"maxPods":250,"cgroupDriver":"cgroupfs","resolvConf":"/etc/resolv.pods"}`)
	return c
}

// dualRoster lists the cluster of dual, and masters.
func dualRoster(masters ...nodeconf.Master) nodeconf.Roster {
	return nodeconf.Roster{Masters: masters, Peers: nodeconf.Peers{
		Nodes: []nodeconf.Peer{
			{Name: "m1", Roles: []string{"master"}, Addresses: []string{"fd00:17:8::1", "172.17.8.1"}},
			{Name: "m2", Roles: []string{"master"}, Addresses: []string{"fd00:17:8::2", "172.17.8.2"}},
			{Name: "m3", Roles: []string{"master"}, Addresses: []string{"fd00:17:8::3", "172.17.8.3"}},
			{Name: "w1", Roles: []string{"worker"}}},
		Pools: []nodeconf.Peer{{Name: "workers", Roles: []string{"worker"}, Labels: map[string]string{"node-role.kubernetes.io/worker": ""}}},
	}}
}

// pooled is a machine of a pool.
func pooled() nodeconf.Config {
	c := single()
	c.Node = nodeconf.Node{Pool: "workers", Roles: []string{"worker"}, Taints: []nodeconf.Taint{{Key: "spot", Effect: "NoSchedule"}}}
	return c
}

func raw(s string) *nodeconf.Raw {
	r := json.RawMessage(s)
	return &r
}

const testToken = "abcdef.0123456789abcdef"

func newNode(t *testing.T, c Config) *Node {
	t.Helper()
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKubeadmConfiguration(t *testing.T) {
	old := single()
	old.Image.Kubernetes = "v1.35.8"
	old.Kubeadm = raw(`{"controllerManager":{"extraArgs":[{"name":"v","value":"2"}]},"dns":{"disabled":false}}`)
	for _, tt := range []struct {
		name string
		node Config
		make func(*Node) ([]byte, error)
	}{
		{"init-single", Config{Node: single(), Roster: singleRoster}, func(n *Node) ([]byte, error) { return n.initConfig(false, testToken) }},
		{"init-again", Config{Node: single(), Roster: singleRoster}, func(n *Node) ([]byte, error) { return n.initConfig(true, testToken) }},
		{"init-old", Config{Node: old, Roster: singleRoster}, func(n *Node) ([]byte, error) { return n.initConfig(false, testToken) }},
		{"init-dual", Config{Node: dual(), Roster: func() nodeconf.Roster { return dualRoster(nodeconf.Master{Name: "m4", Address: "fd00:17:8::4"}) }}, func(n *Node) ([]byte, error) { return n.initConfig(false, testToken) }},
		{"join-master", Config{Node: dual(), Roster: func() nodeconf.Roster { return dualRoster() }}, (*Node).joinConfig},
		{"join-worker", Config{Node: pooled(), Name: "workers-0123456789", Addresses: []string{"172.17.8.200"}}, (*Node).joinConfig},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.make(newNode(t, tt.node))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name+".yaml", got)
			if minor(tt.node.Node.Image.Kubernetes) >= 36 { // kubeadm knows one minor version before its own
				kubeadmValidates(t, got)
			}
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s differs (go test ./bootstrap/kube -update rewrites it):\n%s", file, d)
	}
}

// kubeadmValidates lets the real kubeadm judge: that of KIMAGE_KUBEADM, on
// PATH, or in the cache that baked an image.
func kubeadmValidates(t *testing.T, config []byte) {
	t.Helper()
	kubeadm := program(t, "kubeadm")
	if kubeadm == "" {
		return
	}
	dir := t.TempDir()
	file, discovery := filepath.Join(dir, "kubeadm.yaml"), filepath.Join(dir, "discovery.conf")
	// The file must be there, kubeadm says.
	config = []byte(strings.ReplaceAll(string(config), discoveryFile, discovery))
	for f, content := range map[string][]byte{file: config, discovery: nil} {
		if err := os.WriteFile(f, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(kubeadm, "config", "validate", "--config", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ok") {
		t.Errorf("kubeadm config validate: %v\n%s", err, out)
	}
	// "warning: ... is not the value kubeadm expects" and the like.
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "W") && !strings.Contains(line, "resolvConf") && !strings.Contains(line, "clusterDomain") {
			t.Errorf("kubeadm warns: %s", line)
		}
	}
}

// program is the newest build of a program of Kubernetes or etcd on this
// machine; empty: there is none, which only the integration tests mind.
func program(t *testing.T, name string) string {
	t.Helper()
	if p := os.Getenv("KIMAGE_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))); p != "" {
		return p
	}
	best, version := "", ""
	for f, v := range builds(t, name) {
		if best == "" || v > version {
			best, version = f, v
		}
	}
	if best == "" {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("no %s in %s, and none on PATH: a bake (make image) puts it there", name, need.Cache(t))
		}
		t.Logf("no %s on this machine, and it does not judge: bake an image from source, or name one with KIMAGE_%s", name, strings.ToUpper(name))
	}
	return best
}

// builds are those of a program that bakes left, with what they call their version.
func builds(t *testing.T, name string) map[string]string {
	all := map[string]string{}
	found, _ := filepath.Glob(filepath.Join(need.Cache(t), "entries/*/*", name))
	for _, f := range found {
		argv := []string{"--version"}
		switch name {
		case "kubeadm":
			argv = []string{"version", "-o", "short"}
		case "etcdctl":
			argv = []string{"version"}
		}
		if out, err := exec.Command(f, argv...).CombinedOutput(); err == nil {
			all[f], _, _ = strings.Cut(string(out), "\n")
		}
	}
	return all
}

func TestNewRefuses(t *testing.T) {
	nameless := pooled()
	for _, tt := range []struct {
		name   string
		config Config
		want   string
	}{
		{"pool without a name", Config{Node: nameless, Addresses: []string{"10.0.0.1"}}, "has no name"},
		{"no address", Config{Node: nameless, Name: "workers-0123456789"}, "no address"},
		{"bad address", Config{Node: single(), Addresses: []string{"host"}}, "not an address"},
		{"etcd only", Config{Node: nodeconf.Config{Node: nodeconf.Node{Name: "e", Roles: []string{"etcd"}, Addresses: []string{"10.0.0.1"}}}}, "no kubelet"},
		{"bad kubeadm", Config{Node: func() nodeconf.Config { c := single(); c.Kubeadm = raw(`[]`); return c }()}, "reading kubeadm of node.json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(tt.config)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
