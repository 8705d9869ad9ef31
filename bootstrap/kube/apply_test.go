package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/pki"
	"github.com/kimage-project/kimage/pkg/run"
)

// firstBoot writes what a master of single() finds after first boot.
func firstBoot(t *testing.T, root string) {
	t.Helper()
	now := time.Now()
	put := func(name, content string) { writeFile(t, filepath.Join(root, nodeconf.PKIDir, name), content) }
	var etcd pki.Pair
	for _, name := range []string{nodeconf.ClusterCA, nodeconf.FrontProxyCA, nodeconf.EtcdCA} {
		ca, err := pki.NewCA(name, "test", "ECDSA-P256", now)
		if err != nil {
			t.Fatal(err)
		}
		put(name+".crt", string(ca.Cert))
		if etcd = ca; name != nodeconf.EtcdCA {
			put(name+".key", string(ca.Key)) // etcd's never leaves the operator
		}
	}
	client, err := etcd.Issue(pki.Request{CommonName: "apiserver", Client: true}, "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	put(nodeconf.APIServerEtcd+".crt", string(client.Cert))
	put(nodeconf.APIServerEtcd+".key", string(client.Key))
	sa, err := pki.NewKey("ECDSA-P256")
	if err != nil {
		t.Fatal(err)
	}
	public, err := pki.Public(sa)
	if err != nil {
		t.Fatal(err)
	}
	put(nodeconf.ServiceAccountKey, string(sa))
	put(nodeconf.ServiceAccountPub, string(public))
	put(nodeconf.EncryptionKey, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("e", 32))))
	put(nodeconf.JoinKey, "join\n")
	writeFile(t, filepath.Join(root, nodeconf.TokenFile), nodeconf.Token([]byte("join"), false, "k8s-01")+"\n")
}

// fakePrograms notes what is run. A kubeadm leaves files as the real one does.
type fakePrograms struct {
	root string
	ran  []string
	fail error // of kubeadm init and join
	seen []string
}

func (f *fakePrograms) run(_ context.Context, c run.Cmd) error {
	f.ran = append(f.ran, strings.Join(c.Argv[:min(2, len(c.Argv))], " "))
	switch c.Argv[1] {
	case "init", "join":
		for _, p := range []string{kubeadmFile, discoveryFile, encryptFile, resolvFile, kubernetesDir + "/pki/ca.key", kubernetesDir + "/pki/etcd/ca.crt"} {
			if exists(filepath.Join(f.root, p)) {
				f.seen = append(f.seen, p)
			}
		}
		for _, p := range []string{adminConf, superConf, kubeletDir + "/config.yaml"} {
			if err := os.MkdirAll(filepath.Join(f.root, filepath.Dir(p)), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(f.root, p), nil, 0o600); err != nil {
				return err
			}
		}
		return f.fail
	case "reset":
		return errors.Join(os.RemoveAll(filepath.Join(f.root, kubernetesDir, "pki")), os.RemoveAll(filepath.Join(f.root, kubeletDir)))
	}
	return nil
}

