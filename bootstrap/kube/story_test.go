//go:build integration

package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

const (
	workerLabel = "node-role.kubernetes.io/worker"
	m1, m2      = "172.17.8.101", "172.17.8.102"
)

func storyPeers() nodeconf.Peers {
	label := map[string]string{workerLabel: ""}
	return nodeconf.Peers{
		Nodes: []nodeconf.Peer{{Name: "m1", Roles: []string{"master"}, Addresses: []string{m1}}, {Name: "m2", Roles: []string{"master"}, Addresses: []string{m2}},
			{Name: "w1", Roles: []string{"worker"}, Labels: label}, {Name: "w2", Roles: []string{"worker"}, Labels: label}},
		Pools: []nodeconf.Peer{{Name: "pool", Roles: []string{"worker"}, Labels: label}},
	}
}

func (c *cluster) startMaster(name, address string) {
	c.start(name, address, nodeconf.Node{Name: name, Roles: []string{"master"}})
}

// ready waits until a Node other than the one of uid is Ready, and returns it.
func (c *cluster) ready(master, name, uid string) (node apiNode) {
	c.Helper()
	admin := c.admin(master)
	c.until(name+" is Ready", 3*time.Minute, func(ctx context.Context) error {
		node = apiNode{}
		if err := admin.Get(ctx, "/api/v1/nodes/"+name, nil, &node); err != nil {
			return err
		}
		if !node.ready() || node.Metadata.UID == uid {
			return errors.New("not yet")
		}
		return nil
	})
	return node
}

// get reads an object as administrator.
func (c *cluster) get(master, path string) (o kubeapi.Object) {
	c.Helper()
	if err := c.admin(master).Get(c.Context(), path, nil, &o); err != nil {
		c.Fatal(err)
	}
	return o
}

