package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/ignition/state"
)

// TestRemoteStatus: of a cluster that runs elsewhere every machine of the file is
// listed by what the masters heard, which are asked with the secrets beside the file.
func TestRemoteStatus(t *testing.T) {
	if os.Getenv("KIMAGE_TEST_NETWORK") == "" { // in a network of its own, where the second machine's address is
		asRoot(t)
		cmd := exec.Command("unshare", "--net", "sh", "-ec", `ip link set lo up; ip address add 172.17.8.102/32 dev lo; exec "$0" -test.run "^TestRemoteStatus$"`, os.Args[0])
		cmd.Env = append(os.Environ(), "KIMAGE_TEST_NETWORK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	_, words, status := in(t, dir, "status")
	if status != statusCouldNotTell || !strings.Contains(words, "kimage cluster new") {
		t.Errorf("without a cluster file: status %d: %s", status, words)
	}
	text := inOK(t, dir, "cluster", "new", "--topology", "3")
	write(t, dir, "cluster.yaml", text+"  pools:\n  - {name: crowd, roles: [worker], size: 3}\n")
	if _, words, status = in(t, dir, "status"); status != statusCouldNotTell || !strings.Contains(words, "no machines on this computer (kimage up -f cluster.yaml), and no secrets") {
		t.Errorf("without secrets: status %d: %s", status, words)
	}
	inOK(t, dir, "config")
	out, words, status := in(t, dir, "status")
	if status != statusCouldNotTell || !strings.Contains(words, "no master of it answers on TCP 7443") || strings.Count(out, "  not heard of  ") != 4 || !strings.Contains(out, "it was asked:") {
		t.Errorf("without masters: status %d: %s\n%s", status, words, out)
	}
	if config := inOK(t, dir, "kubeconfig"); !strings.Contains(config, "https://172.17.8.101:6443") {
		t.Errorf("the kubeconfig:\n%s", config)
	}

	// Now the second master's agent answers.
	f, err := loadCluster(filepath.Join(dir, "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.OpenExisting(state.Config{File: f})
	if err != nil {
		t.Fatal(err)
	}
	store := &report.Store{ClusterName: "demo", Master: "k8s-02", Now: time.Now, Ready: "ready", Since: time.Now(), Known: func() []report.Known {
		return []report.Known{{Name: "k8s-01"}, {Name: "k8s-02"}, {Name: "k8s-03"}, {Name: "crowd", Pool: true, Size: 3}}
	}}
	server, err := report.NewServer(report.ServerConfig{Name: "k8s-02", Addresses: []string{"172.17.8.102"}, ClusterUID: s.UID, CA: s.Pair(nodeconf.ClusterCA),
		EtcdCA: s.Pair(nodeconf.EtcdCA).Cert, JoinKey: bytes.TrimSpace(s.Secret(nodeconf.JoinKey)), Store: store, Now: time.Now, Logf: t.Logf,
		Roster: func() report.SignedAndOpen { return report.SignedAndOpen{} }, Offer: func(nodeconf.SignedRoster, string) {}})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	go server.Run(t.Context())
	say := func(pool, name, phase, why string) {
		t.Helper()
		if err := store.Put(pool, "127.0.0.1", report.Report{Name: name, Phase: phase, Why: why, Since: time.Date(2026, 11, 26, 11, 0, 0, 0, time.UTC), Time: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	say("", "k8s-02", "ready", "")
	say("", "k8s-03", "disk", "it is full: give it a larger one")
	say("crowd", "crowd-b", "ready", "")
	say("crowd", "crowd-a", "ready", "")
	awaitPort(t, "172.17.8.102:7443")
	out, words, status = in(t, dir, "status")
	for _, want := range []string{
		"k8s-01   etcd,master,worker  -      not heard of  -                        it was asked: ",
		"k8s-02   etcd,master,worker  -      ready         2026-11-26 11:00:00 UTC  -\n",
		"k8s-03   etcd,worker         -      disk          2026-11-26 11:00:00 UTC  it is full: give it a larger one\n",
		"crowd-a  worker              -      ready ",
		"crowd    worker              -      not heard of  -                        1 of 3 machines of this pool were not heard of\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if status != statusNo || words != "" {
		t.Errorf("status %d: %s", status, words)
	}
	if strings.Index(out, "crowd-a") > strings.Index(out, "crowd-b") {
		t.Errorf("no order:\n%s", out)
	}

	// Waiting ends when all are ready.
	go func() {
		time.Sleep(time.Second)
		say("", "k8s-01", "ready", "")
		say("", "k8s-03", "ready", "")
		say("crowd", "crowd-c", "ready", "")
	}()
	out, words, status = in(t, dir, "status", "--wait", "--timeout", "30s", "--json")
	if status != 0 || !strings.Contains(out, `"ok": true`) || !strings.Contains(words, "k8s-03  disk: it is full") || !strings.Contains(words, "k8s-03  ready") {
		t.Errorf("status %d: %s\n%s", status, words, out)
	}
	if _, words, status := in(t, dir, "status", "--wait", "--timeout", "0s"); status != 0 {
		t.Errorf("ready already: status %d: %s", status, words)
	}

	// Another cluster's secrets open nothing.
	other := t.TempDir()
	write(t, other, "cluster.yaml", text)
	inOK(t, other, "config")
	if out, _, status := in(t, other, "status"); status != statusCouldNotTell || !strings.Contains(out, "certificate") {
		t.Errorf("with another cluster's secrets: status %d:\n%s", status, out)
	}
}

func awaitPort(t *testing.T, address string) {
	t.Helper()
	for range 100 {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("nobody listens on %s", address)
}
