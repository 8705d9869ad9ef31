//go:build integration

package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// image makes the machines that start from now on have another Kubernetes.
func (c *cluster) image(version string) {
	c.Helper()
	c.version = version
	bin := filepath.Join(c.dir, "bin-"+version)
	if exists(bin) {
		return
	}
	if err := os.Mkdir(bin, 0o755); err != nil {
		c.Fatal(err)
	}
	for _, name := range []string{"kubeadm", "kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		for file, v := range builds(c.T, name) {
			if strings.HasSuffix(v, version) {
				os.Symlink(file, filepath.Join(bin, name))
			}
		}
		if !exists(filepath.Join(bin, name)) {
			c.Fatalf("no %s %s on this machine: kimage build --os debian-13 --kubernetes %s makes it", name, version, version)
		}
	}
	// The image's store has its own kube-proxy, and pulls when there is a way out.
	crictl := fmt.Sprintf(`#!/bin/sh
case $5:$7 in
inspecti:*/kube-proxy:%s | inspecti:*flannel*) exit 0 ;;
pull:*) [ ! -e %s ] || exit 0 ;;
esac
echo "E1126 a line of its log" >&2
echo "no way to the registry" >&2
exit 1
`, version, c.wayOut())
	if err := os.WriteFile(filepath.Join(bin, "crictl"), []byte(crictl), 0o755); err != nil {
		c.Fatal(err)
	}
}

// wayOut is a file that says that machines can reach the registry.
func (c *cluster) wayOut() string { return filepath.Join(c.dir, "way-out") }

// says waits until a machine waits for what its log says.
func (c *cluster) says(name, words string) {
	c.Helper()
	c.until(name+" says: "+words, 2*time.Minute, func(context.Context) error {
		data, _ := os.ReadFile(filepath.Join(c.dir, name, "log"))
		at := strings.LastIndex(string(data), "DECIDE ")
		if at < 0 || !strings.Contains(string(data)[at:], words) {
			return errors.New("not yet")
		}
		return nil
	})
}

