//go:build e2e

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// up is a cluster of kimage up.
type up struct {
	t           *testing.T
	dir, kimage string
}

func newUp(t *testing.T) up {
	t.Helper()
	kimage, err := filepath.Abs("../bin/kimage")
	if err != nil {
		t.Fatal(err)
	}
	u := up{t, t.TempDir(), kimage}
	t.Cleanup(func() { u.command("down").Run() })
	return u
}

func (u up) command(args ...string) *exec.Cmd {
	cmd := exec.Command(u.kimage, args...)
	cmd.Dir = u.dir
	return cmd
}

// run is a command that has to succeed.
func (u up) run(args ...string) string {
	u.t.Helper()
	cmd := u.command(args...)
	var words strings.Builder
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		u.t.Fatalf("kimage %s: %v\n%s\n%s", strings.Join(args, " "), err, words.String(), lastLines(string(out), 60))
	}
	u.t.Logf("kimage %s\n%s%s", strings.Join(args, " "), words.String(), lastLines(string(out), 30))
	return string(out)
}

// down ends it, and looks for what is left.
func (u up) down() {
	u.t.Helper()
	u.run("down")
	if left, err := filepath.Glob(filepath.Join(u.dir, "*.local")); err != nil || len(left) > 0 {
		u.t.Errorf("left are %v, %v", left, err)
	}
	if left := need.Processes(u.t, u.dir); len(left) > 0 {
		u.t.Errorf("processes %v are left", left)
	}
}

// TestUp: kimage up makes a cluster on this computer, which is there after it has
// ended: kubectl, SSH, status and the machine's own words; kimage down leaves nothing.
func TestUp(t *testing.T) {
	t.Parallel()
	kubectlProgram := need.Built(t, "kubectl")
	u := newUp(t)
	run := u.run
	started := time.Now()
	out := run("up", "--os", system, "--image", image, "--paced", "--timeout", "50m")
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
	u.down()
}

// TestUp3: a cluster of three by kimage up. A machine that is etcd member and worker is
// destroyed and booted fresh under its name; the cluster has three members again and
// nothing is left of the old one.
func TestUp3(t *testing.T) {
	upAndReplace(t, "3", "k8s-03", "k8s-01", "make e2e", 45*time.Minute, false)
}

// TestReplacedMaster: as TestUp3, of a machine that is etcd member and master, so that
// one API server is left. On few processors that one has to serve a machine that joins and
// needs all of them.
func TestReplacedMaster(t *testing.T) {
	allAsked(t)
	upAndReplace(t, "3", "k8s-01", "k8s-02", "make e2e-all", 45*time.Minute, true)
}

// TestUp6 and TestUp8: as TestUp3, with etcd on machines of its own, of which one is
// destroyed.
func TestUp6(t *testing.T) {
	upAndReplace(t, "6", "k8s-05", "k8s-01", "make e2e-all", 75*time.Minute, false)
}

func TestUp8(t *testing.T) {
	upAndReplace(t, "8", "k8s-07", "k8s-01", "make e2e-all", 90*time.Minute, false)
}

// upAndReplace has judged say whether the time without an API server is: where a master is
// replaced. Without that, it is the time for which this computer is too slow.
func upAndReplace(t *testing.T, topology, replaced, master, by string, patience time.Duration, judged bool) {
	machines, err := strconv.Atoi(topology)
	if err != nil {
		t.Fatal(err)
	}
	enough(t, machines, by)
	u := newUp(t)
	u.run("up", "--topology", topology, "--os", system, "--image", image, "--timeout", patience.String())
	watch := u.watchAPI()
	u.run("replace", replaced, "--image", image, "--timeout", patience.String())
	u.withoutAPI(watch(), judged)
	health := u.run("ssh", master, "sudo "+membersHealth)
	if strings.Count(health, "is healthy") != 3 || strings.Contains(health, "unhealthy") {
		t.Errorf("etcd:\n%s", health)
	}
	u.run("status", "--wait", "--timeout", "15m")
	u.down()
}

// withoutAPI tells the longest time in which no API server answered. If it is judged it may
// be longestGap of machines that are as fast as this one.
func (u up) withoutAPI(gap time.Duration, judged bool) {
	u.t.Helper()
	limit := time.Duration(u.slowness() * float64(longestGap))
	u.t.Logf("the longest time without an API server: %s; %s is long for machines as slow as these", gap.Round(100*time.Millisecond), limit.Round(time.Second))
	if judged && gap > limit {
		u.t.Error("that is too long")
	}
}

// longestGap is how long no API server may answer, of machines that are as fast as
// this one and have it for themselves.
const longestGap = 10 * time.Second

// slowness is how much slower the cluster's machines are: an emulated processor is
// thirteen times as slow for Go programs, and there are more of them than real ones.
func (u up) slowness() float64 {
	u.t.Helper()
	var spec struct {
		Accel    string
		Machines []struct{ CPUs int }
	}
	data, err := os.ReadFile(filepath.Join(u.dir, "cluster.local/machines.json"))
	if err == nil {
		err = json.Unmarshal(data, &spec)
	}
	if err != nil {
		u.t.Fatal(err)
	}
	cpus := 0
	for _, m := range spec.Machines {
		cpus += m.CPUs
	}
	share := max(1, float64(cpus)/float64(runtime.NumCPU()))
	if spec.Accel == "kvm" {
		return share
	}
	return 13 * share
}

// watchAPI asks every second whether an API server is ready, over one connection as
// long as it lives, until stop, which tells the longest time in which none was.
func (u up) watchAPI() (stop func() time.Duration) {
	u.t.Helper()
	config, err := os.ReadFile(filepath.Join(u.dir, "cluster.local/kubeconfig"))
	if err != nil {
		u.t.Fatal(err)
	}
	server := regexp.MustCompile(`https://127\.0\.0\.1:[0-9]+`).FindString(string(config))
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	end, longest := make(chan struct{}), make(chan time.Duration)
	go func() {
		var gap time.Duration
		for last := time.Now(); ; {
			if a, err := client.Get(server + "/readyz"); err == nil {
				io.Copy(io.Discard, a.Body)
				a.Body.Close()
				if a.StatusCode == http.StatusOK {
					gap, last = max(gap, time.Since(last)), time.Now()
				}
			}
			select {
			case <-end:
				longest <- max(gap, time.Since(last))
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return func() time.Duration {
		close(end)
		return <-longest
	}
}
