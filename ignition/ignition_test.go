package ignition

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/ignition/state"
	"github.com/kimage-project/kimage/pkg/cluster"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testOSes are one of each kind.
var testOSes = map[string]OS{
	"debian-13":            {User: "debian", SSHUnits: []string{"ssh.service", "ssh.socket"}, EditableRoot: true},
	"rocky-10":             {User: "rocky", SSHUnits: []string{"sshd.service"}, SELinux: true},
	"flatcar-stable":       {Variant: "flatcar", Version: "1.0.0", User: "core", Network: "networkd", Time: "timesyncd", TrustDir: "/etc/ssl/certs", TrustCommand: "/usr/sbin/update-ca-certificates", SSHUnits: []string{"sshd.service", "sshd.socket"}, EditableRoot: true},
	"fedora-coreos-stable": {Variant: "fcos", Version: "1.4.0", User: "core", Network: "networkmanager", Time: "chrony", TrustDir: "/etc/pki/ca-trust/source/anchors", SSHUnits: []string{"sshd.service", "sshd.socket"}, SELinux: true},
}

var testSupport = cluster.Support{
	OSes: []cluster.OS{{Name: "debian-13", FirstBoot: "cloud-init"}, {Name: "rocky-10", FirstBoot: "cloud-init"},
		{Name: "flatcar-stable", Aliases: []string{"coreos-stable"}, FirstBoot: "ignition"}, {Name: "fedora-coreos-stable", FirstBoot: "ignition"}},
	Kubernetes: []string{"v1.37.2", "v1.36.5"}, Runtimes: []string{"containerd"}, Plugins: []string{"flannel", "none"},
}

var testActivation = []Activation{{Path: "/etc/kimage/activate", Mode: 0o755, Content: []byte("#!/bin/sh\n")},
	{Path: "/etc/systemd/system/sysinit.target.wants/kimage-activate.service", Link: "../kimage-activate.service"}}

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVLc8BFNHkLTYlm1xFCIfgnxKPmJuvT0o3vPZzgYw3K operator"

// whole says everything that can be said: every field that acts.
const whole = `apiVersion: kimage.dev/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  kubernetes: v1.37.2
  os: OSNAME
  network:
    nodes: [172.17.8.0/24, "fd00:8::/64"]
    dnsDomain: k8s.example
    options: {backend: host-gw}
  api: {endpoint: api.example, certSANs: [alt.example]}
  kubeadm: {apiServer: {extraArgs: [{name: v, value: "3"}]}}
  kubelet: {maxPods: 50}
  machine:
    labels: {zone: a, node-restriction.kubernetes.io/tier: gold}
    ntp: [time.example]
    proxy: {http: "http://u:p%40ss@proxy.example:3128", no: internal.example}
    registries: {docker.io: {mirrors: ["https://mirror.example"]}}
    ssh: {authorizedKeys: ["` + key + `"]}
  roles:
    worker: {taints: [{key: a, value: b, effect: NoSchedule}]}
    etcd: {ssh: {authorizedKeys: []}}
  nodes:
  - name: all
    roles: [etcd, master, worker]
    address: [172.17.8.101, "fd00:8::101"]
    match: {mac: "52:54:00:17:08:01"}
    machine:
      network: {gateway: [172.17.8.1, "fd00:8::1"], nameservers: [172.17.8.2], vlan: 7, mtu: 1400}
      ssh: {authorizedKeys: ["` + key + `", " ` + key + `"]} # once is enough
  - {name: member, roles: [etcd], address: [172.17.8.102, "fd00:8::102"]}
  - {name: third, roles: [etcd], address: [172.17.8.103, "fd00:8::103"], match: {mac: "52:54:00:17:08:03"}}
  - name: boss
    roles: [master]
    address: [172.17.8.104, "fd00:8::104"]
    match: {mac: "52:54:00:17:08:04"}
    machine: {network: {gateway: 172.17.8.1}}
  - {name: hand, roles: [worker]}
  pools:
  - {name: crowd, size: 3}
`

// made is a cluster with its state in a directory of the test's.
type made struct {
	file  *cluster.File
	state *state.Store
	g     *Generator
	all   []Machine
}

func makeCluster(t testing.TB, text, osName string) made {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	f, err := cluster.Parse([]byte(strings.Replace(text, "OSNAME", osName, 1)), path, testSupport)
	if err != nil {
		t.Fatal(err)
	}
	return makeFrom(t, f, osName)
}

