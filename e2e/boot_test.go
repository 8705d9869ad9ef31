//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
)

// settled waits for the end of booting and checks what every boot promises.
func (n *node) settled() {
	n.t.Helper()
	started := time.Now()
	n.until("running", "systemctl is-system-running --wait || true", 8*time.Minute)
	if failed := n.must("systemctl --failed --no-legend --plain", time.Minute); failed != "" {
		n.t.Errorf("units failed:\n%s", failed)
	}
	var status struct {
		ImageID string
		OK      bool
	}
	out := n.must("kimage-agent status --json", 2*time.Minute)
	if err := json.Unmarshal([]byte(out), &status); err != nil || !status.OK || !regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(status.ImageID) {
		n.t.Fatalf("status (%v):\n%s", err, out)
	}
	n.t.Logf("settled after %s more", time.Since(started).Round(time.Second))
}

func (n *node) reboot() {
	n.t.Helper()
	before := n.must("cat /proc/sys/kernel/random/boot_id", time.Minute)
	n.try("systemctl reboot", time.Minute)
	deadline := time.Now().Add(slack * 6 * time.Minute)
	for time.Now().Before(deadline) {
		r, err := n.try("cat /proc/sys/kernel/random/boot_id", 90*time.Second)
		if err == nil && r.Status == 0 && strings.TrimSpace(r.Stdout) != before {
			return
		}
		time.Sleep(3 * time.Second)
	}
	n.t.Fatal("the machine did not come back from its reboot")
}

const kubeadmConfig = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
nodeRegistration: {taints: []}
timeouts: {controlPlaneComponentHealthCheck: 15m0s, kubernetesAPICall: 5m0s, etcdAPICall: 5m0s, kubeletHealthCheck: 10m0s}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: VERSION
networking: {podSubnet: 10.244.0.0/16}
`

const podManifest = `apiVersion: v1
kind: Pod
metadata: {name: preloaded}
spec:
  containers:
  - {name: pause, image: "PAUSE", imagePullPolicy: Never}
`

// TestKubeadm: a machine with no network boots by BIOS, becomes a cluster by
// hand, runs a pod, and is still a node after a reboot. In CI, where four machines become
// clusters by themselves, its payload is damaged instead.
func TestKubeadm(t *testing.T) {
	t.Parallel()
	n := boot(t, qemu.BIOS, 4096)
	n.settled()

	t.Run("read-only /usr", func(t *testing.T) {
		if r, err := n.try("touch /usr/bin/x", time.Minute); err != nil || r.Status == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("touch /usr/bin/x: %+v, %v", r, err)
		}
	})
	t.Run("volume plugins", func(t *testing.T) {
		n.must("touch /usr/libexec/kubernetes/kubelet-plugins/volume/exec/x && rm /var/lib/kubelet/volumeplugins/x", time.Minute)
	})
	t.Run("data partition", func(t *testing.T) {
		if mib := n.must("df --output=size -BM /var/lib/kimage | tail -1", time.Minute); len(strings.TrimSpace(mib)) < len("13000M") {
			t.Errorf("KIMAGE has %s on a disk of 20 GiB", mib)
		}
		// fdisk refuses a table whose second copy is not at the end of the disk.
		if out := n.must("sfdisk --verify /dev/vda 2>&1", time.Minute); !strings.Contains(out, "No errors detected") {
			t.Error(out)
		}
		if out := n.must("findmnt -no PROPAGATION /var/lib/kimage /var/lib/kubelet 2>/dev/null || findmnt -no TARGET,PROPAGATION", time.Minute); !strings.Contains(out, "private") {
			t.Errorf("KIMAGE is not a private mount:\n%s", out)
		}
	})
	t.Run("images", func(t *testing.T) {
		have := n.must("crictl images -o json", time.Minute)
		for _, ref := range strings.Fields(n.must("kubeadm config images list --kubernetes-version $(kubeadm version -o short)", time.Minute)) {
			if !strings.Contains(have, `"`+ref+`"`) {
				t.Errorf("%s is not in the image", ref)
			}
		}
	})

	if os.Getenv("CI") != "" {
		n.flippedByte() // elsewhere another machine's byte
		return
	}
	version := n.must("kubeadm version -o short", time.Minute)
	n.must("cat >/root/kubeadm.yaml <<'EOF'\n"+strings.ReplaceAll(kubeadmConfig, "VERSION", version)+"EOF", time.Minute)
	started := time.Now()
	n.must("kubeadm init --config /root/kubeadm.yaml >/root/init.log 2>&1 || { tail -n 40 /root/init.log; exit 1; }", 20*time.Minute)
	t.Logf("kubeadm init took %s", time.Since(started).Round(time.Second))
	const kubectl = "KUBECONFIG=/etc/kubernetes/admin.conf kubectl "
	n.until("flannel", kubectl+"apply -f /usr/share/kimage/flannel.yaml", 3*time.Minute)
	n.must(kubectl+"wait --for=condition=Ready nodes --all --timeout=10m", 11*time.Minute)
	t.Logf("Ready %s after kubeadm init began", time.Since(started).Round(time.Second))
	pause := n.must("kubeadm config images list --kubernetes-version "+version+" | grep /pause:", time.Minute)
	n.until("created", "cat <<'EOF' | "+kubectl+"apply -f -\n"+strings.ReplaceAll(podManifest, "PAUSE", pause)+"EOF", 3*time.Minute)
	n.must(kubectl+"wait --for=condition=Ready pod/preloaded --timeout=8m || { "+kubectl+"get pods,nodes -A --no-headers; "+kubectl+"describe pod preloaded | tail -n 12; exit 1; }", 9*time.Minute)

	n.reboot()
	n.settled()
	n.until(" Ready ", kubectl+"get nodes --no-headers", 6*time.Minute)
}

// flippedByte changes one byte of the machine's payload: at its next boot it says so instead
// of starting Kubernetes.
func (n *node) flippedByte() {
	t := n.t
	t.Helper()
	// A byte in the middle of the programs, written below the file system.
	n.must(`file=$(readlink -f /var/lib/kimage/extensions/current.raw)
		block=$(debugfs -R "bmap ${file#/var/lib/kimage} 20000" /dev/disk/by-partlabel/KIMAGE 2>/dev/null)
		printf '\377\376\375' | dd of=/dev/disk/by-partlabel/KIMAGE bs=1 seek=$((block * 4096 + 100)) conv=notrunc status=none && sync`, time.Minute)
	n.try("systemctl poweroff", time.Minute)
	if err := n.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "check", n.Disk()).CombinedOutput(); err != nil {
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
	n.start()
	n.until("failed", "systemctl is-active kimage-start.service || true", 5*time.Minute)
	if !strings.Contains(n.Console(), "Kubernetes is not started") {
		t.Error("the console does not say that Kubernetes is not started")
	}
	if out := n.must("systemctl is-active containerd kubelet kimage.target || true", time.Minute); strings.Contains(out, "\nactive") || strings.HasPrefix(out, "active") {
		t.Errorf("something of Kubernetes runs:\n%s", out)
	}
	if r, err := n.try("kimage-agent status --json", 2*time.Minute); err != nil || r.Status == 0 {
		t.Errorf("status of a damaged node: %+v, %v", r, err)
	}
}
