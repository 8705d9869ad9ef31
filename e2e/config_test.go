//go:build e2e

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/debs"
	"github.com/kimage-project/kimage/pkg/gobuild"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// clusterFile is one machine behind QEMU's card, and everything that machines
// can be told without a network.
const clusterFile = `apiVersion: kimage.dev/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  os: OSNAME
  network: {nodes: [10.0.2.0/24]}
  machine:
    ssh: {authorizedKeys: ["SSHKEY"]}
    ntp: [10.0.2.2]
    registries: {docker.io: {mirrors: ["https://mirror.example"]}}
    proxy: {http: "http://proxy.example:3128"}
    SNIPPET
  nodes:
  - name: k8s-01
    roles: [etcd, master, worker]
    address: 10.0.2.15
    match: {mac: "` + qemu.MAC + `"}
    machine: {network: {` + wayOut + `}}
  - {name: k8s-02, roles: [worker]}
  pools:
  - {name: crowd}
`

// wayOut are the addresses of QEMU's router and DNS server.
const wayOut = "gateway: 10.0.2.2, nameservers: [10.0.2.3]"

// snippet is what people add to the config of Ignition.
const snippet = `variant: flatcar
version: 1.0.0
storage:
  files:
  - {path: /etc/added, mode: 0600, contents: {inline: "by people\n"}}
`

// configs writes the configs of a cluster and returns their directory.
func configs(t *testing.T, osName, sshKey, more string, args ...string) string {
	t.Helper()
	return configsOf(t, strings.NewReplacer("OSNAME", osName, "SSHKEY", sshKey, "    SNIPPET\n", more).Replace(clusterFile), args...)
}

// configsOf makes the configs of a cluster file.
func configsOf(t *testing.T, text string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "snippet.bu"), []byte(snippet), 0o644); err != nil {
		t.Fatal(err)
	}
	kimage, err := filepath.Abs("../bin/kimage")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kimage, append([]string{"config"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kimage config: %v\n%s", err, out)
	}
	return filepath.Join(dir, "config")
}

// toolDir is where judges that take long to make are kept between runs.
func toolDir(t *testing.T, parts ...string) (dir string, made bool) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	dir = filepath.Join(cache, "kimage-judges", parts[0]+"-"+hex.EncodeToString(sum[:6]))
	_, err = os.Stat(dir)
	return dir, err == nil
}

// making are the mutexes of the directories that tool makes.
var making sync.Map