func makeFrom(t testing.TB, f *cluster.File, osName string) made {
	t.Helper()
	s, err := state.Open(state.Config{File: f, Now: func() time.Time { return time.Now() }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Ensure(); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(); err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{File: f, State: s, OS: testOSes[osName], Activation: testActivation})
	if err != nil {
		t.Fatal(err)
	}
	all, err := g.All()
	if err != nil {
		t.Fatal(err)
	}
	return made{f, s, g, all}
}

// told is what a machine gets, whatever the language: path to mode and content.
type told struct {
	mode    int
	content string
}

// read decodes a config as a machine would.
func read(t *testing.T, m Machine) map[string]told {
	t.Helper()
	out := map[string]told{}
	put := func(path string, mode int, content string) {
		if _, ok := out[path]; ok {
			t.Errorf("%s: %s is there twice", m.Dir, path)
		}
		out[path] = told{mode, content}
	}
	if data, ok := m.Files[ConfigFile]; ok {
		var c struct {
			Storage struct {
				Files []struct {
					Path     string
					Mode     int
					Contents struct{ Source, Compression string }
				}
			}
		}
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatal(err)
		}
		for _, f := range c.Storage.Files {
			put(f.Path, f.Mode, undataURL(t, f.Contents.Source, f.Contents.Compression))
		}
		return out
	}
	var c struct {
		Files []writeFile `yaml:"write_files"`
	}
	if err := yaml.Unmarshal(m.Files["user-data"], &c); err != nil {
		t.Fatal(err)
	}
	for _, f := range c.Files {
		mode, err := strconv.ParseInt(f.Permissions, 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		put(f.Path, int(mode), f.Content)
	}
	return out
}

func undataURL(t *testing.T, dataURL, compression string) string {
	t.Helper()
	head, data, _ := strings.Cut(dataURL, ",")
	if !strings.HasSuffix(head, ";base64") {
		text, err := url.PathUnescape(data)
		if err != nil {
			t.Fatal(err)
		}
		data = base64.StdEncoding.EncodeToString([]byte(text))
	}
	raw, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		t.Fatal(err)
	}
	if compression == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	return string(raw)
}

// TestLeastSecret: every machine gets the secrets of its roles, and no other
// private key or token is anywhere in its config.
func TestLeastSecret(t *testing.T) {
	want := map[string]string{ // private files below /etc/kimage
		"nodes/all":    "pki/apiserver-etcd-client.key pki/ca.key pki/encryption.key pki/etcd-agent.key pki/etcd-peer.key pki/etcd-server.key pki/front-proxy-ca.key pki/join.key pki/sa.key token",
		"nodes/member": "pki/etcd-agent.key pki/etcd-peer.key pki/etcd-server.key",
		"nodes/third":  "pki/etcd-agent.key pki/etcd-peer.key pki/etcd-server.key",
		"nodes/boss":   "pki/apiserver-etcd-client.key pki/ca.key pki/encryption.key pki/front-proxy-ca.key pki/join.key pki/sa.key token",
		"nodes/hand":   "token",
		"pools/crowd":  "token",
	}
	for osName := range testOSes {
		t.Run(osName, func(t *testing.T) {
			c := makeCluster(t, whole, osName)
			for _, m := range c.all {
				files := read(t, m)
				var private []string
				for path, f := range files {
					if !strings.HasPrefix(path, "/etc/kimage/") {
						continue
					}
					secret := strings.Contains(f.content, "PRIVATE KEY") || strings.HasSuffix(path, ".key") || path == nodeconf.TokenFile
					if secret {
						private = append(private, strings.TrimPrefix(path, "/etc/kimage/"))
					}
					if secret != (f.mode == 0o600) {
						t.Errorf("%s: %s has mode %o", m.Dir, path, f.mode)
					}
				}
				slices.Sort(private)
				if got := strings.Join(private, " "); got != want[m.Dir] {
					t.Errorf("%s:\ngot  %s\nwant %s", m.Dir, got, want[m.Dir])
				}
				everything := fmt.Sprint(m.Files) // %v of bytes is no text: search the decoded files and the raw text
				for _, f := range files {
					everything += f.content
				}
				for _, f := range m.Files {
					everything += string(f)
				}
				for _, forbidden := range []string{"etcd-ca.key", "etcd-peer-ca.key", "roster.key", "admin.key"} {
					if strings.Contains(everything, keyBody(t, c.state.Secret(forbidden))) {
						t.Errorf("%s: holds %s", m.Dir, forbidden)
					}
				}
				for _, other := range c.all {
					token := strings.TrimSpace(read(t, other)[nodeconf.TokenFile].content)
					if other.Dir != m.Dir && token != "" && strings.Contains(everything, token) {
						t.Errorf("%s: holds the token of %s", m.Dir, other.Dir)
					}
				}
			}
		})
	}
}

