package kube

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/run"
)

func TestPodResolver(t *testing.T) {
	for _, tt := range []struct {
		name, host string
		want       string // after the comment
		found      bool
	}{
		{"missing", "", "nameserver 10.0.0.1\n", false},
		{"empty", "# nothing\n\nsearch example.com\n", "nameserver 10.0.0.1\nsearch example.com\n", false},
		{"ordinary", "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a b\noptions edns0\n",
			"nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a b\noptions edns0\n", true},
		{"stub", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n", "nameserver 10.0.0.1\noptions edns0 trust-ad\nsearch .\n", false},
		{"loopback beside another", "nameserver ::1\nnameserver 192.0.2.53\n", "nameserver 192.0.2.53\n", true},
		{"nonsense", "nameserver\nnameserver x\nsortlist 1\n", "nameserver 10.0.0.1\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, found := podResolver(tt.host, []string{"10.0.0.1", "fd00::1"})
			_, got, _ = strings.Cut(got, "\n")
			if d := cmp.Diff(tt.want, got); d != "" || found != tt.found {
				t.Errorf("found %t, want %t\n%s", found, tt.found, d)
			}
		})
	}
}

func TestPoolName(t *testing.T) {
	full := identity{uuid: "4C4C4544-0035-3810-8050-B4C04F4E3232", serial: "ABC123", macs: []string{"52:54:00:17:08:01"}}
	a, err := poolName("workers", full)
	if err != nil {
		t.Fatal(err)
	}
	if !inPool(a, "demo", "workers") || len(a) != len("workers-")+poolHashLen {
		t.Errorf("the name is %s", a)
	}
	lower := full
	lower.uuid, lower.serial, lower.macs = strings.ToLower(full.uuid), "other", nil
	if b, _ := poolName("workers", lower); b != a {
		t.Errorf("the UUID alone counts: %s, %s", a, b)
	}
	names := map[string]string{a: "uuid"}
	for _, tt := range []struct {
		name string
		id   identity
	}{
		{"serial", identity{uuid: "Not Settable", serial: "ABC123", macs: full.macs}},
		{"other serial", identity{uuid: "00000000-0000-0000-0000-000000000000", serial: "ABC124"}},
		{"mac", identity{uuid: "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", serial: "To Be Filled By O.E.M.", macs: full.macs}},
	} {
		got, err := poolName("workers", tt.id)
		if err != nil || names[got] != "" {
			t.Errorf("%s: %s (that of %q), %v", tt.name, got, names[got], err)
		}
		names[got] = tt.name
	}
	if _, err := poolName("workers", identity{uuid: "None", serial: "Default string"}); err == nil || !strings.Contains(err.Error(), "spec.nodes") {
		t.Errorf("a machine without identity: %v", err)
	}
	if _, err := poolName(strings.Repeat("a", 53), full); err == nil {
		t.Error("a name of 64 letters was made")
	}
}

func TestReadIdentity(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"sys/class/dmi/id/product_uuid": "4c4c4544-0035-3810-8050-b4c04f4e3232\n", "sys/class/dmi/id/product_serial": "S1\n",
		"sys/class/net/eth1/address": "52:54:00:00:00:02\n", "sys/class/net/eth1/device/x": "",
		"sys/class/net/eth0/address": "52:54:00:00:00:01\n", "sys/class/net/eth0/device/x": "",
		"sys/class/net/cni0/address": "0a:00:00:00:00:01\n", "sys/class/net/lo/address": "00:00:00:00:00:00\n",
	} {
		writeFile(t, filepath.Join(root, name), content)
	}
	want := identity{uuid: "4c4c4544-0035-3810-8050-b4c04f4e3232", serial: "S1", macs: []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}}
	if d := cmp.Diff(want, readIdentity(root), cmp.AllowUnexported(identity{})); d != "" {
		t.Error(d)
	}
}

func writeFile(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEncryption(t *testing.T) {
	for _, tt := range []struct {
		name, key string
		ok        bool
	}{
		{"right", base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32))) + "\n", true},
		{"short", base64.StdEncoding.EncodeToString([]byte("k")), false},
		{"not base64", "???", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, Config{Node: single(), Root: t.TempDir()})
			writeFile(t, n.pki(nodeconf.EncryptionKey), tt.key)
			err := n.placeEncryption()
			if (err == nil) != tt.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			data, err := os.ReadFile(n.path(encryptFile))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "encryption.yaml", data)
			if fi, err := os.Stat(n.path(encryptFile)); err != nil || fi.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v", fi.Mode(), err)
			}
		})
	}
}

func TestReason(t *testing.T) {
	for _, tt := range []struct {
		name, stderr, want string
	}{
		{"preflight", `W1125 17:00:00.000000    1234 checks.go:1000] something else
	[WARNING Hostname]: hostname "m1" could not be reached
error: error execution phase preflight: [preflight] Some fatal errors occurred:
	[ERROR NumCPU]: the number of available CPUs 1 is less than the required 2
	[ERROR Port-6443]: Port 6443 is in use
[preflight] If you know what you are doing, you can make a check non-fatal with ` + "`--ignore-preflight-errors=...`" + `
To see the stack trace of this error execute with --v=5 or higher
`, "kubeadm: preflight:; [ERROR NumCPU]: the number of available CPUs 1 is less than the required 2; [ERROR Port-6443]: Port 6443 is in use"},
		{"phase", "error: error execution phase kubelet-start: a Node with name \"w1\" and status \"Ready\" already exists in the cluster.\nTo see the stack trace of this error execute with --v=5 or higher\n",
			"kubeadm: kubelet-start: a Node with name \"w1\" and status \"Ready\" already exists in the cluster."},
		{"not kubeadm's form", "Error: context deadline exceeded\n", "kubeadm: Error: context deadline exceeded"},
		{"silent", "\n", "running kubeadm init: exit status 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := reason(&run.Error{Argv: []string{"kubeadm", "init"}, Status: 1, Stderr: tt.stderr, Err: errors.New("exit status 1")})
			if got := err.Error(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestNameItself(t *testing.T) {
	for _, tt := range []struct{ name, before, after string }{
		{"none", "", "172.17.8.101 k8s-01\n"},
		{"others", "127.0.0.1 localhost\n# 10.0.0.1 k8s-01\n10.0.0.2 k8s-012", "127.0.0.1 localhost\n# 10.0.0.1 k8s-01\n10.0.0.2 k8s-012\n172.17.8.101 k8s-01\n"},
		{"there", "127.0.1.1 k8s-01.example k8s-01 # own\n", "127.0.1.1 k8s-01.example k8s-01 # own\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, Config{Node: single(), Root: t.TempDir()})
			if tt.before != "" {
				writeFile(t, n.path(hostsFile), tt.before)
			}
			for range 2 {
				if err := n.nameItself(); err != nil {
					t.Fatal(err)
				}
			}
			if got, _ := os.ReadFile(n.path(hostsFile)); string(got) != tt.after {
				t.Errorf("got %q, want %q", got, tt.after)
			}
		})
	}
}