// tool makes dir by fill unless it was made before; a half-made one never
// gets the name.
func tool(t *testing.T, fill func(dir string), parts ...string) string {
	t.Helper()
	dir, made := toolDir(t, parts...)
	if made {
		return dir
	}
	one, _ := making.LoadOrStore(dir, new(sync.Mutex))
	one.(*sync.Mutex).Lock()
	defer one.(*sync.Mutex).Unlock()
	if _, made := toolDir(t, parts...); made {
		return dir // by another story
	}
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(part, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(part)
	if t.Failed() {
		t.FailNow()
	}
	if err := os.Rename(part, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// cloudInitRoot is a root directory with a Debian release's own cloud-init.
func cloudInitRoot(t *testing.T, suite string) string {
	mirror, err := debs.MachineMirror()
	if err != nil {
		t.Fatal(err)
	}
	return tool(t, func(dir string) {
		need.Judge(t, "mmdebstrap", "--quiet", "--variant=minbase", "--include=cloud-init", suite, filepath.Join(dir, "root"), fmt.Sprintf("deb %s %s main", mirror, suite))
	}, "cloud-init", suite) + "/root"
}

// schemaLoop is cloud-init schema for many files in one process: the command's
// own main, once per file "TYPE FILE" of standard input.
const schemaLoop = `
import sys
from cloudinit.config import schema
bad = 0
for line in sys.stdin:
    kind, file = line.split()
    sys.argv = ["schema", "--config-file", file] + (["--schema-type", kind] if kind != "cloud-config" else [])
    try:
        rc = schema.main() or 0
    except SystemExit as e:
        rc = e.code or 0
    if rc:
        print("REFUSED", file)
        bad += 1
print("refused", bad)
`

// TestCloudInitSchema: cloud-init's own schema, of two releases, accepts what
// every machine is told.
func TestCloudInitSchema(t *testing.T) {
	out, err := exec.Command("../bin/kimage", "list", "os", "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		OS []struct{ Name, FirstBoot string }
	}
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{}
	for _, o := range list.OS {
		if o.FirstBoot == "cloud-init" {
			dirs[o.Name] = configs(t, o.Name, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVLc8BFNHkLTYlm1xFCIfgnxKPmJuvT0o3vPZzgYw3K x", "")
		}
	}
	for _, suite := range []string{"bookworm", "trixie"} {
		root := cloudInitRoot(t, suite)
		need.Judge(t, "rm", "-rf", root+"/judged")
		var todo strings.Builder
		judged := 0
		add := func(kind, name string, data []byte) {
			at := filepath.Join(root, "judged", name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, data, 0o644); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&todo, "%s /judged/%s\n", kind, name)
			judged++
		}
		for osName, dir := range dirs {
			files, err := filepath.Glob(dir + "/*/*/*")
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				kind, ok := map[string]string{"user-data": "cloud-config", "network-config": "network-config"}[filepath.Base(file)]
				if !ok || kind == "network-config" && suite == "bookworm" { // whose release does not judge it
					continue
				}
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				add(kind, osName+strings.TrimPrefix(file, dir), data)
			}
		}
		loop := func() string {
			cmd := exec.Command("chroot", root, "python3", "-c", schemaLoop)
			cmd.Stdin = strings.NewReader(todo.String())
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return string(out)
		}
		if out := loop(); !strings.HasSuffix(strings.TrimSpace(out), "refused 0") || strings.Count(out, "Valid") < judged {
			t.Errorf("cloud-init of %s:\n%s", suite, lastLines(out, 30))
		}
		t.Logf("cloud-init of %s judged %d files", suite, judged)
		// And it does judge.
		add("cloud-config", "wrong", []byte("#cloud-config\nwrite_files: 7\n"))
		if out := loop(); !strings.Contains(out, "REFUSED /judged/wrong") || !strings.Contains(out, "refused 1") {
			t.Errorf("cloud-init of %s accepts anything: %s", suite, lastLines(out, 5))
		}
	}
}

// ignitions are Ignition's own programs: Debian's, which reads no more than
// 3.3, and the release whose validator kimage uses.
func ignitions(t *testing.T) map[string]string {
	return map[string]string{
		"2.14.0": debianIgnition(t),
		"2.25.0": tool(t, func(dir string) {
			work := t.TempDir()
			b := gobuild.Build{Module: "github.com/coreos/ignition/v2", Version: "v2.25.0", Package: "github.com/coreos/ignition/v2/internal", CGO: true, Arch: "amd64",
				LDFlags: "-X github.com/coreos/ignition/v2/internal/distro.selinuxRelabel=false"} // as distributions without SELinux build it
			if err := b.Run(t.Context(), work, filepath.Join(dir, "ignition"), nil); err != nil {
				t.Fatal(err)
			}
		}, "ignition", "v2.25.0", "no SELinux") + "/ignition",
	}
}

func debianIgnition(t *testing.T) string {
	return filepath.Join(dracutPackages(t), "usr/lib/dracut/modules.d/30ignition/ignition")
}

// dracutPackages is Debian's dracut with its module for Ignition, unpacked.
func dracutPackages(t *testing.T) string {
	return unpacked(t, "dracut", "dracut", "dracut-core", "dracut-network", "ignition", "policycoreutils", "curl", "cryptsetup-bin")
}

// unpacked is a directory with what is in packages of Debian 13.
func unpacked(t *testing.T, name string, packages ...string) string {
	mirror, err := debs.MachineMirror()
	if err != nil {
		t.Fatal(err)
	}
	return tool(t, func(dir string) {
		scratch := t.TempDir()
		found, err := debs.Fetch(t.Context(), debs.Config{Mirror: mirror, Suite: "trixie", Arch: "amd64", Packages: packages, Dir: scratch})
		if err != nil {
			t.Fatal(err)
		}
		for _, deb := range found {
			need.Judge(t, "dpkg-deb", "-x", deb, filepath.Join(dir, "root"))
		}
	}, append([]string{name}, packages...)...) + "/root"
}

// imageRoot is a copy of the image's root file system.
func imageRoot(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Ignition writes a user's keys as that user.
	for _, p := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What debugfs cannot make (devices) it says; the root has none.
	need.Judge(t, "debugfs", "-R", "rdump / "+dir, volume(t, "root"))
	return dir
}

// volume is how e2fsprogs address a partition of the image.
func volume(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("../bin/kimage", "inspect", image, "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var in struct {
		Partitions []struct {
			Name        string
			OffsetBytes int64
		}
	}
	if err := json.Unmarshal(out, &in); err != nil {
		t.Fatal(err)
	}
	for _, p := range in.Partitions {
		if p.Name == name {
			return fmt.Sprintf("%s?offset=%d", image, p.OffsetBytes)
		}
	}
	t.Fatalf("the image has no partition %s", name)
	return ""
}

// TestIgnitionApplies: Ignition's own program puts what we generate onto a
// root file system.
func TestIgnitionApplies(t *testing.T) {
	root := imageRoot(t)
	const contexts = "/.* system_u:object_r:file_t:s0\n"
	for path, content := range map[string]string{"config": "SELINUXTYPE=none\n", "none/contexts/files/file_contexts": contexts, "targeted/contexts/files/file_contexts": contexts} {
		if err := os.MkdirAll(filepath.Dir(root+"/etc/selinux/"+path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/etc/selinux/"+path, []byte(content), 0o644); err != nil { // Debian's build labels files whether there is SELinux or not
			t.Fatal(err)
		}
	}
	for version, program := range ignitions(t) {
		for _, osName := range []string{"flatcar-stable", "flatcar-lts", "fedora-coreos-stable"} {
			dir := configs(t, osName, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVLc8BFNHkLTYlm1xFCIfgnxKPmJuvT0o3vPZzgYw3K x", "")
			for _, machine := range []string{"nodes/k8s-01", "nodes/k8s-02", "pools/crowd"} {
				need.Judge(t, "rm", "-rf", root+"/etc/kimage", root+"/etc/hostname", root+"/home/core", "/run/ignition-judge")
				exec.Command("chroot", root, "userdel", "core").Run() // of the last round, if any
				cached := filepath.Join(t.TempDir(), "cache.json")
				for _, stage := range []string{"fetch", "files"} {
					cmd := exec.Command(program, "--root="+root, "--platform=file", "--stage="+stage, "--config-cache="+cached, "--log-to-stdout")
					cmd.Env = append(os.Environ(), "IGNITION_CONFIG_FILE="+filepath.Join(dir, machine, "config.ign"))
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("Ignition %s, %s, %s of %s: %v\n%s", version, stage, machine, osName, err, lastLines(string(out), 20))
					}
				}
				for path, want := range expected(machine) {
					fi, err := os.Lstat(root + path)
					if err != nil {
						t.Errorf("Ignition %s, %s of %s: %v", version, machine, osName, err)
					} else if got := fmt.Sprintf("%04o", fi.Mode().Perm()); got != want {
						t.Errorf("Ignition %s, %s of %s: %s has mode %s, not %s", version, machine, osName, path, got, want)
					}
				}
				if _, err := os.Stat(root + "/etc/kimage/pki/ca.key"); (err == nil) != (machine == "nodes/k8s-01") {
					t.Errorf("%s: CA key there: %v", machine, err)
				}
				keys, err := os.ReadFile(root + "/home/core/.ssh/authorized_keys.d/ignition")
				if err != nil {
					keys, err = os.ReadFile(root + "/home/core/.ssh/authorized_keys")
				}
				if err != nil || !bytes.Contains(keys, []byte("AAAAC3NzaC1lZDI1NTE5AAAAIPVLc8BFNHkLTYlm1xFCIfgnxKPmJuvT0o3vPZzgYw3K")) {
					t.Errorf("Ignition %s, %s of %s: the key of core: %s, %v", version, machine, osName, keys, err)
				}
			}
		}
	}
}

// expected are some paths of a machine and their modes.
func expected(machine string) map[string]string {
	out := map[string]string{"/etc/kimage/node.json": "0644", "/etc/kimage/roster.json": "0644", "/etc/kimage/token": "0600", "/etc/kimage/pki/ca.crt": "0644", "/etc/containerd/certs.d/docker.io/hosts.toml": "0644"}
	if machine == "nodes/k8s-01" {
		out["/etc/kimage/pki/ca.key"], out["/etc/kimage/pki/etcd-peer.key"], out["/etc/hostname"] = "0600", "0600", "0644"
	}
	return out
}

// told asks a booted machine whether it was told what its config says.
func (n *node) told(wayOut bool) {
	n.t.Helper()
	if got := n.must("hostname", time.Minute); got != "k8s-01" {
		n.t.Errorf("the machine calls itself %q", got)
	}
	for path, want := range expected("nodes/k8s-01") {
		if got := n.must("stat -c '%a %U:%G' "+path, time.Minute); got != strings.TrimPrefix(want, "0")+" root:root" {
			n.t.Errorf("%s: %s", path, got)
		}
	}
	// OpenSSL on the machine: the files are whole, and belong together.
	n.must("cd /etc/kimage/pki && openssl verify -CAfile etcd-ca.crt etcd-server.crt etcd-agent.crt apiserver-etcd-client.crt && openssl verify -CAfile etcd-peer-ca.crt etcd-peer.crt", time.Minute)
	if out := n.must("ip -4 -o address show dev "+qemu.Interface+"; ip route; systemctl show -p Environment containerd", time.Minute); !strings.Contains(out, "10.0.2.15/24") || strings.Contains(out, "dynamic") || strings.Contains(out, "default via 10.0.2.2") != wayOut || !strings.Contains(out, "HTTP_PROXY=http://proxy.example:3128") {
		n.t.Errorf("network and proxy:\n%s", out)
	}
}

// TestKubeadmKeepsPKI: kubeadm init phase certs all on top of what a master was
// told makes the rest, and changes nothing that was there.
func TestKubeadmKeepsPKI(t *testing.T) {
	dir := configs(t, "flatcar-stable", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVLc8BFNHkLTYlm1xFCIfgnxKPmJuvT0o3vPZzgYw3K x", "")
	secrets := filepath.Join(filepath.Dir(dir), "cluster.secrets")
	pki := filepath.Join(t.TempDir(), "pki")
	if err := os.MkdirAll(pki+"/etcd", 0o755); err != nil {
		t.Fatal(err)
	}
	given := map[string]string{"ca.crt": "ca.crt", "ca.key": "ca.key", "front-proxy-ca.crt": "front-proxy-ca.crt", "front-proxy-ca.key": "front-proxy-ca.key", "sa.key": "sa.key", "sa.pub": "sa.pub",
		"etcd-ca.crt": "etcd/ca.crt", "nodes/k8s-01/apiserver-etcd-client.crt": "apiserver-etcd-client.crt", "nodes/k8s-01/apiserver-etcd-client.key": "apiserver-etcd-client.key"}
	before := map[string][]byte{}
	for from, to := range given {
		data, err := os.ReadFile(filepath.Join(secrets, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(pki, to), data, 0o600); err != nil {
			t.Fatal(err)
		}
		before[to] = data
	}
	config := filepath.Join(t.TempDir(), "kubeadm.yaml")
	text := fmt.Sprintf("apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 10.0.2.15}\n---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.37.2\n"+
		"certificatesDir: %s\ncontrolPlaneEndpoint: 127.0.0.1:7445\nencryptionAlgorithm: ECDSA-P256\netcd: {external: {endpoints: [https://127.0.0.1:7446], caFile: %[1]s/etcd/ca.crt, certFile: %[1]s/apiserver-etcd-client.crt, keyFile: %[1]s/apiserver-etcd-client.key}}\n", pki)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	need.Judge(t, program(t, "kubeadm"), "init", "phase", "certs", "all", "--config", config)
	for name, data := range before {
		if now, err := os.ReadFile(filepath.Join(pki, name)); err != nil || !bytes.Equal(now, data) {
			t.Errorf("kubeadm changed %s: %v", name, err)
		}
	}
	for leaf, ca := range map[string]string{"apiserver.crt": "ca.crt", "apiserver-kubelet-client.crt": "ca.crt", "front-proxy-client.crt": "front-proxy-ca.crt"} {
		need.Judge(t, "openssl", "verify", "-CAfile", filepath.Join(pki, ca), filepath.Join(pki, leaf))
	}
	// With external etcd kubeadm must make nothing of etcd's.
	if left, err := os.ReadDir(pki + "/etcd"); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

// program takes a program out of the image's payload.
func program(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	list := need.Judge(t, "sh", "-c", "debugfs -R 'ls -p /extensions' '"+volume(t, "KIMAGE")+"' 2>/dev/null")
	var raw string
	for line := range strings.Lines(list) {
		if f := strings.Split(line, "/"); len(f) > 5 && len(f[5]) == 68 && strings.HasSuffix(f[5], ".raw") {
			raw = f[5]
		}
	}
	need.Judge(t, "debugfs", "-R", "dump /extensions/"+raw+" "+dir+"/payload.raw", volume(t, "KIMAGE"))
	need.Judge(t, "unsquashfs", "-q", "-n", "-o", "1048576", "-d", dir+"/tree", dir+"/payload.raw", "usr/bin/"+name)
	return filepath.Join(dir, "tree/usr/bin", name)
}
