//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTopology3: three machines, all etcd members and workers, two of them
// masters, power on together and become a cluster; nobody runs a command.
func TestTopology3(t *testing.T) { topology(t, "3", 3, "make e2e", 25*time.Minute) }

// TestTopology6: two masters that are workers, a worker, three etcd members.
func TestTopology6(t *testing.T) { topology(t, "6", 6, "make e2e-all", 40*time.Minute) }

// TestTopology8: two masters, three workers, three etcd members.
func TestTopology8(t *testing.T) { topology(t, "8", 8, "make e2e-all", 50*time.Minute) }

func topology(t *testing.T, name string, machines int, target string, limit time.Duration) {
	enough(t, machines, target)
	c := powerOn(t, name)
	defer c.explain()
	if len(c.nodes) != machines {
		t.Fatalf("%d machines, not %d", len(c.nodes), machines)
	}
	c.awaitReady(slack * limit)
	c.table()
	c.checkNodes()
	c.checkEtcd()
	c.checkPods()
	for _, n := range c.nodes {
		if failed := n.must("systemctl --failed --no-legend --plain", 2*time.Minute); failed != "" {
			t.Errorf("units of %s failed:\n%s", n.name, failed)
		}
	}
}

const kubectl = "KUBECONFIG=/etc/kubernetes/admin.conf kubectl "