// TestStory: machines become a cluster, lose disks and come back.
func TestStory(t *testing.T) {
	c := newCluster(t, storyPeers())

	// Two masters initialise at the same moment, and nothing keeps them apart.
	c.startMaster("m1", m1)
	c.startMaster("m2", m2)
	c.ready(m1, "m1", "")
	second := c.ready(m2, "m2", "")
	c.joined("m1", "m2")
	if by := c.joinedBy("m1") + c.joinedBy("m2"); by != "initinit" {
		t.Errorf("the masters became such by %s", by)
	}
	c.provisioned()
	c.pkiUnchanged("m1")

	// A named worker, and one of a pool.
	c.start("w1", "172.17.8.111", nodeconf.Node{Name: "w1", Roles: []string{"worker"}, Labels: map[string]string{"disk": "ssd"}, Taints: []nodeconf.Taint{{Key: "x", Value: "y", Effect: "NoSchedule"}}})
	pooled := c.poolMember("pool", "4c4c4544-0035-3810-8050-b4c04f4e3232")
	c.start(pooled, "172.17.8.120", nodeconf.Node{Pool: "pool", Roles: []string{"worker"}})
	w1 := c.ready(m1, "w1", "")
	c.ready(m1, pooled, "")
	for _, name := range []string{"w1", pooled} {
		c.until(name+" has its role", time.Minute, func(ctx context.Context) error {
			if _, ok := kubeapi.Field(c.get(m1, "/api/v1/nodes/"+name), "metadata", "labels").(map[string]any)[workerLabel]; !ok {
				return errors.New("no label")
			}
			return nil
		})
	}
	if o := c.get(m1, "/api/v1/nodes/w1"); kubeapi.Text(o, "metadata", "labels", "disk") != "ssd" || !strings.Contains(fmt.Sprint(kubeapi.Field(o, "spec", "taints")), "map[effect:NoSchedule key:x value:y]") {
		t.Errorf("w1 has %v, %v", kubeapi.Field(o, "metadata", "labels"), kubeapi.Field(o, "spec", "taints"))
	}
	if o := c.get(m1, "/api/v1/nodes/m1"); !strings.Contains(fmt.Sprint(kubeapi.Field(o, "spec", "taints")), "node-role.kubernetes.io/control-plane") {
		t.Errorf("m1 has %v", kubeapi.Field(o, "spec", "taints"))
	}
	c.thieves()
	c.flannel("w1", "172.17.8.111")

	// One of a new name takes a worker's place, and no other machine is booted for it.
	c.peers.Nodes[3].Name, c.serial = "w3", c.serial+1
	c.roster()
	c.start("w3", "172.17.8.113", nodeconf.Node{Name: "w3", Roles: []string{"worker"}})
	c.ready(m1, "w3", "")
	token := "/api/v1/namespaces/kube-system/secrets/bootstrap-token-" + c.tokenID()
	c.until("the token of w2, which left, is revoked", time.Minute, func(ctx context.Context) error {
		if err := c.admin(m1).Get(ctx, token, nil, nil); !kubeapi.Is(err, 404) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	c.kill("w3")
	c.peers.Nodes[3].Name, c.serial = "w2", c.serial+1
	c.roster()
	c.until("w2 is back in the list, and its token is known", time.Minute, func(ctx context.Context) error { return c.admin(m1).Get(ctx, token, nil, nil) })
	off := object{"type": "Ready", "status": "Unknown", "lastTransitionTime": time.Now().Add(-leftFor).UTC().Format(time.RFC3339)}
	if err := c.admin(m1).Merge(c.Context(), "/api/v1/nodes/w3/status", object{"status": object{"conditions": []any{off}}}); err != nil {
		c.Fatal(err)
	}
	c.until("the Node of w3, which left and is off, is deleted", time.Minute, func(ctx context.Context) error {
		if err := c.admin(m1).Get(ctx, "/api/v1/nodes/w3", nil, nil); !kubeapi.Is(err, 404) {
			return fmt.Errorf("got %v", err)
		}
		if left := kubeapi.Text(c.get(m1, recordPath), "data", "left"); left != "" {
			return fmt.Errorf("left: %s", left)
		}
		return nil
	})

	// A worker is imaged again.
	c.kill("w1")
	c.wipe("w1")
	c.start("w1", "172.17.8.111", nodeconf.Node{Name: "w1", Roles: []string{"worker"}})
	c.ready(m1, "w1", w1.Metadata.UID)

	// A master is, while the other serves.
	c.kill("m2")
	c.wipe("m2")
	c.startMaster("m2", m2)
	second = c.ready(m1, "m2", second.Metadata.UID)
	c.joined("m2")
	if by := c.joinedBy("m2"); by != "join" {
		t.Errorf("m2 became a master by %s", by)
	}

	// All masters are, while etcd lives: what people changed stays.
	changed := map[string]string{"coredns": "Corefile", "kube-proxy": "config.conf"}
	for name, key := range changed {
		c.change(m1, name, key)
	}
	config := kubeapi.Text(c.get(m1, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"), "data", "ClusterConfiguration")
	c.kill("m1")
	c.kill("m2")
	c.wipe("m1")
	c.wipe("m2")
	c.startMaster("m2", m2)
	c.joined("m2")
	c.ready(m2, "m2", second.Metadata.UID)
	if by := c.joinedBy("m2"); by != "init" {
		t.Errorf("m2 became a master by %s", by)
	}
	if o := c.get(m2, "/api/v1/nodes/m2"); !strings.Contains(fmt.Sprint(kubeapi.Field(o, "spec", "taints")), "node-role.kubernetes.io/control-plane") {
		t.Errorf("m2 has %v", kubeapi.Field(o, "spec", "taints"))
	}
	for name, key := range changed {
		if got := kubeapi.Text(c.get(m2, "/api/v1/namespaces/kube-system/configmaps/"+name), "data", key); !strings.HasPrefix(got, mine) {
			t.Errorf("ConfigMap %s was overwritten: %s", name, got)
		}
	}
	if got := kubeapi.Text(c.get(m2, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"), "data", "ClusterConfiguration"); got != config {
		t.Errorf("kubeadm's configuration was changed:\n%s", got)
	}

	// The last one loses its power in the middle of joining, keeps its disk, and gets there.
	c.startMaster("m1", m1)
	c.until("m1 has begun", 2*time.Minute, func(context.Context) error {
		_, err := os.Stat(filepath.Join(c.dir, "m1/disk", kubernetesDir, "manifests/kube-apiserver.yaml"))
		return err
	})
	c.kill("m1")
	c.startMaster("m1", m1)
	c.joined("m1")
	c.ready(m2, "m1", "")
	c.again()
}

// joined waits until machines have noted that kubeadm succeeded.
func (c *cluster) joined(names ...string) {
	c.Helper()
	for _, name := range names {
		c.until(name+" has joined", 3*time.Minute, func(context.Context) error {
			if c.joinedBy(name) == "" {
				return errors.New("not yet")
			}
			return nil
		})
		for _, left := range []string{superConf, kubernetesDir + "/bootstrap-kubelet.conf", discoveryFile, kubeadmFile} {
			c.until(filepath.Base(left)+" is gone", 10*time.Second, func(context.Context) error {
				if exists(filepath.Join(c.dir, name, "disk", left)) {
					return errors.New("it is there")
				}
				return nil
			})
		}
	}
}

func (c *cluster) joinedBy(name string) string {
	data, _ := os.ReadFile(filepath.Join(c.dir, name, "disk", doneFile))
	_, by, _ := strings.Cut(string(data), `"by":"`)
	by, _, _ = strings.Cut(by, `"`)
	return by
}

// provisioned looks at what masters made after init.
func (c *cluster) provisioned() {
	c.Helper()
	c.until("provisioned", time.Minute, func(ctx context.Context) error { return c.admin(m1).Get(ctx, recordPath, nil, nil) })
	if got := kubeapi.Text(c.get(m1, recordPath), "data", "tokens"); len(strings.Fields(got)) != len(c.peers.Nodes)+len(c.peers.Pools) {
		c.Errorf("tokens: %s", got)
	}
	var tokens struct{ Items []kubeapi.Object }
	if err := c.admin(m1).Get(c.Context(), "/api/v1/namespaces/kube-system/secrets", url.Values{"fieldSelector": {"type=bootstrap.kubernetes.io/token"}}, &tokens); err != nil {
		c.Fatal(err)
	}
	for _, s := range tokens.Items {
		if kubeapi.Field(s, "data", "expiration") != nil || kubeapi.Field(s, "data", "usage-bootstrap-signing") != nil {
			c.Errorf("a token ends, or signs: %v", s)
		}
		name := kubeapi.Text(s, "metadata", "name")
		if stored := c.etcdGet("/registry/secrets/kube-system/" + name); !strings.HasPrefix(stored, "k8s:enc:secretbox:v1:kimage:") {
			c.Errorf("%s is not encrypted in etcd: %.40q", name, stored)
		}
	}
	for _, s := range tokens.Items {
		secret, err := base64.StdEncoding.DecodeString(kubeapi.Text(s, "data", "token-secret"))
		if data, _ := os.ReadFile(filepath.Join(c.dir, "m1/log")); err != nil || strings.Contains(string(data), string(secret)) {
			c.Errorf("the log of m1 has the token %s: %v", kubeapi.Text(s, "metadata", "name"), err)
		}
	}
	if len(tokens.Items) != len(c.peers.Nodes)+len(c.peers.Pools) {
		c.Errorf("%d tokens", len(tokens.Items))
	}
	c.until("kubeadm's automatic approval is gone", 20*time.Second, func(ctx context.Context) error {
		if err := c.admin(m1).Get(ctx, autoApproval, nil, nil); !kubeapi.Is(err, 404) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	if got := kubeapi.Text(c.get(m1, "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg"), "data", "net-conf.json"); !strings.Contains(got, `"Network":"10.244.0.0/16"`) {
		c.Errorf("net-conf.json: %s", got)
	}
}

const mine = "# mine\n"

// pkiUnchanged: kubeadm took the PKI that first boot brought, and made no other.
func (c *cluster) pkiUnchanged(name string) {
	c.Helper()
	dir := filepath.Join(c.dir, name, "disk", kubernetesDir, "pki")
	for _, f := range pkiFiles {
		if got, err := os.ReadFile(filepath.Join(dir, f.to)); err != nil || string(got) != string(c.secrets[f.from]) {
			c.Errorf("%s of %s is not what first boot brought: %v", f.to, name, err)
		}
	}
	if files, _ := os.ReadDir(filepath.Join(dir, "etcd")); len(files) != 1 {
		c.Errorf("below etcd/ are %v", files)
	}
}

// change edits a ConfigMap of kubeadm's, as a person does.
func (c *cluster) change(master, name, key string) {
	c.Helper()
	path := "/api/v1/namespaces/kube-system/configmaps/" + name
	if err := c.admin(master).Merge(c.Context(), path, object{"data": object{key: mine + kubeapi.Text(c.get(master, path), "data", key)}}); err != nil {
		c.Fatal(err)
	}
}

// poolMember is the name that a machine with a UUID gives itself.
func (c *cluster) poolMember(pool, uuid string) string {
	c.Helper()
	root := c.TempDir()
	writeFile(c.T, filepath.Join(root, "sys/class/dmi/id/product_uuid"), uuid)
	name, err := PoolName(pool, root)
	if err != nil {
		c.Fatal(err)
	}
	return name
}
