//go:build e2e

package e2e

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestUp: kimage up makes a cluster on this computer, which is there after it has
// ended: kubectl, SSH, status and the machine's own words; kimage down leaves nothing.
func TestUp(t *testing.T) {
	kubectlProgram := need.Built(t, "kubectl")
	kimage, err := filepath.Abs("../bin/kimage")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(kimage, args...)
		cmd.Dir = dir
		var words strings.Builder
		cmd.Stderr = &words
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("kimage %s: %v\n%s\n%s", strings.Join(args, " "), err, words.String(), out)
		}
		t.Logf("kimage %s\n%s%s", strings.Join(args, " "), words.String(), out)
		return string(out)
	}
	t.Cleanup(func() {
		cmd := exec.Command(kimage, "down")
		cmd.Dir = dir
		cmd.Run()
	})
	started := time.Now()
	out := run("up", "--os", system, "--image", image, "--timeout", "15m")
	t.Logf("Ready after %s", time.Since(started).Round(time.Second))
	if !regexp.MustCompile(`(?m)^k8s-01 +Ready +control-plane,worker +v1\.`).MatchString(out) {
		t.Errorf("kimage up shows\n%s", out)
	}
	_, config, ok := strings.Cut(out, "export KUBECONFIG=")
	if !ok {
		t.Fatalf("kimage up names no kubeconfig:\n%s", out)
	}
	kubectl := exec.Command(kubectlProgram, "--kubeconfig", strings.TrimSpace(config), "get", "nodes", "-o", "wide")
	if out, err := kubectl.CombinedOutput(); err != nil || !strings.Contains(string(out), "172.17.8.101") {
		t.Errorf("kubectl: %v\n%s", err, out)
	}
	if out := run("status"); !regexp.MustCompile(`(?m)^k8s-01 +etcd,master,worker +on +ready `).MatchString(out) {
		t.Errorf("kimage status shows\n%s", out)
	}
	if out := run("ssh", "k8s-01", "hostname; sudo kimage-agent status >/dev/null && echo well"); out != "k8s-01\nwell\n" {
		t.Errorf("kimage ssh: %q", out)
	}
	if out := run("logs", "k8s-01"); !strings.Contains(out, "phase ready") {
		t.Errorf("the journal: %d bytes without the agent's phases", len(out))
	}
	run("down")
	if left, err := filepath.Glob(filepath.Join(dir, "*.local")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	if left := need.Processes(t, dir); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}
