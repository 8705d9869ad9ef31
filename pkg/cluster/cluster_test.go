package cluster

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// support is what the tests' kimage can do.
var support = Support{
	OSes:       []OS{{"debian-13", []string{"trixie"}, "cloud-init"}, {"flatcar-stable", []string{"coreos-stable"}, "ignition"}},
	Kubernetes: []string{"v1.37.2", "v1.36.5", "v1.35.8"},
	Runtimes:   []string{"containerd"},
	Plugins:    []string{"flannel", "none"},
	Components: func(string) map[string]string { return map[string]string{"containerd": "v2.4.2", "etcd": "v3.7.3"} },
}

// valid is a right file; tests change it.
const valid = `apiVersion: kimage.dev/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  kubernetes: v1.37.2
  os: debian-13
  network:
    nodes: [172.17.8.0/24]
  nodes:
  - name: k8s-01
    roles: [etcd, master, worker]
    address: 172.17.8.101
    match: {mac: "52:54:00:17:08:01"}
  - name: k8s-02
    roles: [etcd, master]
    address: 172.17.8.102
  - name: k8s-03
    roles: [etcd]
    address: 172.17.8.103
  pools:
  - {name: workers, roles: [worker], size: 2}
`

func TestEveryTopologyIsRight(t *testing.T) {
	for _, shape := range Topologies {
		text, err := New(Outline{Topology: shape, Name: "demo", OS: "coreos-stable", Kubernetes: "v1.37.2"})
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse([]byte(text), "cluster.yaml", support)
		if err != nil {
			t.Fatalf("topology %s: %v", shape, err)
		}
		if fmt.Sprint(len(f.Nodes)) != shape || f.OS.Name != "flatcar-stable" {
			t.Errorf("topology %s: %d nodes, %s", shape, len(f.Nodes), f.OS.Name)
		}
		if warned := len(f.Warnings) > 0; warned != (shape == "1") {
			t.Errorf("topology %s: warnings %v", shape, f.Warnings)
		}
	}
	if _, err := New(Outline{Topology: "7", Name: "demo", OS: "x", Kubernetes: "y"}); err == nil {
		t.Error("topology 7 exists")
	}
}

