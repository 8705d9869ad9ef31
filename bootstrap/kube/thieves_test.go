//go:build integration

package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// byToken talks to m1 with the token of a machine, or pool.
func (c *cluster) byToken(pool bool, name string) *kubeapi.Client {
	key := []byte(strings.TrimSpace(string(c.secrets[nodeconf.JoinKey])))
	return c.as(m1, kubeapi.Config{Token: nodeconf.Token(key, pool, name)})
}

// outcome is what became of a request for name: "approved", "denied: WHY", or
// "pending" after some time.
func (c *cluster) outcome(client *kubeapi.Client, name string, patience time.Duration) string {
	c.Helper()
	made, _, err := request(c.Context(), client, name)
	if err != nil {
		return err.Error()
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		var r struct {
			Status struct {
				Conditions []struct{ Type, Message, Reason string }
			}
		}
		if err := c.admin(m1).Get(c.Context(), csrPath+"/"+made, nil, &r); err != nil {
			c.Fatal(err)
		}
		for _, x := range r.Status.Conditions {
			return strings.ToLower(x.Type) + ": " + x.Message + " (" + x.Reason + ")"
		}
	}
	return "pending"
}

// thieves try what a token must not do. m1, m2, w1 and a machine of the pool
// are Ready; w2 was never seen. A real controller manager runs, with its own approver.
func (c *cluster) thieves() {
	c.Helper()
	w1, w2, pool := c.byToken(false, "w1"), c.byToken(false, "w2"), c.byToken(true, "pool")
	for _, tt := range []struct {
		what   string
		client *kubeapi.Client
		name   string
		want   string
	}{
		{"w1 asks to be a master", w1, "m1", "denied: the token of w1 asked for m1"},
		{"w1 asks to be a worker that is not there", w1, "w2", "denied: the token of w1 asked for w2"},
		{"w1 asks to be itself a second time", w1, "w1", "pending"},
		{"a pool's asks to be a master", pool, "m2", "denied: the token of pool pool asked for m2"},
		{"a pool's asks to be a named worker", pool, "w2", "denied: the token of pool pool asked for w2"},
		{"w2 asks to be itself", w2, "w2", "approved: the token of w2 asked for w2 (KimageToken)"},
	} {
		got := c.outcome(tt.client, tt.name, 5*time.Second)
		c.Logf("%s: %s", tt.what, got)
		if !strings.HasPrefix(got, tt.want) {
			c.Errorf("%s: %s, want %s", tt.what, got, tt.want)
		}
	}
	c.noNewNode()
	// A token is its user, and may read what kubeadm join reads.
	var who struct {
		Status struct {
			UserInfo struct {
				Username string
				Groups   []string
			}
		}
	}
	if err := w1.Create(c.Context(), "/apis/authentication.k8s.io/v1/selfsubjectreviews", object{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}, &who); err != nil {
		c.Fatal(err)
	}
	if !slices.Contains(who.Status.UserInfo.Groups, JoinGroup+":node:w1") || slices.Contains(who.Status.UserInfo.Groups, "system:bootstrappers:kubeadm:default-node-token") {
		c.Errorf("w1's token is %+v", who.Status.UserInfo)
	}
	for path, want := range map[string]int{
		"/api/v1/namespaces/kube-system/configmaps/kubeadm-config": 0, "/api/v1/namespaces/kube-system/configmaps/kubelet-config": 0,
		"/api/v1/namespaces/kube-system/configmaps/kube-proxy": 0, "/api/v1/nodes/m1": 0,
		"/api/v1/nodes": 403, "/api/v1/namespaces/kube-system/secrets": 403, "/api/v1/namespaces/kube-system/configmaps/coredns": 403, "/api/v1/pods": 403,
	} {
		err := w1.Get(c.Context(), path, nil, nil)
		if (want == 0) != (err == nil) || want != 0 && !kubeapi.Is(err, want) {
			c.Errorf("w1's token reads %s: %v, want %d", path, err, want)
		}
	}
}

// noNewNode: an approved certificate alone makes no Node.
func (c *cluster) noNewNode() {
	if err := c.admin(m1).Get(c.Context(), "/api/v1/nodes/w2", nil, nil); !kubeapi.Is(err, 404) {
		c.Errorf("Node w2: %v", err)
	}
}