// watchAPI asks every second whether one of the API servers is ready, until stop,
// which returns the longest time in which none was.
func watchAPI(servers ...string) (stop func() time.Duration) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	end := make(chan struct{})
	longest := make(chan time.Duration)
	go func() {
		var gap time.Duration
		last := time.Now()
		for {
			for _, s := range servers {
				if a, err := client.Get("https://" + s + ":6443/readyz"); err == nil {
					a.Body.Close()
					if a.StatusCode == http.StatusOK {
						last = time.Now()
						break
					}
				}
			}
			gap = max(gap, time.Since(last))
			select {
			case <-end:
				longest <- gap
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return sync.OnceValue(func() time.Duration { close(end); return <-longest })
}

// TestUpgrade brings a cluster from 1.35 to 1.36 by machines that are imaged again,
// one after the other, and to 1.37 by masters that are blank at once: what does not
// fit waits and says why, an API server is ready all the time, and what runs on
// every machine is what its image has.
func TestUpgrade(t *testing.T) {
	const old, middle, latest = "v1.35.8", "v1.36.5", "v1.37.2"
	c := newCluster(t, storyPeers())
	master := func(name, address, version string) {
		c.image(version)
		c.startMaster(name, address)
	}
	worker := func(version string) {
		c.image(version)
		c.start("w1", "172.17.8.111", nodeconf.Node{Name: "w1", Roles: []string{"worker"}})
	}
	again := func(name string, start func()) {
		c.kill(name)
		c.wipe(name)
		start()
	}
	master("m1", m1, old)
	first := c.ready(m1, "m1", "")
	master("m2", m2, old)
	second := c.ready(m1, "m2", "")
	worker(old)
	w1 := c.ready(m1, "w1", "")
	c.until("every machine has a kube-proxy", time.Minute, func(context.Context) error {
		if got := c.podImages("k8s-app=kube-proxy"); len(got) != 3 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	stop := watchAPI(m1, m2)

	// Two minor versions at once.
	again("m2", func() { master("m2", m2, latest) })
	c.says("m2", "first boot the masters with an image of 1.36")
	again("m2", func() { master("m2", m2, middle) })
	second = c.ready(m1, "m2", second.Metadata.UID)
	c.isAt(m2, middle)
	// A worker that is newer than the masters' newest.
	again("w1", func() { worker(latest) })
	c.says("w1", "a worker may not be newer")
	again("m1", func() { master("m1", m1, middle) })
	first = c.ready(m2, "m1", first.Metadata.UID)
	c.isAt(m1, middle)
	// A worker of an older image gets a kube-proxy that is not on its disk.
	again("w1", func() { worker(old) })
	c.says("w1", "runs registry.k8s.io/kube-proxy:v1.36.5, which this machine's image (Kubernetes v1.35.8) has not")
	if err := os.WriteFile(c.wayOut(), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w1 = c.ready(m1, "w1", w1.Metadata.UID)
	again("w1", func() { worker(latest) })
	c.says("w1", "a worker may not be newer")
	// Back.
	again("m2", func() { master("m2", m2, old) })
	c.says("m2", "never goes back")
	again("m2", func() { master("m2", m2, middle) })
	c.ready(m1, "m2", second.Metadata.UID)
	gap := stop()
	t.Logf("the longest time without an API server: %s", gap.Round(100*time.Millisecond))
	if gap > 10*time.Second {
		t.Error("that is too long")
	}
	// All masters are blank at once, and the first that comes back is newer.
	c.kill("m1")
	c.wipe("m1")
	again("m2", func() { master("m2", m2, latest) })
	c.joined("m2")
	c.isAt(m2, latest)
	if by := c.joinedBy("m2"); by != "init" {
		t.Errorf("m2 became a master by %s", by)
	}
	// The worker has waited for that.
	c.ready(m2, "w1", w1.Metadata.UID)
	c.until("every machine has the kube-proxy of its image", time.Minute, func(context.Context) error {
		if at := kubeapi.Text(c.get(m2, "/api/v1/nodes/m2"), "metadata", "labels", versionLabel); at != latest {
			return fmt.Errorf("m2 is labelled %s", at)
		}
		if got := c.podImages("k8s-app=kube-proxy"); got["m2"] != "kube-proxy:"+latest || got["w1"] != "kube-proxy:"+latest {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	master("m1", m1, latest)
	c.ready(m2, "m1", first.Metadata.UID)
	c.isAt(m1, latest)
	// And they are older than what etcd holds.
	c.kill("m1")
	c.wipe("m1")
	again("m2", func() { master("m2", m2, middle) })
	c.says("m2", "never goes back")
}

// isAt: a master's API server is of the version, and what was made for all
// machines is too.
func (c *cluster) isAt(address, version string) {
	c.Helper()
	c.until(address+" brought the cluster to "+version, 2*time.Minute, func(ctx context.Context) error {
		var v struct{ GitVersion string }
		var config kubeadmConfig
		admin := c.admin(address)
		if err := errors.Join(admin.Get(ctx, "/version", nil, &v), admin.Get(ctx, kubeadmConfigPath, nil, &config)); err != nil {
			return err
		}
		if v.GitVersion != version || config.version() != version {
			return fmt.Errorf("the API server is %s, kubeadm's configuration %s", v.GitVersion, config.version())
		}
		if got := kubeapi.Text(c.get(address, recordPath), "data", "kubernetes"); got != version {
			return fmt.Errorf("the record says %s", got)
		}
		return nil
	})
	proxy := c.get(address, "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy")
	if got := kubeapi.Text(proxy, "spec", "updateStrategy", "type"); got != "OnDelete" {
		c.Errorf("kube-proxy is updated %s", got)
	}
	if got := fmt.Sprint(kubeapi.Field(proxy, "spec", "template", "spec", "containers")); !strings.Contains(got, "registry.k8s.io/kube-proxy:"+version) {
		c.Errorf("kube-proxy: %s", got)
	}
	tag := map[string]string{"v1.36.5": "v1.14.2", "v1.37.2": "v1.14.6"}[version]
	dns := c.get(address, "/apis/apps/v1/namespaces/kube-system/deployments/coredns")
	if got := fmt.Sprint(kubeapi.Field(dns, "spec", "template", "spec")); !strings.Contains(got, "registry.k8s.io/coredns/coredns:"+tag) || !strings.Contains(got, "values:["+version+"]") || !strings.Contains(got, "podAntiAffinity") {
		c.Errorf("CoreDNS: %s", got)
	}
	// Its pods go only where their image is.
	for node, image := range c.podImages("k8s-app=kube-dns") {
		if at := kubeapi.Text(c.get(address, "/api/v1/nodes/"+node), "metadata", "labels", versionLabel); strings.HasSuffix(image, tag) && at != version {
			c.Errorf("%s starts on %s, whose image is %s", image, node, at)
		}
	}
}

// podImages is the image of the first container of the pods of kube-system that a
// selector names, by their machines, without the registry.
func (c *cluster) podImages(selector string) map[string]string {
	c.Helper()
	var pods struct{ Items []kubeapi.Object }
	var err error
	for _, address := range []string{m1, m2} {
		if err = c.admin(address).Get(c.Context(), "/api/v1/namespaces/kube-system/pods", url.Values{"labelSelector": {selector}}, &pods); err == nil {
			break
		}
	}
	if err != nil {
		c.Fatal(err)
	}
	all := map[string]string{}
	for _, p := range pods.Items {
		containers, _ := kubeapi.Field(p, "spec", "containers").([]any)
		if node := kubeapi.Text(p, "spec", "nodeName"); node != "" && kubeapi.Field(p, "metadata", "deletionTimestamp") == nil {
			image := kubeapi.Text(containers[0].(kubeapi.Object), "image")
			all[node] = image[strings.LastIndex(image, "/")+1:]
		}
	}
	return all
}
