//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// libvirtConfig is qemu.conf where no service manager, control groups or virtlogd are.
const libvirtConfig = `security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
`

// insideLibvirt makes the directories that libvirtd wants, of DIR, and runs it. What it
// leaves behind becomes the shell's, which waits for whatever ends.
const insideLibvirt = `
ip link set lo up
for d in run lib etc cache log; do mkdir -p "$1/$d"; done
for d in run:/run/libvirt lib:/var/lib/libvirt etc:/etc/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
	mkdir -p "${d#*:}"
	mount --bind "$1/${d%%:*}" "${d#*:}"
done
mkdir -p /var/lib/libvirt/images /var/lib/libvirt/qemu /var/lib/libvirt/dnsmasq /etc/libvirt/qemu
cp "$1/qemu.conf" /etc/libvirt/
libvirtd --pid-file /run/libvirt/libvirtd.pid &
wait
`

// vagrantHost is a computer of its own as far as networks and libvirt go, with a clone
// of this repository.
type vagrantHost struct {
	t     *testing.T
	pid   string // of the first process in its namespaces
	clone string
	home  string // Vagrant's
	env   []string
}

func newVagrantHost(t *testing.T, env ...string) *vagrantHost {
	t.Helper()
	need.Root(t, "a network namespace")
	for program, pkg := range map[string]string{"vagrant": "vagrant", "libvirtd": "libvirt-daemon-system", "dnsmasq": "dnsmasq-base", "setfacl": "acl", "virsh": "libvirt-clients"} {
		need.Program(t, program, pkg)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) { // libvirt's machines run as somebody else
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	libvirt := filepath.Join(dir, "libvirt")
	h := &vagrantHost{t: t, clone: filepath.Join(dir, "clone"), home: filepath.Join(dir, "home"), env: env}
	if err := os.MkdirAll(libvirt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(libvirt, "qemu.conf"), []byte(libvirtConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("git", "clone", "-q", root, h.clone).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	daemon := exec.Command("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "bash", "-ec", insideLibvirt, "bash", libvirt)
	var words bytes.Buffer
	daemon.Stdout, daemon.Stderr = &words, &words
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.try("vagrant", "destroy", "-f")
		daemon.Process.Kill() // and all that is in the namespaces
		daemon.Wait()
		if t.Failed() {
			t.Log(lastLines(words.String(), 40))
		}
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		first, _ := exec.Command("pgrep", "-P", fmt.Sprint(daemon.Process.Pid)).Output()
		h.pid = strings.TrimSpace(string(first))
		if _, err := h.try("virsh", "-c", "qemu:///system", "list"); err == nil {
			return h
		}
		if time.Now().After(end) {
			t.Fatalf("libvirtd does not answer:\n%s", words.String())
		}
	}
}

// try runs a program on the host, in the clone.
func (h *vagrantHost) try(argv ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--target", h.pid, "--net", "--mount", "--pid", "--", "sh", "-c", `cd "$0"; exec "$@"`, h.clone}, argv...)...)
	cmd.Env = append(append(os.Environ(), "VAGRANT_HOME="+h.home, "VAGRANT_DEFAULT_PROVIDER=libvirt", "VAGRANT_CHECKPOINT_DISABLE=1"), h.env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (h *vagrantHost) run(argv ...string) string {
	h.t.Helper()
	started := time.Now()
	out, err := h.try(argv...)
	h.t.Logf("%s: %s\n%s", strings.Join(argv, " "), time.Since(started).Round(time.Second), lastLines(out, 60))
	if err != nil {
		h.t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return out
}

// awaitNodes waits until three Nodes are Ready as who logs in to the first machine sees
// it, with the addresses of the private network.
func (h *vagrantHost) awaitNodes() {
	h.t.Helper()
	var out string
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Second) {
		out, _ = h.try("vagrant", "ssh", "k8s-01", "-c", "kubectl get nodes -o wide --no-headers")
		if len(regexp.MustCompile(`(?m)^k8s-0[123] +Ready .* 192\.168\.60\.10[123] `).FindAllString(out, -1)) == 3 {
			return
		}
	}
	h.t.Fatalf("not three Nodes that are Ready:\n%s", out)
}

// quickStart is what README tells people to type.
func quickStart(t *testing.T) (lines []string) {
	t.Helper()
	data, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(data), "\n### With Vagrant\n")
	if !ok {
		t.Fatal("README says nothing of Vagrant")
	}
	for line := range strings.Lines(section) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			lines = append(lines, strings.TrimSpace(command))
		} else if len(lines) > 0 {
			break
		}
	}
	if len(lines) < 3 || !slices.Contains(lines, "vagrant up") {
		t.Fatalf("README's quick start is %q", lines)
	}
	return lines
}

// TestVagrant: from a clone to a cluster of three by the real vagrant and libvirt, with
// the edit that people know; halt, reload and destroy do what they say.
func TestVagrant(t *testing.T) {
	if os.Getenv("KIMAGE_E2E_VAGRANT") == "" {
		t.Skip("asked for by make e2e-vagrant")
	}
	kubectlProgram := need.Built(t, "kubectl")
	h := newVagrantHost(t, "KIMAGE_NUM_INSTANCES=2")
	said := ""
	for _, line := range quickStart(t) {
		out := h.run("bash", "-ec", line)
		if said += out; strings.HasPrefix(line, "vagrant ssh") && strings.Count(out, " Ready ") != 3 {
			t.Errorf("%s:\n%s", line, out)
		}
	}
	if n := strings.Count(said, "[5/5]"); n != 1 {
		t.Errorf("%d bakes", n)
	}
	h.awaitNodes()
	kubeconfig := filepath.Join(h.clone, ".vagrant/kimage/kubeconfig")
	if out := h.run(kubectlProgram, "--kubeconfig", kubeconfig, "get", "nodes"); strings.Count(out, " Ready ") != 3 {
		t.Errorf("kubectl on the host:\n%s", out)
	}
	h.run("bin/kimage", "status", "-f", ".vagrant/kimage/cluster.yaml")

	// Switched off and on again it is the same cluster.
	uid := func() string {
		t.Helper()
		return strings.TrimSpace(h.run(kubectlProgram, "--kubeconfig", kubeconfig, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"))
	}
	was := uid()
	h.run("vagrant", "halt")
	h.run("vagrant", "up")
	h.awaitNodes()
	h.run("vagrant", "reload", "k8s-02")
	h.awaitNodes()

	// One that was destroyed comes back into its cluster.
	if out := h.run("vagrant", "destroy", "-f", "k8s-03"); strings.Contains(out, "The cluster is gone") {
		t.Error("one of three was destroyed, and the cluster with it")
	}
	h.run("vagrant", "up", "k8s-03")
	h.awaitNodes()
	if now := uid(); now != was {
		t.Errorf("the cluster was %s and is %s", was, now)
	}

	if out := h.run("vagrant", "destroy", "-f"); strings.Count(out, "The cluster is gone with its last machine") != 1 {
		t.Error("it is not said that the cluster is gone")
	}
	if _, err := os.Stat(filepath.Join(h.clone, ".vagrant/kimage")); !os.IsNotExist(err) {
		t.Errorf("secrets are left: %v", err)
	}
	if out := h.run("virsh", "-c", "qemu:///system", "list", "--all", "--name"); strings.TrimSpace(out) != "" {
		t.Errorf("machines are left: %s", out)
	}
}

// TestVagrantFlatcar: three lines in a clone, and what Flatcar's server has is resolved,
// verified, downloaded, baked and booted: here a lookalike, signed by a key that an OS file
// names in place of Flatcar's.
func TestVagrantFlatcar(t *testing.T) {
	if os.Getenv("KIMAGE_E2E_VAGRANT") == "" {
		t.Skip("asked for by make e2e-vagrant")
	}
	server := flatcarServer(t, lookalike(t, "flatcar"))
	h := newVagrantHost(t, "KIMAGE_MIRROR="+server.Mirror, "KIMAGE_OS_PATH="+server.OSPath)
	h.run("bash", "-ec", `sed -i 's/\$os =.*/\$os = \"coreos-stable\"/g' Vagrantfile`)
	if out := h.run("vagrant", "up"); !strings.Contains(out, "stable.release.flatcar-linux.net/amd64-usr/4800.2.0/flatcar_production_qemu_image.img") {
		t.Error("it is not said which image was taken")
	}
	var out string
	for end := time.Now().Add(5 * time.Minute); !strings.Contains(out, " Ready ") && time.Now().Before(end); time.Sleep(5 * time.Second) {
		out, _ = h.try("vagrant", "ssh", "k8s-01", "-c", ". /etc/os-release; echo $ID; kubectl get nodes --no-headers")
	}
	if !strings.Contains(out, "flatcar") || !strings.Contains(out, " Ready ") {
		t.Error(out)
	}
	h.run("vagrant", "destroy", "-f")
}