// again provisions a second time, from nothing but its own record's absence,
// and looks for changes; then with another join key.
func (c *cluster) again() {
	c.Helper()
	watched := []string{"/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds", "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg",
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/kimage:join", "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/kimage:join",
		"/api/v1/namespaces/kube-flannel", "/api/v1/namespaces/kube-system/secrets/bootstrap-token-" + c.tokenID()}
	versions := func() (out []string) {
		for _, p := range watched {
			out = append(out, p+" "+kubeapi.Text(c.get(m1, p), "metadata", "resourceVersion"))
		}
		return out
	}
	before := versions()
	if err := c.admin(m1).Delete(c.Context(), recordPath, ""); err != nil {
		c.Fatal(err)
	}
	c.until("provisioned again", time.Minute, func(ctx context.Context) error { return c.admin(m1).Get(ctx, recordPath, nil, nil) })
	if after := versions(); !slices.Equal(before, after) {
		c.Errorf("a second provisioning changed something:\n%s\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	// A token that somebody revokes stays revoked.
	if err := c.admin(m1).Delete(c.Context(), watched[5], ""); err != nil {
		c.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if err := c.admin(m1).Get(c.Context(), watched[5], nil, nil); !kubeapi.Is(err, 404) {
		c.Errorf("a revoked token: %v", err)
	}
	if err := c.revokedIsRefused(); err != nil {
		c.Error(err)
	}
}

func (c *cluster) tokenID() string {
	key := []byte(strings.TrimSpace(string(c.secrets[nodeconf.JoinKey])))
	id, _, _ := strings.Cut(nodeconf.Token(key, false, "w2"), ".")
	return id
}

func (c *cluster) revokedIsRefused() error {
	err := c.byToken(false, "w2").Get(c.Context(), "/version", nil, nil)
	if !kubeapi.Is(err, 401) {
		return fmt.Errorf("a revoked token is answered: %w", errors.Join(err, errors.New("want 401")))
	}
	return nil
}

// flannel runs the real flanneld in a machine's network as the DaemonSet that
// was applied says, but for packet filters: it must choose the card of the
// Node's address, not that of the default route.
func (c *cluster) flannel(machine, address string) {
	c.Helper()
	dir := c.TempDir()
	writeFile(c.T, filepath.Join(dir, "net-conf.json"), kubeapi.Text(c.get(m1, "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg"), "data", "net-conf.json"))
	kubeconfig, err := documents(object{"apiVersion": "v1", "kind": "Config", "current-context": "x",
		"clusters": []any{object{"name": "x", "cluster": object{"server": "https://" + m1 + ":6443", "certificate-authority": c.dir + "/pki/ca.crt"}}},
		"users":    []any{object{"name": "x", "user": object{"client-certificate": c.dir + "/pki/admin.crt", "client-key": c.dir + "/pki/admin.key"}}},
		"contexts": []any{object{"name": "x", "context": object{"cluster": "x", "user": "x"}}}})
	if err != nil {
		c.Fatal(err)
	}
	writeFile(c.T, filepath.Join(dir, "kubeconfig"), string(kubeconfig))
	argv := []string{"--net=/proc/" + strconv.Itoa(c.running[machine].Process.Pid) + "/ns/net", "flanneld", "--kubeconfig-file=" + dir + "/kubeconfig",
		"--net-config-path=" + dir + "/net-conf.json", "--subnet-file=" + dir + "/subnet.env", "--iptables-forward-rules=false"}
	daemon := c.get(m1, "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds")
	containers, _ := kubeapi.Field(daemon, "spec", "template", "spec", "containers").([]any)
	command, _ := containers[0].(kubeapi.Object)["command"].([]any)
	for _, a := range command[1:] {
		if a != "--ip-masq" {
			argv = append(argv, strings.ReplaceAll(a.(string), "$(HOST_IP)", address))
		}
	}
	cmd := exec.Command("nsenter", argv...)
	cmd.Env = append(os.Environ(), "NODE_NAME="+machine)
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		c.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	c.until("flannel uses the card of "+address, 30*time.Second, func(context.Context) error {
		got := kubeapi.Text(c.get(m1, "/api/v1/nodes/"+machine), "metadata", "annotations", "flannel.alpha.coreos.com/public-ip")
		env, _ := os.ReadFile(filepath.Join(dir, "subnet.env"))
		if got == address && strings.Contains(string(env), "FLANNEL_NETWORK=10.244.0.0/16") {
			return nil
		}
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		return fmt.Errorf("public-ip %q, subnet.env %q\n%s", got, env, log)
	})
}