// TestOutline: what a cluster file to begin with may hold besides its topology.
func TestOutline(t *testing.T) {
	text, err := New(Outline{Topology: "3", Name: "lab", OS: "coreos-stable", Kubernetes: "v1.37.2", Plugin: "none", Subnet: netip.MustParsePrefix("192.168.60.0/24"), Workers: 2, MTU: 1400, SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC2RX1oFJ7PHzO/scbiyqGg4gzZ2ksCpFH3848Zn1YwM"}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse([]byte(text), "cluster.yaml", support)
	if err != nil {
		t.Fatal(err)
	}
	last := f.Nodes[4]
	if len(f.Nodes) != 5 || last.Name != "k8s-05" || fmt.Sprint(last.Roles, last.Addresses)+last.Match.MAC != "[worker] [192.168.60.105]52:54:00:a8:3c:05" || last.Machine.Network.MTU != 1400 ||
		len(last.Machine.SSH.AuthorizedKeys) != 1 || f.Cluster.Spec.Network.Plugin != "none" {
		t.Errorf("%d nodes, the last %+v", len(f.Nodes), last)
	}
	for _, o := range []Outline{{Topology: "1", Workers: -1}, {Topology: "1", Workers: 200}, {Topology: "8", Subnet: netip.MustParsePrefix("10.0.0.0/25"), Workers: 30},
		{Topology: "1", Subnet: netip.MustParsePrefix("10.0.0.1/24")}, {Topology: "1", Subnet: netip.MustParsePrefix("fd00::/64")}} {
		if text, err := New(o); err == nil {
			t.Errorf("%+v gives\n%s", o, text)
		}
	}
}

// TestProblems: each edit of the valid file gives exactly these problems.
func TestProblems(t *testing.T) {
	worker := "\n  - name: k8s-04\n    roles: [worker]\n"
	for _, test := range []struct{ name, old, new, want string }{
		{"unknown field", "  os: debian-13", "  os: debian-13\n  netwerk: {}", `line 7: spec.netwerk: "netwerk": unknown field "netwerk": did you mean network?`},
		{"field twice", "  os: debian-13", "  os: debian-13\n  os: debian-13", `line 7: spec.os: "os": this key is there twice: keep one`},
		{"merge key", "metadata: {name: demo}", "metadata: &m {name: demo}\nx: {<<: *m}", `line 4: x: "x": unknown field "x"`},
		{"kind", "kind: Cluster", "kind: Klaster", `line 2: kind: "Klaster": must be Cluster`},
		{"no name", "{name: demo}", "{}", "line 3: metadata.name: name the cluster with"},
		{"number wanted", "size: 2", "size: two", `line 21: spec.pools[0].size: "two": expected a number`},
		{"list wanted", "roles: [etcd]", "roles: etcd", "line 18: spec.nodes[2].roles: \"etcd\": expected a list"},
		{"role", "[etcd, master]", "[etcd, control-plane]", `line 15: spec.nodes[1].roles[1]: "control-plane": unknown role: did you mean master?`},
		{"role near", "[etcd, master]", "[etcd, mastr]", `unknown role "mastr": did you mean master?`},
		{"role twice", "[etcd, master]", "[etcd, etcd]", `spec.nodes[1].roles[1]: "etcd": named twice`},
		{"same name", "name: k8s-02", "name: k8s-01", `line 14: spec.nodes[1].name: "k8s-01": spec.nodes[0].name has this name already`},
		{"pool's name", "name: workers", "name: k8s-01", `spec.nodes[0].name has this name already`},
		{"same address", "172.17.8.102", "172.17.8.101", `line 16: spec.nodes[1].address: "172.17.8.101": spec.nodes[0].address has this address already`},
		{"same MAC", "address: 172.17.8.102", "address: 172.17.8.102\n    match: {mac: 52-54-00-17-08-01}", `spec.nodes[0].match.mac has this MAC already`},
		{"bad MAC", "52:54:00:17:08:01", "52:54:00", "not a MAC address"},
		{"bad UUID", `{mac: "52:54:00:17:08:01"}`, "{uuid: x}", "not a UUID"},
		{"no address", "    address: 172.17.8.103\n", "", "line 17: spec.nodes[2].address: machines with etcd or master need a fixed address"},
		{"address with length", "172.17.8.103", "172.17.8.103/24", "not a machine's address"},
		{"address elsewhere", "172.17.8.103", "10.0.0.1", "lies in none of spec.network.nodes (172.17.8.0/24)"},
		{"address in pods", "nodes: [172.17.8.0/24]", "pods: [172.17.0.0/16]", "lies in spec.network.pods[0] (172.17.0.0/16)"},
		{"two etcd", "[etcd]", "[worker]", "two etcd members lose the cluster when either is lost"},
		{"pool with etcd", "roles: [worker], size", "roles: [etcd], size", `line 21: spec.pools[0].roles[0]: "etcd": a pool's machines are not known in advance`},
		{"overlap", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    pods: [10.96.0.0/16]", "overlaps with spec.network.pods[0] (10.96.0.0/16)"},
		{"host bits", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.7/24]", "did you mean 172.17.8.0/24?"},
		{"pods too small", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    pods: [10.244.0.0/25]", "too small: every node takes a /24"},
		{"pods too few", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    pods: [10.244.0.0/23]", "has room for 2 nodes, and the file has 4: use a /22 or larger"},
		{"services too large", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    services: [10.0.0.0/8]\n    pods: [11.0.0.0/16]", "too large: Kubernetes wants at most a /12"},
		{"services too small", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    services: [10.96.0.0/29]", "too small: use at least a /28"},
		{"families differ", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    services: [\"fd00::/112\"]", "pods and services need the same families in the same order"},
		{"no IPv6 address", "nodes: [172.17.8.0/24]", "pods: [10.244.0.0/16, \"fd01::/48\"]\n    services: [10.96.0.0/12, \"fd02::/112\"]", "the cluster's networks are IPv6: add an address of that family"},
		{"os", "debian-13", "debain-13", `"debain-13": unknown operating system "debain-13": did you mean debian-13?`},
		{"version", "v1.37.2", "1.34.1", `unknown Kubernetes version`},
		{"runtime", "os: debian-13", "os: debian-13\n  runtime: cri-o", `"cri-o": this kimage has no runtime of that name: choose containerd`},
		{"rkt", "os: debian-13", "os: debian-13\n  runtime: rkt", "rkt was archived in 2020"},
		{"hypercontainer", "os: debian-13", "os: debian-13\n  runtime: hypercontainer", "Kata Containers took its place"},
		{"virtlet", "os: debian-13", "os: debian-13\n  runtime: virtlet", "KubeVirt took its place"},
		{"infranetes", "os: debian-13", "os: debian-13\n  runtime: infranetes", "Cluster API or KubeVirt took its place"},
		{"plugin", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    plugin: weave", "no network plugin of that name: choose flannel or none"},
		{"option", "nodes: [172.17.8.0/24]", "nodes: [172.17.8.0/24]\n    options: {backnd: vxlan}", `unknown option of flannel "backnd": did you mean backend?`},
		{"containerd 1", "os: debian-13", "os: debian-13\n  versions: {containerd: 1.7.21}", "cannot work with containerd 1"},
		{"another containerd", "os: debian-13", "os: debian-13\n  versions: {containerd: 2.0.0}", "the catalogue of this kimage has containerd v2.4.2"},
		{"unknown component", "os: debian-13", "os: debian-13\n  versions: {contanerd: 2.0.0}", "did you mean containerd?"},
		{"reserved", "os: debian-13", "os: debian-13\n  addons: [dashboard]", "line 7: spec.addons: this field is reserved: no part of this kimage implements it yet"},
		{"reserved below", "os: debian-13", "os: debian-13\n  image: {sysexts: [x]}", "spec.image.sysexts: this field is reserved"},
		{"zone of a machine", "os: debian-13", "os: debian-13\n  machine: {gce: {zone: x}}", "spec.machine.gce.zone: \"x\": not a zone (such as europe-west1-b)"},
		{"disk of an instance", "os: debian-13", "os: debian-13\n  machine: {gce: {diskGiB: 1}}", "spec.machine.gce.diskGiB: \"1\": give 10 to 65536"},
		{"project", "os: debian-13", "os: debian-13\n  platform: {gce: {project: X}}", "spec.platform.gce.project: \"X\": not a project's ID (gcloud projects list shows them)"},
		{"bucket", "os: debian-13", "os: debian-13\n  platform: {gce: {bucket: \"gs://b\"}}", "spec.platform.gce.bucket: \"gs://b\": not a bucket's name"},
		{"true or false", "os: debian-13", "os: debian-13\n  platform: {gce: {externalIP: perhaps}}", "spec.platform.gce.externalIP: \"perhaps\": expected true or false"},
		{"account of masters and workers", "os: debian-13", "os: debian-13\n  platform: {gce: {serviceAccounts: {master: a@p.iam.gserviceaccount.com, worker: a@p.iam.gserviceaccount.com}}}", "workers would be able to read the secrets of masters"},
		{"sources", "os: debian-13", "os: debian-13\n  platform: {gce: {sources: [203.0.113.7/24]}}", "spec.platform.gce.sources[0]: \"203.0.113.7/24\": not a network"},
		{"host-gw on gce", "os: debian-13", "os: debian-13\n  platform: {gce: {}}\n  network: {options: {backend: host-gw}}", "use vxlan"},
		{"disk elsewhere", "os: debian-13", "os: debian-13\n  machine: {disks: {install: {path: sda}}}", "spec.machine.disks.install.path: \"sda\": not a path below /dev"},
		{"overwrite what", "os: debian-13", "os: debian-13\n  machine: {disks: {install: {overwrite: all}}}", "spec.machine.disks.install.overwrite: \"all\": must be never, kimage or any"},
		{"two platforms", "os: debian-13", "os: debian-13\n  platform: {aws: {}, gce: {}}", "names gce and aws: choose one"},
		{"kubeadm", "os: debian-13", "os: debian-13\n  kubeadm: {etcd: {}}", "kimage sets this: list machines with the role etcd"},
		{"kubeadm below", "os: debian-13", "os: debian-13\n  kubeadm: {apiServer: {certSANs: [a]}}", "spec.kubeadm.apiServer.certSANs: kimage sets this: use spec.api.certSANs"},
		{"kubeadm argument", "os: debian-13", "os: debian-13\n  kubeadm: {apiServer: {extraArgs: [{name: etcd-servers, value: x}]}}", "kimage sets this"},
		{"kubeadm v1beta3", "os: debian-13", "os: debian-13\n  kubeadm: {apiServer: {extraArgs: {v: \"2\"}}}", "v1beta4 wants a list"},
		{"kubeadm unknown", "os: debian-13", "os: debian-13\n  kubeadm: {apiserver: {}}", "did you mean apiServer?"},
		{"kubelet", "os: debian-13", "os: debian-13\n  kubelet: {clusterDomain: x}", "kimage sets this: use spec.network.dnsDomain"},
		{"recipient", "os: debian-13", "os: debian-13\n  secrets: {encryptTo: [age1x]}", "not an age recipient"},
		{"label", "os: debian-13", "os: debian-13\n  machine: {labels: {\"a b\": c}}", `spec.machine.labels["a b"]`},
		{"taint", "os: debian-13", "os: debian-13\n  roles: {worker: {taints: [{key: a, effect: Never}]}}", `spec.roles.worker.taints[0].effect: "Never"`},
		{"key", "os: debian-13", "os: debian-13\n  machine: {ssh: {authorizedKeys: [x]}}", "not an SSH public key"},
		{"CA", "os: debian-13", "os: debian-13\n  machine: {trustedCAs: [x]}", "not one PEM certificate"},
		{"proxy", "os: debian-13", "os: debian-13\n  machine: {proxy: {http: proxy}}", "not a URL"},
		{"registry", "os: debian-13", "os: debian-13\n  machine: {registries: {docker.io: {}}}", "name at least one mirror"},
		{"static without card", "address: 172.17.8.102", "address: 172.17.8.102\n    machine: {network: {gateway: 172.17.8.1}}", "needs spec.nodes[1].match.mac"},
		{"static pool", "size: 2", "size: 2, machine: {network: {mtu: 1400}}", "the machines of a pool have none"},
		{"butane on cloud-init", "os: debian-13", "os: debian-13\n  machine: {butane: x.bu}", "debian-13 boots with cloud-init: use cloudInit"},
		{"no snippet", "os: debian-13", "os: debian-13\n  machine: {cloudInit: x.yaml}", "there is no such file"},
		{"endpoint", "os: debian-13", "os: debian-13\n  api: {endpoint: \"a:b:c\"}", "not HOST or HOST:PORT"},
		{"two documents", "  pools:\n", "---\na: b\n---\n  pools:\n", "more than one YAML document"},
		{"not a mapping", valid, "- a\n", "cluster.yaml: line 1: this is not a cluster file"},
		{"not YAML", "kind: Cluster", "kind: [", "this is not YAML"},
		{"null address", "address: 172.17.8.102", "address: null", "machines with etcd or master need a fixed address"},
		{"worker without address", "  pools:", worker[1:] + "  pools:", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := strings.Replace(valid, test.old, test.new, 1)
			if text == valid {
				t.Fatal("the edit changes nothing")
			}
			_, err := Parse([]byte(text), "cluster.yaml", support)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	text := strings.NewReplacer("debian-13", "bebian", "172.17.8.102", "172.17.8.101", "roles: [etcd]", "roles: [boss]", "size: 2", "size: x").Replace(valid)
	_, err := Parse([]byte(text), "cluster.yaml", support)
	if err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Fatalf("expected five problems (a role lost makes two etcd members): %v", err)
	}
	for line := range strings.Lines(err.Error()) {
		if !strings.HasPrefix(line, "cluster.yaml: line ") {
			t.Errorf("no place: %s", line)
		}
	}
}

func TestFamilies(t *testing.T) {
	for _, test := range []struct{ name, nodes, address, pods, services string }{
		{"IPv4", "[172.17.8.0/24]", "172.17.8.%d", "[10.244.0.0/16]", "[10.96.0.0/12]"},
		{"IPv6", `["fd00:8::/64"]`, "fd00:8::%d", "[fd00:10:244::/48]", "[fd00:10:96::/112]"},
		{"dual", `[172.17.8.0/24, "fd00:8::/64"]`, `[172.17.8.%d, "fd00:8::%[1]d"]`, "[10.244.0.0/16 fd00:10:244::/48]", "[10.96.0.0/12 fd00:10:96::/112]"},
		{"dual, IPv6 first", `["fd00:8::/64", 172.17.8.0/24]`, `["fd00:8::%d", 172.17.8.%[1]d]`, "[fd00:10:244::/48 10.244.0.0/16]", "[fd00:10:96::/112 10.96.0.0/12]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := strings.Replace(valid, "[172.17.8.0/24]", test.nodes, 1)
			for i := 101; i <= 103; i++ {
				text = strings.Replace(text, fmt.Sprintf("172.17.8.%d", i), fmt.Sprintf(test.address, i), 1)
			}
			f, err := Parse([]byte(text), "cluster.yaml", support)
			if err != nil {
				t.Fatal(err)
			}
			n := f.Cluster.Spec.Network
			if fmt.Sprint(n.Pods) != test.pods || fmt.Sprint(n.Services) != test.services {
				t.Errorf("pods %v, services %v", n.Pods, n.Services)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	text := strings.Replace(valid, "  nodes:\n  - name: k8s-01", `  machine:
    labels: {a: all, b: all, gone: all}
    ntp: [0.example, 1.example]
    proxy: {http: "http://p:1", no: [x]}
  roles:
    worker: {labels: {b: worker, c: worker}}
    master: {labels: {c: master}, ntp: [m.example]}
  nodes:
  - name: k8s-01
    machine: {labels: {gone: null, d: "1"}, proxy: {no: y}}`, 1)
	f, err := Parse([]byte(text), "cluster.yaml", support)
	if err != nil {
		t.Fatal(err)
	}
	got := f.Nodes[0].Machine
	if fmt.Sprint(got.Labels) != "map[a:all b:worker c:master d:1]" || fmt.Sprint(got.NTP) != "[m.example]" || got.Proxy.HTTP != "http://p:1" || fmt.Sprint(got.Proxy.No) != "[y]" {
		t.Errorf("%+v", got)
	}
	var lines []string
	for _, s := range f.Nodes[0].Settings {
		lines = append(lines, fmt.Sprintf("%s=%s %s:%d", s.Path, s.Value, s.From, s.Line))
	}
	want := []string{"labels.a=all spec.machine:10", "labels.b=worker spec.roles.worker:14", "labels.c=master spec.roles.master:15", "labels.d=1 spec.nodes[0].machine:18",
		"ntp=[m.example] spec.roles.master:15", "proxy.http=http://p:1 spec.machine:12", "proxy.no=y spec.nodes[0].machine:18"}
	slices.Sort(lines)
	if !slices.Equal(lines, want) {
		t.Errorf("got  %q\nwant %q", lines, want)
	}
	if pool := f.Pools[0].Machine; fmt.Sprint(pool.Labels) != "map[a:all b:worker c:worker gone:all]" {
		t.Errorf("pool: %v", pool.Labels)
	}
	if third := f.Nodes[2].Machine; fmt.Sprint(third.Labels) != "map[a:all b:all gone:all]" || len(third.NTP) != 2 {
		t.Errorf("etcd only: %+v", third)
	}
}

// TestAliases: anchors work, and bombs made of them do not.
func TestAliases(t *testing.T) {
	text := strings.Replace(valid, "  nodes:\n  - name", "  machine: {labels: &l {a: b}}\n  roles: {worker: {labels: *l}}\n  nodes:\n  - name", 1)
	if _, err := Parse([]byte(text), "cluster.yaml", support); err != nil {
		t.Error(err)
	}
	bomb := "kubelet: &a0 {x: y}\n"
	for i := range 30 {
		bomb += fmt.Sprintf("k%d: &a%d {l: *a%d, r: *a%[3]d}\n", i, i+1, i)
	}
	text = strings.Replace(valid, "  os: debian-13", "  os: debian-13\n  kubelet:\n    "+strings.ReplaceAll(bomb, "\n", "\n    "), 1)
	if _, err := Parse([]byte(text), "cluster.yaml", support); err == nil || !strings.Contains(err.Error(), "aliases make it too large") && !strings.Contains(err.Error(), "excessive aliasing") {
		t.Errorf("a bomb: %v", err)
	}
}

func TestSecretsAreNotEchoed(t *testing.T) {
	text := strings.Replace(valid, "  os: debian-13", "  os: debian-13\n  machine: {trustedCAs: [\"-----BEGIN PRIVATE KEY-----\\nMIGH\"]}\n  secrets: {encryptTo: [AGE-SECRET-KEY-1ABC]}", 1)
	_, err := Parse([]byte(text), "cluster.yaml", support)
	if err == nil || strings.Contains(err.Error(), "MIGH") || strings.Contains(err.Error(), "1ABC") {
		t.Errorf("%v", err)
	}
}

func TestStem(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "prod.yaml")
	if err := os.WriteFile(file, []byte(valid), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Read(file, support)
	if err != nil {
		t.Fatal(err)
	}
	if f.Stem() != filepath.Join(dir, "prod") || f.Dir() != dir {
		t.Errorf("%s, %s", f.Stem(), f.Dir())
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(valid))
	for _, shape := range Topologies {
		text, err := New(Outline{Topology: shape, Name: "demo", OS: "coreos-stable", Kubernetes: "1.37"})
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(text))
	}
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("spec: {kubelet: &a {x: *a}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data, "cluster.yaml", support)
		if err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
		if err == nil {
			file.Ports()
		}
	})
}
