//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// writer writes to a cluster by kubectl, and remembers what was acknowledged.
type writer struct {
	kubectl []string
	stop    chan struct{}
	ended   sync.WaitGroup
	mu      sync.Mutex
	written []string
}

func startWriter(kubectl ...string) *writer {
	w := &writer{kubectl: kubectl, stop: make(chan struct{})}
	w.ended.Go(func() {
		for n := 0; ; n++ {
			name := fmt.Sprintf("acknowledged-%04d", n)
			if _, err := w.try("create", "configmap", name, "--request-timeout=60s"); err == nil {
				w.mu.Lock()
				w.written = append(w.written, name)
				w.mu.Unlock()
			}
			select {
			case <-w.stop:
				return
			case <-time.After(10 * time.Second):
			}
		}
	})
	return w
}

func (w *writer) try(args ...string) (string, error) {
	argv := append(slices.Clone(w.kubectl), args...)
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	return string(out), err
}

// until asks until what is asked for is there.
func (w *writer) until(t *testing.T, limit time.Duration, args ...string) string {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Second) {
		out, err := w.try(args...)
		if err == nil {
			return out
		}
		if time.Now().After(end) {
			t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
		}
	}
}

// TestTheseusMachines: three machines that are all etcd members, two of them masters,
// and a worker. Each of the three is destroyed and one of another name and address
// takes its place, one after the other; a client writes meanwhile. Then the worker, which
// nobody touched, is switched off and on. It is the same cluster, and everything
// acknowledged is in it.
func TestTheseusMachines(t *testing.T) {
	enough(t, 4, "make e2e-all")
	u := newUp(t)
	const patience = "60m"
	file := filepath.Join(u.dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(u.run("cluster", "new", "--topology", "3", "--workers", "1", "--os", system)), 0o644); err != nil {
		t.Fatal(err)
	}
	u.run("up", "--image", image, "--timeout", patience)
	w := startWriter(need.Built(t, "kubectl"), "--kubeconfig", filepath.Join(u.dir, "cluster.local/kubeconfig"))
	identity := func() string {
		t.Helper()
		return w.until(t, 10*time.Minute, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
	}
	etcd := func(on, command string) string {
		t.Helper()
		return u.run("ssh", on, "sudo etcdctl --endpoints=https://127.0.0.1:7446 --command-timeout=60s --cacert=/etc/kimage/pki/etcd-ca.crt --cert=/etc/kimage/pki/apiserver-etcd-client.crt --key=/etc/kimage/pki/apiserver-etcd-client.key "+command)
	}
	clusterID := func(on string) string {
		t.Helper()
		return regexp.MustCompile(`"cluster_id":[0-9]+`).FindString(etcd(on, "member list -w json"))
	}
	was, wasEtcd := identity(), clusterID("k8s-01")
	if wasEtcd == "" {
		t.Fatal("etcd does not say which cluster it is")
	}
	for i := 1; i <= 3; i++ {
		old, next := fmt.Sprintf("k8s-%02d", i), fmt.Sprintf("k8s-%02d", 10+i)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer("name: "+old, "name: "+next, fmt.Sprintf("172.17.8.%d", 100+i), fmt.Sprintf("172.17.8.%d", 110+i), fmt.Sprintf("17:08:%02d", i), fmt.Sprintf("17:08:%d", 10+i)).Replace(string(data))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		u.run("down", old)
		u.run("up", "--image", image, "--timeout", patience)
		t.Logf("%s has taken the place of %s after %s", next, old, time.Since(started).Round(time.Second))
	}
	u.run("ssh", "k8s-04", "sudo systemctl reboot || true")
	time.Sleep(time.Minute) // what it was before is not what it is now
	u.run("status", "--wait", "--timeout", "20m")

	close(w.stop)
	w.ended.Wait()
	if now := identity(); now != was {
		t.Errorf("the cluster was %s and is %s", was, now)
	}
	if now := clusterID("k8s-11"); now != wasEtcd {
		t.Errorf("etcd was %s and is %s", wasEtcd, now)
	}
	members := etcd("k8s-11", "member list")
	for i := 1; i <= 3; i++ {
		if !strings.Contains(members, fmt.Sprintf("https://172.17.8.%d:2380", 110+i)) || strings.Contains(members, fmt.Sprintf("172.17.8.%d:", 100+i)) || strings.Count(members, "started") != 3 {
			t.Errorf("etcd's members:\n%s", members)
		}
	}
	for _, master := range []string{"k8s-11", "k8s-12"} {
		if to := u.run("ssh", master, "sudo ss -Htn state established dport = :2379"); strings.TrimSpace(to) == "" || regexp.MustCompile(`172\.17\.8\.10[1-3]:2379`).MatchString(to) {
			t.Errorf("etcd connections of %s:\n%s", master, to)
		}
	}
	list := u.run("ssh", "k8s-04", "sudo cat /var/lib/kimage/state/agent/apiservers.json")
	for address, want := range map[string]bool{"172.17.8.111": true, "172.17.8.112": true, "172.17.8.101": false, "172.17.8.102": false} {
		if strings.Contains(list, address) != want {
			t.Errorf("the worker's API servers: %s", list)
		}
	}
	have := strings.Fields(w.until(t, 10*time.Minute, "get", "configmaps", "-o", "jsonpath={.items[*].metadata.name}"))
	for _, name := range w.written {
		if !slices.Contains(have, name) {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	t.Logf("%d acknowledged writes are there", len(w.written))
	// The Nodes of machines that left go when they have been off for ten minutes.
	for end := time.Now().Add(30 * time.Minute); ; time.Sleep(15 * time.Second) {
		nodes := w.until(t, 10*time.Minute, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
		if nodes == "k8s-04 k8s-11 k8s-12 k8s-13" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the Nodes: %s", nodes)
		}
	}
	u.down()
}

// TestUpgradeMachines: three machines of the last minor version but one are replaced, one
// after the other and the masters first, by machines of the newest; an API server
// answers all the time.
func TestUpgradeMachines(t *testing.T) {
	enough(t, 3, "make e2e-all")
	allAsked(t)
	u := newUp(t)
	const patience = "60m"
	versions := strings.Fields(u.run("list", "kubernetes"))
	if len(versions) < 2 {
		t.Fatalf("the catalogue has %q", versions)
	}
	newer, older := versions[0], versions[1]
	file := filepath.Join(u.dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(u.run("cluster", "new", "--topology", "3", "--os", system, "--kubernetes", older)), 0o644); err != nil {
		t.Fatal(err)
	}
	u.run("up", "--timeout", patience)
	data, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.Replace(string(data), "kubernetes: "+older, "kubernetes: "+newer, 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	watch := u.watchAPI()
	for _, name := range []string{"k8s-01", "k8s-02", "k8s-03"} {
		started := time.Now()
		u.run("replace", name, "--timeout", patience)
		t.Logf("%s is of %s after %s", name, newer, time.Since(started).Round(time.Second))
	}
	u.withoutAPI(watch(), true)
	nodes := (&writer{kubectl: []string{need.Built(t, "kubectl"), "--kubeconfig", filepath.Join(u.dir, "cluster.local/kubeconfig")}}).until(t, 10*time.Minute, "get", "nodes")
	if len(regexp.MustCompile(`(?m)^k8s-0[123] +Ready .* `+regexp.QuoteMeta(newer)+`$`).FindAllString(nodes, -1)) != 3 {
		t.Errorf("the Nodes:\n%s", nodes)
	}
	u.down()
}