func TestApply(t *testing.T) {
	master := []string{kubeadmFile, encryptFile, resolvFile, kubernetesDir + "/pki/ca.key", kubernetesDir + "/pki/etcd/ca.crt"}
	joining := append([]string{kubeadmFile, discoveryFile}, master[1:]...)
	for _, tt := range []struct {
		name   string
		action Action
		fail   error
		ran    []string
		seen   []string // by kubeadm
		done   bool
		err    string
	}{
		{"init", Action{Verb: Init}, nil, []string{"kubeadm init"}, master, true, ""},
		{"join", Action{Verb: Join}, nil, []string{"kubeadm join"}, joining, true, ""},
		{"init fails", Action{Verb: Init}, &run.Error{Argv: []string{"kubeadm"}, Stderr: "error: no\n", Err: errors.New("exit status 1")}, []string{"kubeadm init"}, master, false, "kubeadm: no"},
		{"wait", Action{Verb: Wait}, nil, nil, nil, false, ""},
		{"stop", Action{Verb: Stop}, nil, nil, nil, false, ""},
		{"clean", Action{Verb: Clean}, nil, []string{"kubeadm reset"}, nil, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			firstBoot(t, root)
			f := &fakePrograms{root: root, fail: tt.fail}
			n := newNode(t, Config{Node: single(), Root: root, Run: f.run})
			err := n.Apply(t.Context(), tt.action)
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err || n.Failure() != tt.err {
				t.Errorf("got %v, kept as %q, want %q", err, n.Failure(), tt.err)
			}
			if d := cmp.Diff(tt.ran, f.ran); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.seen, f.seen); d != "" {
				t.Errorf("kubeadm saw other files:\n%s", d)
			}
			if done, problem := n.done(); (done != nil) != tt.done || problem != "" {
				t.Errorf("done: %v, %q", done, problem)
			}
			if !tt.done {
				return
			}
			for _, p := range []string{superConf, discoveryFile, kubeadmFile} {
				if exists(n.path(p)) {
					t.Errorf("%s is left", p)
				}
			}
		})
	}
}

// TestCutOff: whatever an attempt leaves is seen, cleaned up, and tried again;
// what first boot brought survives.
func TestCutOff(t *testing.T) {
	root := t.TempDir()
	firstBoot(t, root)
	f := &fakePrograms{root: root, fail: context.Canceled}
	n := newNode(t, Config{Node: single(), Root: root, Run: f.run})
	if n.debris() {
		t.Fatal("there is debris at first boot")
	}
	if err := n.Apply(t.Context(), Action{Verb: Init}); err == nil {
		t.Fatal("no error")
	}
	again := newNode(t, Config{Node: single(), Root: root, Run: f.run}) // the agent starts anew
	if a := Decide(State{Runtime: true, Debris: again.debris()}); a.Verb != Clean {
		t.Fatalf("%+v", a)
	}
	if err := again.Apply(t.Context(), Action{Verb: Clean}); err != nil {
		t.Fatal(err)
	}
	if again.debris() || !exists(n.path(pluginDir)) || !exists(n.pki("ca.key")) || !exists(n.path(encryptFile)) {
		t.Error("cleaning up left something, or took too much")
	}
	f.fail = nil
	if err := again.Apply(t.Context(), Action{Verb: Init}); err != nil {
		t.Fatal(err)
	}
	if done, _ := again.done(); done == nil {
		t.Error("it is not done")
	}
	// Joined, and to join again: the fact goes before anything else.
	f.ran = nil
	broken := newNode(t, Config{Node: single(), Root: root, Run: func(ctx context.Context, c run.Cmd) error { return context.Canceled }})
	if err := broken.Apply(t.Context(), Action{Verb: Clean, Forget: true}); err == nil {
		t.Error("no error")
	}
	if done, _ := broken.done(); done != nil {
		t.Error("the machine still believes that it has joined")
	}
}

var errProgram = errors.New("a program failed")

