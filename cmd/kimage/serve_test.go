package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/images"
	"github.com/kimage-project/kimage/pkg/initrd"
	"github.com/kimage-project/kimage/pkg/metal"
)

// TestServeRefuses: what is wrong is said before anything is baked or answered, with what to
// do about it.
func TestServeRefuses(t *testing.T) {
	asRoot(t)
	const card = "ip link add eth9 type bridge; ip addr add 192.168.77.1/24 dev eth9; ip link set eth9 up; "
	for _, tt := range []struct {
		name, file, script string
		args, want         []string
	}{
		{"no interface", "", card, nil, []string{"--interface", "eth9"}},
		{"no such interface", "", card, []string{"--interface", "eth8"}, []string{"eth8", "eth9"}},
		{"no address", "", "ip link add eth9 type bridge; ip link set eth9 up; ", []string{"--interface", "eth9"}, []string{"eth9", "IPv4"}},
		{"half a range", "", card, []string{"--interface", "eth9", "--dhcp-range", "192.168.77.100"}, []string{"--dhcp-range 192.168.77.100"}},
		{"a range elsewhere", "", card, []string{"--interface", "eth9", "--dhcp-range", "10.1.1.1-10.1.1.9"}, []string{"10.1.1.1", "192.168.77.0/24"}},
		{"a router without a range", "", card, []string{"--interface", "eth9", "--router", "192.168.77.254"}, []string{"--dhcp-range"}},
		{"no such pool", "", card, []string{"--interface", "eth9", "--pool", "crowd"}, []string{"crowd"}},
		{"no loaders", "", card, []string{"--interface", "eth9", "--ipxe", "/etc"}, []string{"undionly.kpxe", "ipxe"}},
		{"no image", "", card, []string{"--interface", "eth9", "--image", "nowhere.raw"}, []string{"nowhere.raw"}},
		{"no image of kimage's", "", card, []string{"--interface", "eth9", "--image", "/bin/sh"}, []string{"/bin/sh", "disk image"}},
		{"no live system", "fedora-coreos-stable", card, []string{"--interface", "eth9"}, []string{"fedora-coreos-stable", "flatcar-stable", "kimage config"}},
		{"a root that cannot be edited", "rocky-10", card, []string{"--interface", "eth9"}, []string{"rocky-10", "debian-13"}},
		{"the port is in use", "", card + "python3 -m http.server --bind 192.168.77.1 8080 >/dev/null 2>&1 & sleep 1; trap 'kill $!' EXIT; ", []string{"--interface", "eth9"}, []string{"8080", "--port"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{"--topology", "3"}
			if tt.file != "" {
				args = append(args, "--os", tt.file)
			}
			dir := newClusterDir(t, args...)
			replaceIn(t, filepath.Join(dir, "cluster.yaml"), "172.17.8.0/24", "192.168.77.0/24")
			for _, last := range []string{"101", "102", "103"} {
				replaceIn(t, filepath.Join(dir, "cluster.yaml"), "172.17.8."+last, "192.168.77."+last)
			}
			cmd := inNamespace(t, append([]string{"serve"}, tt.args...), tt.script, "--net")
			for i, a := range cmd.Args { // what runs beside it has to be ended
				cmd.Args[i] = strings.Replace(a, "\nexec \"$0\"", "\ntimeout 60 \"$0\"", 1)
			}
			cmd.Dir = dir
			refused(t, cmd, "", tt.want...)
			if left, err := filepath.Glob(filepath.Join(dir, "cluster.s*")); err != nil || len(left) > 0 {
				t.Errorf("left are %v, %v", left, err)
			}
		})
	}
}

// TestPrune: what was packed of older images goes.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"old.frames", "old.index", "new.frames", "new.index"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, "new"); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 2 || filepath.Base(left[0]) != "new.frames" {
		t.Errorf("left are %v", left)
	}
}