func keyBody(t *testing.T, pem []byte) string {
	t.Helper()
	lines := strings.Split(string(pem), "\n")
	if len(lines) < 3 || len(lines[1]) < 40 {
		t.Fatalf("not a key of the state")
	}
	return lines[1]
}

// TestNodeConfig: node.json of each kind of machine is as the golden files say,
// the same in both languages.
func TestNodeConfig(t *testing.T) {
	configs := map[string]map[string]string{}
	for osName := range testOSes {
		c := makeCluster(t, whole, osName)
		configs[osName] = map[string]string{}
		for _, m := range c.all {
			data := read(t, m)[nodeconf.File].content
			n, err := nodeconf.Decode([]byte(data))
			if err != nil {
				t.Fatalf("%s: %v", m.Dir, err)
			}
			var signed nodeconf.SignedRoster
			if err := json.Unmarshal([]byte(read(t, m)[nodeconf.RosterFile].content), &signed); err != nil {
				t.Fatal(err)
			}
			r, err := signed.Open(n.Cluster.RosterKey, n.Cluster.UID)
			if err != nil || r.Serial != 1 || fmt.Sprint(r.Founding) != "[all member third]" || len(r.Masters) != 2 {
				t.Errorf("%s: roster %+v, %v", m.Dir, r, err)
			}
			// What differs from cluster to cluster.
			data = strings.NewReplacer(n.Cluster.UID, "UID", n.Cluster.RosterKey, "ROSTERKEY", n.Cluster.Issued.Format(time.RFC3339), "2026-01-01T00:00:00Z", osName, "OSNAME").Replace(data)
			configs[osName][m.Dir] = data
			golden := filepath.Join("testdata", "node", filepath.Base(m.Dir)+".json")
			if *update && osName == "debian-13" {
				if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(data), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(golden); err != nil || string(want) != data {
				t.Errorf("%s of %s differs from %s (go test ./ignition -update rewrites it): %v\n%s", m.Dir, osName, golden, err, data)
			}
		}
	}
	if !maps.EqualFunc(configs["debian-13"], configs["flatcar-stable"], func(a, b string) bool { return a == b }) {
		t.Error("the two languages carry different node configs")
	}
}

// TestFiles: what else machines are told, by golden files of all that is
// neither secret nor changes from cluster to cluster.
func TestFiles(t *testing.T) {
	for osName := range testOSes {
		t.Run(osName, func(t *testing.T) {
			c := makeCluster(t, whole, osName)
			for _, m := range c.all {
				var b strings.Builder
				files := read(t, m)
				for _, p := range slices.Sorted(maps.Keys(files)) {
					fmt.Fprintf(&b, "== %s %04o\n", p, files[p].mode)
					if !strings.HasPrefix(p, "/etc/kimage/") {
						b.WriteString(files[p].content)
					}
				}
				b.WriteString(rest(t, m, c.state.UID))
				golden := filepath.Join("testdata", osName, filepath.Base(m.Dir))
				if *update {
					if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if want, err := os.ReadFile(golden); err != nil || string(want) != b.String() {
					t.Errorf("%s differs from %s (go test ./ignition -update rewrites it): %v\n%s", m.Dir, golden, err, b.String())
				}
			}
		})
	}
}

// rest is what a config says besides files.
func rest(t *testing.T, m Machine, uid string) string {
	t.Helper()
	if data, ok := m.Files[ConfigFile]; ok {
		var c struct {
			Ignition, Passwd, Systemd any
			Storage                   struct{ Links any }
		}
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatal(err)
		}
		out, err := json.MarshalIndent(c, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(out) + "\n"
	}
	var user map[string]any
	if err := yaml.Unmarshal(m.Files["user-data"], &user); err != nil {
		t.Fatal(err)
	}
	delete(user, "write_files")
	out, err := yaml.Marshal(user)
	if err != nil {
		t.Fatal(err)
	}
	return "== user-data\n" + string(out) + "== meta-data\n" + strings.ReplaceAll(string(m.Files["meta-data"]), uid, "UID") + "== network-config\n" + string(m.Files["network-config"])
}

// TestSnippets: people's own come last, and replace only what they name.
func TestSnippets(t *testing.T) {
	for _, test := range []struct{ name, os, snippet, override, want, err string }{
		{"butane adds", "flatcar-stable", "variant: flatcar\nversion: 1.1.0\nstorage: {files: [{path: /etc/mine, contents: {inline: hello}}]}\n", "[]", "/etc/mine", ""},
		{"butane needs 3.4", "flatcar-stable", "variant: flatcar\nversion: 1.1.0\nstorage: {files: [{path: /etc/mine, contents: {inline: hello}}], luks: [{name: data, device: /dev/vdb, discard: true}]}\n", "[]", "/etc/mine", ""},
		{"butane replaces", "flatcar-stable", "variant: flatcar\nversion: 1.0.0\nstorage: {files: [{path: /etc/hostname, overwrite: true, contents: {inline: mine}}]}\n", "[]", "", "it replaces /etc/hostname of kimage's"},
		{"butane may replace", "flatcar-stable", "variant: flatcar\nversion: 1.0.0\nstorage: {links: [{path: /etc/hostname, overwrite: true, target: /mine}]}\n", "[/etc/hostname]", "-/etc/hostname", ""},
		{"butane unit", "flatcar-stable", "variant: flatcar\nversion: 1.0.0\nsystemd: {units: [{name: sshd.service, mask: false}]}\n", "[]", "", "it replaces sshd.service"},
		{"butane too new", "flatcar-stable", "variant: flatcar\nversion: 1.2.0-experimental\n", "[]", "", "snippet mine"},
		{"butane of another", "flatcar-stable", "variant: fcos\nversion: 1.4.0\n", "[]", "", `its variant is "fcos"`},
		{"butane warning", "flatcar-stable", "variant: flatcar\nversion: 1.0.0\nsystemd: {units: [{name: a.service, enabled: true, contents: \"[Service]\\nExecStart=/bin/true\\n\"}]}\n", "[]", "", "snippet mine"},
		{"cloud-init adds", "debian-13", "#cloud-config\nwrite_files: [{path: /etc/mine, content: hello, permissions: '0644'}]\nruncmd: [[echo, hi]]\n", "[]", "/etc/mine", ""},
		{"cloud-init replaces", "debian-13", "#cloud-config\nwrite_files: [{path: /etc/kimage/node.json, content: hello}]\n", "[]", "", "it replaces /etc/kimage/node.json of kimage's"},
		{"cloud-init key", "debian-13", "#cloud-config\nhostname: mine\n", "[]", "", "it sets hostname, which kimage sets"},
		{"cloud-init may set", "debian-13", "#cloud-config\nhostname: mine\n", "[hostname]", "", ""},
		{"cloud-init header", "debian-13", "hostname: mine\n", "[hostname]", "", "its first line must be #cloud-config"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "mine"), []byte(test.snippet), 0o644); err != nil {
				t.Fatal(err)
			}
			key := "cloudInit"
			if strings.Contains(test.snippet, "variant") {
				key = "butane"
			}
			text := "apiVersion: kimage.dev/v1alpha1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  os: " + test.os + "\n  nodes:\n  - {name: a, roles: [etcd, master], address: 10.0.0.1, machine: {" + key + ": mine, override: " + test.override + "}}\n"
			f, err := cluster.Parse([]byte(text), filepath.Join(dir, "cluster.yaml"), testSupport)
			if err != nil {
				t.Fatal(err)
			}
			s, err := state.Open(state.Config{File: f})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Ensure(); err != nil {
				t.Fatal(err)
			}
			g, err := New(Config{File: f, State: s, OS: testOSes[test.os]})
			if err != nil {
				t.Fatal(err)
			}
			all, err := g.All()
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if v := map[bool]string{true: "3.4.0", false: "3.3.0"}[strings.Contains(test.snippet, "discard")]; strings.Contains(test.snippet, "variant") && !strings.Contains(string(all[0].Files[ConfigFile]), `"version":"`+v+`"`) {
				t.Errorf("not of specification %s", v)
			}
			path, gone := strings.CutPrefix(test.want, "-")
			if _, ok := read(t, all[0])[path]; path != "" && ok == gone {
				t.Errorf("%s is there: %t", path, ok)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	c := makeCluster(t, whole, "debian-13")
	g, err := New(Config{File: c.file, State: c.state, OS: testOSes["debian-13"], Platform: "aws"})
	if err != nil {
		t.Fatal(err)
	}
	machines, err := g.All()
	if err != nil {
		t.Fatalf("a small cluster does not fit: %v", err)
	}
	m := machines[0]
	m.Files = map[string][]byte{"user-data": make([]byte, 16<<10+1)}
	if err := g.fits(m); err == nil || !strings.Contains(err.Error(), "user-data has 16385 bytes, and aws takes 16384") {
		t.Errorf("error %v", err)
	}
	if _, err := New(Config{File: c.file, State: c.state, OS: testOSes["debian-13"], Platform: "moon"}); err == nil || !strings.Contains(err.Error(), "choose qemu") {
		t.Errorf("error %v", err)
	}
}
