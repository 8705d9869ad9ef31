package state

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/cluster"
)

const text = `apiVersion: kimage.dev/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  os: debian-13
  nodes:
  - {name: a, roles: [etcd, master], address: 172.17.8.101}
  - {name: b, roles: [etcd, worker], address: 172.17.8.102}
  - {name: c, roles: [etcd], address: 172.17.8.103}
`

var support = cluster.Support{OSes: []cluster.OS{{Name: "debian-13", FirstBoot: "cloud-init"}}, Kubernetes: []string{"v1.37.2"}, Runtimes: []string{"containerd"}, Plugins: []string{"flannel"}}

func parse(t *testing.T, dir, text string) *cluster.File {
	t.Helper()
	f, err := cluster.Parse([]byte(text), filepath.Join(dir, "cluster.yaml"), support)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run opens the state, makes what is missing, saves and closes.
func run(t *testing.T, c Config) (*Store, error) {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := s.Ensure(); err != nil {
		return nil, err
	}
	return s, s.Save()
}

func mustRun(t *testing.T, c Config) *Store {
	t.Helper()
	s, err := run(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// contents reads the whole state.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		out[strings.TrimPrefix(p, dir+"/")] = string(data)
		if fi, serr := e.Info(); serr == nil && strings.Contains(p, ".secrets/") && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", p, fi.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func changed(before, after map[string]string) (names []string) {
	for name, data := range after {
		if before[name] != data {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// TestOnlyAdds: what was made stays, whatever the cluster file says later.
func TestOnlyAdds(t *testing.T) {
	dir := t.TempDir()
	first := mustRun(t, Config{File: parse(t, dir, text)})
	if first.Roster.Generation != 1 || first.Roster.Serial != 1 || fmt.Sprint(first.Roster.Founding) != "[a b c]" {
		t.Errorf("%+v", first.Roster)
	}
	before := contents(t, dir)
	mustRun(t, Config{File: parse(t, dir, text)})
	if got := changed(before, contents(t, dir)); got != nil {
		t.Errorf("the second run changed %v", got)
	}
	// Labels that machines may give themselves are nothing to the roster.
	mustRun(t, Config{File: parse(t, dir, strings.Replace(text, "name: b,", "name: b, machine: {labels: {x: y}},", 1))})
	if got := changed(before, contents(t, dir)); got != nil {
		t.Errorf("a label changed %v", got)
	}
	// c is replaced by d: its certificates, and the roster's serial.
	s := mustRun(t, Config{File: parse(t, dir, strings.Replace(text, "name: c, roles: [etcd], address: 172.17.8.103", "name: d, roles: [etcd], address: 172.17.8.104", 1))})
	want := "[cluster.secrets/cluster.json cluster.secrets/nodes/d/etcd-agent.crt cluster.secrets/nodes/d/etcd-agent.key cluster.secrets/nodes/d/etcd-peer.crt cluster.secrets/nodes/d/etcd-peer.key cluster.secrets/nodes/d/etcd-server.crt cluster.secrets/nodes/d/etcd-server.key cluster.state]"
	if got := fmt.Sprint(changed(before, contents(t, dir))); got != want {
		t.Errorf("a replaced member changed %v", got)
	}
	if s.Roster.Generation != 1 || s.Roster.Serial != 2 || fmt.Sprint(s.Roster.Founding) != "[a b c]" || s.Roster.Members[2].Name != "d" {
		t.Errorf("%+v", s.Roster)
	}
	if left := s.Roster.Left; len(left) != 1 || left[0] != (nodeconf.Member{Name: "c", PeerURL: "https://172.17.8.103:2380"}) {
		t.Errorf("left: %v", left)
	}
	// Who comes back has not left.
	if s := mustRun(t, Config{File: parse(t, dir, text)}); s.Roster.Serial != 3 || len(s.Roster.Left) != 1 || s.Roster.Left[0].Name != "d" {
		t.Errorf("%+v", s.Roster)
	}
	// A pool, with labels that only masters may set, is for them to hear of; read again, it
	// is the same.
	pool := strings.Replace(text, "  nodes:\n", "  pools:\n  - {name: crowd, roles: [worker], size: 3, machine: {labels: {example.kubernetes.io/rack: r1}}}\n  nodes:\n", 1)
	for range 2 {
		if s := mustRun(t, Config{File: parse(t, dir, pool)}); s.Roster.Serial != 4 || !s.Roster.Peers.Has(true, "crowd") || s.Roster.Peers.Pools[0].Labels["example.kubernetes.io/rack"] != "r1" {
			t.Errorf("%+v", s.Roster)
		}
	}
	// Another address: that member's certificates that carry it.
	before = contents(t, dir)
	mustRun(t, Config{File: parse(t, dir, strings.Replace(text, "172.17.8.102", "172.17.8.202", 1))})
	for _, name := range changed(before, contents(t, dir)) {
		if strings.HasPrefix(name, "cluster.secrets/nodes/b/etcd-agent") || strings.Contains(name, "/a/") {
			t.Errorf("another address of b changed %s", name)
		}
	}
}

// TestLost: state without its secrets, or with another's, stops everything.
func TestLost(t *testing.T) {
	for _, test := range []struct {
		name, want string
		harm       func(t *testing.T, dir string)
	}{
		{"secrets gone", "put its secrets back from your backup", func(t *testing.T, dir string) { must(t, os.RemoveAll(dir+"/cluster.secrets")) }},
		{"secrets empty", "lacks cluster.json", func(t *testing.T, dir string) {
			must(t, os.RemoveAll(dir+"/cluster.secrets"))
			must(t, os.Mkdir(dir+"/cluster.secrets", 0o700))
		}},
		{"a key gone", "ca: the key is missing", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/cluster.secrets/ca.key")) }},
		{"join key gone", "join.key: is missing", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/cluster.secrets/join.key")) }},
		{"join key changed", "join.key in", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/cluster.secrets/join.key", []byte("x"), 0o600))
		}},
		{"another cluster's", "belongs to cluster demo", func(t *testing.T, dir string) {
			other := t.TempDir()
			mustRun(t, Config{File: parse(t, other, text)})
			must(t, os.RemoveAll(dir+"/cluster.secrets"))
			must(t, os.Rename(other+"/cluster.secrets", dir+"/cluster.secrets"))
		}},
		{"readable by others", "chmod 700", func(t *testing.T, dir string) { must(t, os.Chmod(dir+"/cluster.secrets", 0o755)) }},
		{"state is junk", "put it back from version control", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/cluster.state", []byte("{"), 0o644)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			mustRun(t, Config{File: parse(t, dir, text)})
			test.harm(t, dir)
			if _, err := run(t, Config{File: parse(t, dir, text)}); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("renamed cluster", func(t *testing.T) {
		dir := t.TempDir()
		mustRun(t, Config{File: parse(t, dir, text)})
		if _, err := run(t, Config{File: parse(t, dir, strings.Replace(text, "demo", "other", 1))}); err == nil || !strings.Contains(err.Error(), "never changes") {
			t.Errorf("error %v", err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRolledBack: an old or missing STEM.state is made good from the secrets.
func TestRolledBack(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, Config{File: parse(t, dir, text)})
	old, err := os.ReadFile(dir + "/cluster.state")
	must(t, err)
	bigger := strings.Replace(text, "roles: [etcd, worker]", "roles: [etcd, master]", 1)
	mustRun(t, Config{File: parse(t, dir, bigger)})
	want, err := os.ReadFile(dir + "/cluster.state")
	must(t, err)
	for _, harm := range []func() error{func() error { return os.WriteFile(dir+"/cluster.state", old, 0o644) }, func() error { return os.Remove(dir + "/cluster.state") }} {
		must(t, harm())
		if s := mustRun(t, Config{File: parse(t, dir, bigger)}); s.Roster.Serial != 2 {
			t.Errorf("serial %d", s.Roster.Serial)
		}
		if got, err := os.ReadFile(dir + "/cluster.state"); err != nil || string(got) != string(want) {
			t.Errorf("not made good: %v", err)
		}
	}
}

// TestCutOff: a first run that was killed anywhere leaves nothing that the
// next one trips over.
func TestCutOff(t *testing.T) {
	whole := t.TempDir()
	mustRun(t, Config{File: parse(t, whole, text)})
	for name := range contents(t, whole) {
		if !strings.HasPrefix(name, "cluster.secrets/") || name == "cluster.secrets/cluster.json" {
			continue
		}
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		must(t, os.Chmod(dir+"/cluster.secrets", 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600))
		mustRun(t, Config{File: parse(t, dir, text)})
		mustRun(t, Config{File: parse(t, dir, text)})
	}
}

func TestEncrypted(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	must(t, err)
	dir := t.TempDir()
	identity := filepath.Join(t.TempDir(), "identity")
	must(t, os.WriteFile(identity, []byte(id.String()+"\n"), 0o600))
	encrypted := strings.Replace(text, "  os:", "  secrets: {encryptTo: ["+id.Recipient().String()+"]}\n  os:", 1)
	mustRun(t, Config{File: parse(t, dir, encrypted)})
	for name, data := range contents(t, dir) {
		if strings.Contains(data, "PRIVATE KEY") {
			t.Errorf("%s lies there in plain", name)
		}
	}
	before := contents(t, dir)
	if _, err := run(t, Config{File: parse(t, dir, encrypted)}); err == nil || !strings.Contains(err.Error(), "--identity FILE") {
		t.Errorf("without identity: %v", err)
	}
	mustRun(t, Config{File: parse(t, dir, encrypted), Identity: identity})
	if got := changed(before, contents(t, dir)); got != nil {
		t.Errorf("changed %v", got)
	}
	other, err := age.GenerateX25519Identity()
	must(t, err)
	must(t, os.WriteFile(identity, []byte(other.String()), 0o600))
	if _, err := run(t, Config{File: parse(t, dir, encrypted), Identity: identity}); err == nil || !strings.Contains(err.Error(), "another identity") {
		t.Errorf("with another identity: %v", err)
	}
	// What lay there in plain is encrypted on demand.
	dir = t.TempDir()
	s := mustRun(t, Config{File: parse(t, dir, text)})
	ca := string(s.Secret("ca.key"))
	must(t, os.WriteFile(identity, []byte(id.String()), 0o600))
	s, err = OpenExisting(Config{File: parse(t, dir, encrypted), Identity: identity})
	must(t, err)
	if n, err := s.Encrypt(); err != nil || n < 10 {
		t.Errorf("%d files, %v", n, err)
	}
	s.Close()
	for name, data := range contents(t, dir) {
		if strings.Contains(data, "PRIVATE KEY") {
			t.Errorf("%s lies there in plain", name)
		}
	}
	if s = mustRun(t, Config{File: parse(t, dir, encrypted), Identity: identity}); string(s.Secret("ca.key")) != ca {
		t.Error("encryption changed a key")
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, Config{File: parse(t, dir, text)})
	for what, want := range map[string]string{
		"join":       `^cluster.secrets/(cluster.json|join.key)$|^cluster.state$`,
		"kubeconfig": `^cluster.secrets/(cluster.json|admin.(crt|key))$`,
		"etcd":       `^cluster.secrets/(cluster.json|nodes/[abc]/(etcd|apiserver-etcd).*)$`,
	} {
		before := contents(t, dir)
		s, err := OpenExisting(Config{File: parse(t, dir, text)})
		must(t, err)
		must(t, s.Rotate(what))
		must(t, s.Save())
		s.Close()
		after := changed(before, contents(t, dir))
		for _, name := range after {
			if !regexp.MustCompile(want).MatchString(name) {
				t.Errorf("rotate %s changed %s", what, name)
			}
		}
		if len(after) < 2 {
			t.Errorf("rotate %s changed only %v", what, after)
		}
		mustRun(t, Config{File: parse(t, dir, text)})
	}
	s, err := OpenExisting(Config{File: parse(t, dir, text)})
	must(t, err)
	defer s.Close()
	if err := s.Rotate("ca"); err == nil || !strings.Contains(err.Error(), "not rotated") {
		t.Errorf("rotate ca: %v", err)
	}
	if err := s.Rotate("x"); err == nil {
		t.Error("rotate x")
	}
}

// TestOpenSSL: OpenSSL judges every certificate of the state: chain, names,
// usage, lifetime, and that the wrong authority does not vouch for it.
func TestOpenSSL(t *testing.T) {
	for _, algorithm := range []string{"ECDSA-P256", "RSA-2048"} {
		dir := t.TempDir()
		mustRun(t, Config{File: parse(t, dir, strings.Replace(text, "  os:", "  kubeadm: {encryptionAlgorithm: "+algorithm+"}\n  os:", 1))})
		secrets := dir + "/cluster.secrets/"
		verify := func(ok bool, args ...string) {
			t.Helper()
			cmd := exec.Command("openssl", args...)
			cmd.Dir = secrets
			if out, err := cmd.CombinedOutput(); (err == nil) != ok {
				t.Errorf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		}
		for _, leaf := range []struct{ file, ca, purpose, names string }{
			{"nodes/a/etcd-server.crt", "etcd-ca.crt", "sslserver", "a 172.17.8.101 127.0.0.1 ::1"},
			{"nodes/b/etcd-peer.crt", "etcd-peer-ca.crt", "sslserver", "b 172.17.8.102 127.0.0.1 ::1"},
			{"nodes/b/etcd-peer.crt", "etcd-peer-ca.crt", "sslclient", ""},
			{"nodes/c/etcd-agent.crt", "etcd-ca.crt", "sslclient", ""},
			{"nodes/a/apiserver-etcd-client.crt", "etcd-ca.crt", "sslclient", ""},
			{"admin.crt", "ca.crt", "sslclient", ""},
		} {
			verify(true, "verify", "-x509_strict", "-CAfile", leaf.ca, "-purpose", leaf.purpose, leaf.file)
			for _, n := range strings.Fields(leaf.names) {
				kind := "-verify_hostname"
				if strings.ContainsAny(n, ".:") {
					kind = "-verify_ip"
				}
				verify(true, "verify", "-CAfile", leaf.ca, kind, n, leaf.file)
			}
			if leaf.names != "" {
				verify(false, "verify", "-CAfile", leaf.ca, "-verify_ip", "172.17.8.109", leaf.file)
			}
			for _, other := range []string{"ca.crt", "etcd-ca.crt", "etcd-peer-ca.crt", "front-proxy-ca.crt"} {
				if other != leaf.ca {
					verify(false, "verify", "-CAfile", other, leaf.file)
				}
			}
		}
		verify(false, "verify", "-CAfile", "etcd-ca.crt", "-purpose", "sslserver", "nodes/a/apiserver-etcd-client.crt")
		verify(false, "verify", "-CAfile", "etcd-ca.crt", "-purpose", "sslclient", "nodes/a/etcd-server.crt")
		year := "31449600"
		verify(true, "x509", "-noout", "-in", "nodes/a/etcd-server.crt", "-checkend", "314000000")
		verify(true, "x509", "-noout", "-in", "admin.crt", "-checkend", year)
		verify(false, "x509", "-noout", "-in", "admin.crt", "-checkend", "31622400")
		cmd := exec.Command("openssl", "x509", "-noout", "-subject", "-in", "admin.crt")
		cmd.Dir = secrets
		if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "O = kubeadm:cluster-admins") {
			t.Errorf("%s, %v", out, err)
		}
	}
}

// TestKubeconfig: a context per master, first the endpoint for people outside.
func TestKubeconfig(t *testing.T) {
	dir := t.TempDir()
	s := mustRun(t, Config{File: parse(t, dir, strings.Replace(strings.Replace(text, "  os:", "  api: {endpoint: api.example}\n  os:", 1), "[etcd, worker]", "[etcd, master]", 1))})
	data, err := s.Kubeconfig()
	must(t, err)
	for _, want := range []string{`"current-context": "demo"`, `"server": "https://api.example:6443"`, `"server": "https://172.17.8.101:6443"`, `"server": "https://172.17.8.102:6443"`, `"name": "demo-b"`,
		base64.StdEncoding.EncodeToString(s.Secret("ca.crt"))} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %s in\n%s", want, data)
		}
	}
}

// TestAdminIsRenewed: the operator's certificate is made again before its end.
func TestAdminIsRenewed(t *testing.T) {
	dir := t.TempDir()
	f := parse(t, dir, text)
	first := string(mustRun(t, Config{File: f}).Secret("admin.crt"))
	later := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	if got := string(mustRun(t, Config{File: f, Now: later(200 * 24 * time.Hour)}).Secret("admin.crt")); got != first {
		t.Error("made again too early")
	}
	if got := string(mustRun(t, Config{File: f, Now: later(300 * 24 * time.Hour)}).Secret("admin.crt")); got == first {
		t.Error("not made again")
	}
}

func TestTokens(t *testing.T) {
	shape := regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)
	a, pool := nodeconf.Token([]byte("key"), false, "a"), nodeconf.Token([]byte("key"), true, "a")
	if !shape.MatchString(a) || a == pool || a != nodeconf.Token([]byte("key"), false, "a") || a == nodeconf.Token([]byte("other"), false, "a") {
		t.Errorf("%s, %s", a, pool)
	}
}