// checkNodes: every machine with a kubelet, and no other, is a Ready Node with
// the address of the cluster file, and CoreDNS runs.
func (c *cluster) checkNodes() {
	c.t.Helper()
	var want []string
	for _, n := range c.nodes {
		if n.kubelet() {
			want = append(want, n.name+" "+n.address+" True")
		}
	}
	m := c.first("master")
	got := m.must(kubectl+`get nodes -o jsonpath='{range .items[*]}{.metadata.name} {.status.addresses[?(@.type=="InternalIP")].address} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}'`, 2*time.Minute)
	if got != strings.Join(want, "\n") {
		c.t.Errorf("Nodes:\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	m.must(kubectl+"-n kube-system rollout status deployment/coredns --timeout=10m", 11*time.Minute)
	c.t.Logf("CoreDNS runs %s after power-on", time.Since(c.started).Round(time.Second))
}

// membersHealth asks every member, by way of a master's balancer.
const membersHealth = "etcdctl --endpoints=https://127.0.0.1:7446 --command-timeout=60s --cacert=/etc/kimage/pki/etcd-ca.crt --cert=/etc/kimage/pki/apiserver-etcd-client.crt --key=/etc/kimage/pki/apiserver-etcd-client.key endpoint health --cluster 2>&1"

// checkEtcd: every member is healthy, says etcdctl.
func (c *cluster) checkEtcd() {
	c.t.Helper()
	health := c.first("master").must(membersHealth, 3*time.Minute)
	for _, n := range c.nodes {
		if n.has("etcd") != strings.Contains(health, "https://"+n.address+":2379 is healthy") {
			c.t.Errorf("%s with %s:\n%s", n.name, n.roles, health)
		}
	}
}

// echo is a server on every worker that says which machine it runs on and who
// asked, and a Service before all of them. No image has a program for it; the
// machine's own /usr has one, and the smallest image is a frame for it.
const echo = `apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: PAUSE
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        command:
        - /usr/bin/python3
        - -c
        - |
          import http.server, os
          class Echo(http.server.BaseHTTPRequestHandler):
              def do_GET(self):
                  self.send_response(200)
                  self.end_headers()
                  self.wfile.write((os.environ["NODE"] + " " + self.client_address[0]).encode())
          http.server.ThreadingHTTPServer(("", 8080), Echo).serve_forever()
        readinessProbe: {tcpSocket: {port: 8080}}
        volumeMounts:
        - {name: usr, mountPath: /usr, readOnly: true}
        - {name: lib, mountPath: /lib, readOnly: true}
        - {name: lib64, mountPath: /lib64, readOnly: true}
      volumes:
      - {name: usr, hostPath: {path: /usr}}
      - {name: lib, hostPath: {path: /usr/lib}}
      - {name: lib64, hostPath: {path: /usr/lib64}}
`

// ask prints what each URL answers, or why it does not.
const ask = `import sys, urllib.request
for url in sys.argv[1:]:
    try:
        print(url, urllib.request.urlopen(url, timeout=30).read().decode())
    except Exception as e:
        print(url, "FAILED", e)
`

// pod is one of the echo servers.
type pod struct{ name, node, address string }

// checkPods: from a pod on every worker, the pods on all others answer by their
// addresses, and see the asking pod's own; the Service answers by its name, from
// more than one machine.
func (c *cluster) checkPods() {
	c.t.Helper()
	pods := c.startEcho()
	if want := c.count(func(n *clusterNode) bool { return n.has("worker") }); len(pods) != want {
		c.t.Fatalf("%d pods, not %d: %v", len(pods), want, pods)
	}
	names, repeated := []string{"http://echo/", "http://echo.default.svc.cluster.local/"}, 5
	for _, from := range pods {
		var urls []string
		want := map[string]string{}
		for _, to := range pods {
			url := "http://" + to.address + ":8080/"
			urls = append(urls, url)
			if to != from {
				want[url] = to.node + " " + from.address
			}
		}
		out := c.askFrom(from, urls)
		for range repeated {
			out += c.askFrom(from, append(names, names...))
		}
		answered := map[string]bool{} // machines, through the Service
		for line := range strings.Lines(out) {
			url, answer, _ := strings.Cut(strings.TrimSpace(line), " ")
			if strings.HasPrefix(answer, "FAILED") || want[url] != "" && answer != want[url] {
				c.t.Errorf("from %s on %s, %s says %q, not %q", from.name, from.node, url, answer, want[url])
			}
			if strings.Contains(url, "echo") {
				node, _, _ := strings.Cut(answer, " ")
				answered[node] = true
			}
		}
		if len(answered) < 2 {
			c.t.Errorf("from %s on %s the Service is answered by %s alone:\n%s", from.name, from.node, slices.Collect(maps.Keys(answered)), out)
		}
	}
	c.t.Logf("pods of %d machines reach each other %s after power-on", len(pods), time.Since(c.started).Round(time.Second))
}

// askFrom has a pod ask each URL, and returns the answers. Its stream goes through an
// API server, and is cut where that one does not answer for long; then it is asked
// again, as a person would.
func (c *cluster) askFrom(from pod, urls []string) string {
	c.t.Helper()
	const attempts = 3
	for attempt := 1; ; attempt++ {
		r, err := c.first("master").try(kubectl+"exec "+from.name+" -- /usr/bin/python3 -c '"+ask+"' "+strings.Join(urls, " "), 8*time.Minute)
		if err == nil && r.Status == 0 {
			return r.Stdout
		}
		if attempt == attempts {
			c.t.Fatalf("asking %v from %s: %v, status %d\n%s", urls, from.name, err, r.Status, lastLines(r.Stderr, 20))
		}
		c.t.Logf("asking %v from %s again: %v, %s", urls, from.name, err, lastLines(r.Stderr, 1))
	}
}

// startEcho returns the servers when all of them answer.
func (c *cluster) startEcho() (pods []pod) {
	c.t.Helper()
	m := c.first("master")
	image := m.must("ctr --namespace k8s.io images list --quiet | grep /pause: | head -n 1", 2*time.Minute)
	m.must(kubectl+"apply -f - <<'EOF'\n"+strings.Replace(echo, "PAUSE", image, 1)+"EOF\n", 3*time.Minute)
	m.must(kubectl+"rollout status daemonset/echo --timeout=15m", 16*time.Minute)
	out := m.must(kubectl+`get pods -l app=echo -o jsonpath='{range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP}{"\n"}{end}'`, 2*time.Minute)
	for line := range strings.Lines(out) {
		var p pod
		if _, err := fmt.Sscan(line, &p.name, &p.node, &p.address); err != nil {
			c.t.Fatalf("%q: %v", line, err)
		}
		pods = append(pods, p)
	}
	return pods
}