// TestPoolMachine: a machine of a pool is found by the name that its agent makes of the same
// numbers.
func TestPoolMachine(t *testing.T) {
	installed := []metal.Known{
		{Name: "crowd/52:54:00:17:08:01", MAC: "52:54:00:17:08:01", UUID: "5a1b2c3d-0000-4000-8000-000000000001", Serial: "S1"},
		{Name: "crowd/52:54:00:17:08:02", MAC: "52:54:00:17:08:02", UUID: "00000000-0000-0000-0000-000000000000", Serial: "S2"},
		{Name: "crowd/52:54:00:17:08:03", MAC: "52:54:00:17:08:03", Serial: "None"},
		{Name: "crowd/52:54:00:17:08:04"},
	}
	root := func(numbers map[string]string) string {
		dir := t.TempDir()
		for name, text := range numbers {
			file := filepath.Join(dir, "sys/class", name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text+"\n"), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for want, numbers := range map[string]map[string]string{
		"crowd/52:54:00:17:08:01": {"dmi/id/product_uuid": "5A1B2C3D-0000-4000-8000-000000000001", "dmi/id/product_serial": "S1"},
		"crowd/52:54:00:17:08:02": {"dmi/id/product_uuid": "00000000-0000-0000-0000-000000000000", "dmi/id/product_serial": "S2"},
		"crowd/52:54:00:17:08:03": {"dmi/id/product_serial": "None", "net/eth0/address": "52:54:00:17:08:03", "net/eth0/device/vendor": "x"},
		"":                        {"dmi/id/product_serial": "S9"},
	} {
		node, err := kube.PoolName("crowd", root(numbers))
		if err != nil {
			t.Fatal(err)
		}
		if got := poolMachine("crowd", node, installed); got != want {
			t.Errorf("%s is %q, want %q", node, got, want)
		}
	}
}

// TestLiveInstaller: what machines boot is the vendor's kernel, and its initramfs as it was
// with the agent behind it.
func TestLiveInstaller(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	vendors := bytes.Repeat([]byte("vendor's "), 1001)
	if err := errors.Join(os.WriteFile(in("vmlinuz"), []byte("kernel"), 0o644), os.WriteFile(in("cpio.gz"), vendors, 0o644)); err != nil {
		t.Fatal(err)
	}
	m := metal.Image{Kernel: in("id.kernel"), Initrd: in("id.initrd")}
	if err := liveInstaller(m, images.Live{Kernel: in("vmlinuz"), Initrd: in("cpio.gz")}, []byte("agent")); err != nil {
		t.Fatal(err)
	}
	kernel, err1 := os.ReadFile(m.Kernel)
	all, err2 := os.ReadFile(m.Initrd)
	if err := errors.Join(err1, err2); err != nil || string(kernel) != "kernel" {
		t.Errorf("%s, %v", kernel, err)
	}
	if want := append(vendors, initrd.Behind(int64(len(vendors)), []byte("agent"))...); !bytes.Equal(all, want) {
		t.Errorf("%d bytes, want %d", len(all), len(want))
	}
}

// TestBoard: the table says of every machine how far it is, and on a terminal it stands below
// what is told.
func TestBoard(t *testing.T) {
	now := time.Unix(1000, 0)
	lines := []metal.Line{{Name: "k8s-01", Roles: []string{"etcd", "master"}, MAC: "52:54:00:17:08:01", Phase: "installing", Done: 43, Total: 100, Since: now.Add(-90 * time.Second)}, {Name: "k8s-02", Phase: "never heard of"}}
	const want = `MACHINE  ROLES        MAC                FOR    PHASE
k8s-01   etcd,master  52:54:00:17:08:01  1m30s  installing 43 %
k8s-02   -            -                  -      never heard of
`
	if got := machineTable(lines, now); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	all := func() []metal.Line { return lines }
	var out strings.Builder
	b := &board{out: &out, width: 30, height: 24}
	b.lines.Store(&all)
	b.draw("one\n")
	b.draw("two\n")
	if got := out.String(); strings.Count(got, "\x1b[3A\r\x1b[J") != 1 || strings.Count(got, "k8s-01   etcd,master  52:54:0\n") != 2 || strings.Count(got, "two\n") != 1 {
		t.Errorf("%q", got)
	}
	out.Reset()
	b.height, b.drawn = 4, 0
	if b.draw(""); !strings.HasSuffix(out.String(), "MACHINE  ROLES        MAC    \n... and 2 more\n") {
		t.Errorf("on a small terminal: %q", out.String())
	}
	out.Reset()
	b = newBoard(&out)
	b.lines.Store(&all)
	b.logf("one")
	b.end()
	if got := out.String(); !strings.HasSuffix(got, "  one\n") || strings.Contains(got, "\x1b") {
		t.Errorf("where no terminal is: %q", got)
	}
	// A server whose lock is held may tell something, and a terminal may stand still.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b = newBoard(w)
	server, err := metal.New(metal.Config{Dir: t.TempDir(), Logf: b.logf})
	if err != nil {
		t.Fatal(err)
	}
	told := server.Lines
	b.lines.Store(&told)
	b.width, b.height = 30, 24
	for i := range 5000 {
		server.Meets(fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255), "")
	}
	w.Close()
	b.end()
}

// TestRelease: kimage replace of a machine that kimage serve installs.
func TestRelease(t *testing.T) {
	dir := newClusterDir(t, "--topology", "1")
	if _, errOut, status := in(t, dir, "replace", "k8s-01"); status != 2 || !strings.Contains(errOut, "kimage up") {
		t.Errorf("where nothing was served: status %d, %s", status, errOut)
	}
	served := filepath.Join(dir, "cluster.serve")
	if err := os.Mkdir(served, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, errOut, status := in(t, dir, "replace", "k8s-1"); status != 2 || !strings.Contains(errOut, "k8s-01") {
		t.Errorf("another name: status %d, %s", status, errOut)
	}
	if _, errOut, status := in(t, dir, "replace", "k8s-01"); status != 2 || !strings.Contains(errOut, "only etcd member") {
		t.Errorf("the only member: status %d, %s", status, errOut)
	}
	if released, err := filepath.Glob(filepath.Join(served, "released/*")); err != nil || len(released) > 0 {
		t.Errorf("%v, %v", released, err)
	}
	if out := inOK(t, dir, "replace", "k8s-01", "--yes"); !strings.Contains(out, "k8s-01 is released") {
		t.Error(out)
	}
	server, err := metal.New(metal.Config{Dir: served, Machines: []metal.Machine{{Name: "k8s-01"}}})
	if err != nil {
		t.Fatal(err)
	}
	if l := server.Lines(); !l[0].Released {
		t.Errorf("the server knows nothing of it: %+v", l)
	}
	// Of three, when nobody can be asked.
	dir = newClusterDir(t, "--topology", "3")
	inOK(t, dir, "config")
	if err := os.Mkdir(filepath.Join(dir, "cluster.serve"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := inNamespace(t, []string{"replace", "k8s-02"}, "", "--net")
	cmd.Dir = dir
	refused(t, cmd, "", "k8s-02 is not released", "--yes")
}
