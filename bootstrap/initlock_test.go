package bootstrap

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/pki"
)

// TestInitLock: of two that ask a real etcd one gets the lock, and keeps it
// until it lets go.
func TestInitLock(t *testing.T) {
	endpoint, pki := serveEtcd(t)
	lock := initLock{endpoint, pki, 2 * time.Second}
	take := func() (func(), bool) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			release, ok, e := lock.take(t.Context())
			if err = e; err == nil {
				return release, ok
			}
		}
		t.Fatal(err)
		return nil, false
	}
	release, ok := take()
	if !ok {
		t.Fatal("nobody has the lock, and it is not given")
	}
	time.Sleep(time.Second)
	if _, ok := take(); ok {
		t.Fatal("two have the lock")
	}
	given := make(chan bool, 1)
	waiting := lock
	waiting.patience = 30 * time.Second
	go func() {
		release, ok, _ := waiting.take(t.Context())
		given <- ok
		if ok {
			release()
		}
	}()
	time.Sleep(500 * time.Millisecond)
	release()
	if !<-given {
		t.Error("the lock was let go, and is not given to the one that waits")
	}
	if release, ok = take(); !ok {
		t.Error("the lock was let go, and is not given")
	} else {
		release()
	}
}

// serveEtcd starts etcd and returns its address and the directory of a master's
// certificates.
func serveEtcd(t *testing.T) (endpoint, pki string) {
	t.Helper()
	t.Setenv("PATH", filepath.Dir(need.Built(t, "etcdctl"))+":"+os.Getenv("PATH"))
	dir := t.TempDir()
	issueEtcd(t, dir)
	address := freeAddress(t)
	cmd := exec.Command(need.Built(t, "etcd"), "--data-dir="+filepath.Join(dir, "data"), "--listen-client-urls=https://"+address, "--advertise-client-urls=https://"+address,
		"--listen-peer-urls=http://"+freeAddress(t), "--client-cert-auth", "--trusted-ca-file="+filepath.Join(dir, nodeconf.EtcdCA+".crt"),
		"--cert-file="+filepath.Join(dir, "server.crt"), "--key-file="+filepath.Join(dir, "server.key"), "--unsafe-no-fsync", "--log-level=error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return address, dir
}

// issueEtcd puts into dir what a master and etcd have.
func issueEtcd(t *testing.T, dir string) {
	t.Helper()
	const algorithm = "ECDSA-P256"
	now := time.Now()
	ca, err := pki.NewCA("etcd", "test", algorithm, now)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{nodeconf.EtcdCA + ".crt": ca.Cert}
	for name, request := range map[string]pki.Request{
		"server":               {CommonName: "etcd", Names: []string{"127.0.0.1"}, Server: true},
		nodeconf.APIServerEtcd: {CommonName: "apiserver", Client: true},
	} {
		pair, err := ca.Issue(request, algorithm, now)
		if err != nil {
			t.Fatal(err)
		}
		files[name+".crt"], files[name+".key"] = pair.Cert, pair.Key
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
