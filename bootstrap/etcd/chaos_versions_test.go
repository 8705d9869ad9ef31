//go:build chaos

package etcd

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/run"
)

// olderEtcd is that of the Kubernetes before the one of etcdVersion.
const olderEtcd = "v3.6.8"

// TestNewerEtcd: every member is imaged again with an etcd of the next minor version,
// one after the other, while a client writes. When all are, one with the older etcd is
// not let in, says why, and disturbs nobody; with the newer one it comes back.
func TestNewerEtcd(t *testing.T) {
	t.Parallel()
	older, newer := programsOf(t, olderEtcd, "etcd", "etcdutl"), programs(t)
	c := newChaos(t, 2_000_003, older, 3)
	t.Cleanup(func() { c.explain(2_000_003) })
	c.etcdctl = newer["etcdctl"]
	again := func(m *chaosMachine, programs map[string]string) {
		c.kill(m)
		c.killEtcd(m)
		c.image(m)
		m.Etcd, m.Etcdutl = programs["etcd"], programs["etcdutl"]
		c.tell(m)
	}
	c.calm()
	c.write()
	id := c.clusterOf(c.machines[0])
	c.speaks("3.6", olderEtcd)
	for _, m := range c.machines {
		began := time.Now()
		c.note("%s: imaged again with a newer etcd", m.Name)
		again(m, newer)
		c.calm()
		t.Logf("%s has etcd %s: %s", m.Name, etcdVersion, time.Since(began).Round(time.Second))
	}
	c.speaks("3.7", etcdVersion)

	m := c.machines[1]
	c.note("%s: imaged again with the older etcd", m.Name)
	again(m, older)
	const word = "older than the cluster's"
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(m.said(), word); {
		if c.wait(100 * time.Millisecond); time.Now().After(end) {
			t.Fatalf("with the older etcd %s says: %s", m.Name, m.said())
		}
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); { // and stays so
		if c.wait(100 * time.Millisecond); !strings.Contains(m.said(), word) {
			t.Fatalf("after a while %s says: %s", m.Name, m.said())
		}
	}
	t.Logf("%s says: %s", m.Name, m.said())
	if out, err := c.ctl(c.machines[0], "put", "undisturbed", "yes"); err != nil {
		t.Errorf("the others are disturbed: %v\n%s", err, out)
	}
	again(m, newer)
	c.calm()
	for _, m := range c.machines {
		if got := c.clusterOf(m); got != id {
			t.Errorf("%s is in cluster %s, the first one was %s", m.Name, got, id)
		}
	}
	writes := c.written()
	c.lookLast()
	if n := c.check.changes(); writes == 0 || n < 15 { // three founded, and four times one was removed, and another added and promoted
		t.Errorf("%d acknowledged writes, and the logs have %d changes of members", writes, n)
	}
	t.Logf("%d changes of members, %d acknowledged writes are there", c.check.changes(), writes)
}

// speaks waits until every machine's etcd has a version, and the cluster one.
func (c *chaos) speaks(cluster, version string) {
	c.t.Helper()
	for _, m := range c.machines {
		pki := func(name string) string { return filepath.Join(m.Dir, "pki", name) }
		for end := time.Now().Add(time.Minute); ; c.wait(200 * time.Millisecond) {
			var is struct{ Etcdserver, Etcdcluster string }
			out, err := run.Output(c.t.Context(), run.Cmd{Argv: []string{"ip", "netns", "exec", m.ns, "curl", "--silent", "--cacert", pki(nodeconf.EtcdCA + ".crt"),
				"--cert", pki(nodeconf.EtcdAgent + ".crt"), "--key", pki(nodeconf.EtcdAgent + ".key"), "https://" + m.Address + ":2379/version"}})
			if err == nil {
				err = json.Unmarshal(out, &is)
			}
			if err == nil && "v"+is.Etcdserver == version && strings.HasPrefix(is.Etcdcluster, cluster+".") {
				break
			}
			if time.Now().After(end) {
				c.t.Fatalf("%s is %+v (%v), not %s in a cluster of %s", m.Name, is, err, version, cluster)
			}
		}
	}
}