func TestLock(t *testing.T) {
	released := 0
	free := func(context.Context, Verb) (func(), bool, error) { return func() { released++ }, true, nil }
	held := func(context.Context, Verb) (func(), bool, error) { return nil, false, nil }
	dead := func(context.Context, Verb) (func(), bool, error) { return nil, false, os.ErrDeadlineExceeded }
	for _, tt := range []struct {
		name  string
		to    Verb
		lock  func(context.Context, Verb) (func(), bool, error)
		waits time.Duration // how long it did already
		fails bool          // kubeadm does
		want  error
		ran   int
		early int // how often the lock was released before the Node was Ready
	}{
		{"free", Init, free, 0, false, nil, 1, 0},
		{"free, to join", Join, free, 0, false, nil, 1, 0},
		{"free, and kubeadm fails", Init, free, 0, true, errProgram, 1, 1},
		{"held", Init, held, time.Hour, false, ErrBusy, 0, 0},
		{"held, to join", Join, held, 0, false, ErrBusy, 0, 0},
		{"held for long, to join", Join, held, time.Hour, false, nil, 1, 0},
		{"unreachable", Init, dead, 0, false, os.ErrDeadlineExceeded, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			firstBoot(t, root)
			f := &fakePrograms{root: root}
			if tt.fails {
				f.fail = errProgram
			}
			n := newNode(t, Config{Node: single(), Root: root, Run: f.run, Lock: tt.lock, API: "127.0.0.1:1"})
			if tt.waits > 0 {
				n.turn.waits = n.Now().Add(-tt.waits)
			}
			released = 0
			if err := n.Apply(t.Context(), Action{Verb: tt.to}); !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
			if len(f.ran) != tt.ran {
				t.Errorf("ran %v", f.ran)
			}
			if tt.want == ErrBusy && n.Failure() != "" {
				t.Errorf("waiting for another counts as a failure: %s", n.Failure())
			}
			if released != tt.early {
				t.Errorf("released %d times before the Node is Ready", released)
			}
			n.Settled()
			n.Settled()
			if took := strings.HasPrefix(tt.name, "free"); took != (released == 1) {
				t.Errorf("the lock was released %d times", released)
			}
		})
	}
}

// TestDoneOfAnother: a disk that joined as another machine, or another cluster.
func TestDoneOfAnother(t *testing.T) {
	for _, tt := range []struct{ name, content, want string }{
		{"own", `{"clusterUID":"uid-1","node":"k8s-01"}`, ""},
		{"cluster", `{"clusterUID":"uid-2","node":"k8s-01"}`, "joined cluster uid-2"},
		{"machine", `{"clusterUID":"uid-1","node":"k8s-02"}`, "joined as k8s-02"},
		{"torn", `{`, "reading"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, Config{Node: single(), Root: t.TempDir()})
			writeFile(t, n.path(doneFile), tt.content)
			if _, got := n.done(); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestCertificates: the real kubeadm takes the PKI that first boot brings as it
// is, and makes the rest from it, whether once or again.
func TestCertificates(t *testing.T) {
	kubeadm := program(t, "kubeadm")
	if kubeadm == "" {
		need.Missing(t, "kubeadm: a bake from source puts it into the cache")
	}
	root := t.TempDir()
	firstBoot(t, root)
	n := newNode(t, Config{Node: single(), Root: root})
	config, err := n.initConfig(false, testToken)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "kubeadm.yaml")
	writeFile(t, file, string(config))
	var first string
	for range 2 {
		if err := n.placePKI(); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(kubeadm, "init", "phase", "certs", "all", "--config", file).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, f := range pkiFiles {
			want, err := os.ReadFile(n.pki(f.from))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(n.path(kubernetesDir + "/pki/" + f.to)); err != nil || string(got) != string(want) {
				t.Errorf("%s was changed: %v", f.to, err)
			}
		}
		made, err := os.ReadFile(n.path(kubernetesDir + "/pki/apiserver.crt"))
		if err != nil {
			t.Fatal(err)
		}
		if first != "" && first != string(made) {
			t.Error("the API server's certificate was made again")
		}
		first = string(made)
	}
	entries, err := filepath.Glob(n.path(kubernetesDir + "/pki/etcd/*"))
	if err != nil || len(entries) != 1 {
		t.Errorf("below etcd/ are %v", entries)
	}
	certs, err := pki.ParseCerts([]byte(first))
	if err != nil {
		t.Fatal(err)
	}
	var sans []string
	for _, ip := range certs[0].IPAddresses {
		sans = append(sans, ip.String())
	}
	for _, want := range []string{"127.0.0.1", "172.17.8.101", "10.96.0.1"} {
		if !slices.Contains(sans, want) {
			t.Errorf("the API server's certificate is for %v, not %s", sans, want)
		}
	}
}
