package metal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/install"
)

const mac1, mac9 = "52:54:00:17:08:01", "52:54:00:17:08:09"

// rack is a server, and whose hardware address its requests come from.
type rack struct {
	*Server
	t    *testing.T
	http *httptest.Server
	from string
	dir  string
}

func newRack(t *testing.T, dir string, pool *Machine) *rack {
	t.Helper()
	k := &rack{t: t, dir: dir, from: mac1}
	frames := filepath.Join(t.TempDir(), "frames")
	if err := os.WriteFile(frames, []byte("frames of the image"), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	k.Server, err = New(Config{Dir: dir, ClusterUID: "ours", Pool: pool,
		Machines: []Machine{{Name: "k8s-01", Match: cluster.Match{MAC: mac1}}, {Name: "k8s-02", Match: cluster.Match{MAC: "52:54:00:17:08:02", Serial: "S2"}}},
		Image:    Image{ID: "abc", DiskBytes: 8 * gib, Frames: frames, Index: []byte("{}"), SHA256: "00"},
		Seed:     func(_ context.Context, m Machine) ([]byte, error) { return []byte("config of " + m.Name), nil },
		Neighbor: func(netip.Addr) (string, error) {
			if k.from == "" {
				return "", errors.New("no neighbour")
			}
			return k.from, nil
		},
		Logf: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	k.http = httptest.NewServer(k.Handler())
	t.Cleanup(k.http.Close)
	k.config.URL = k.http.URL
	return k
}

func (k *rack) get(path string) (int, string) {
	k.t.Helper()
	resp, err := http.Get(k.http.URL + path)
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data)
}

func (k *rack) post(path string, body, answer any) int {
	k.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		k.t.Fatal(err)
	}
	resp, err := http.Post(k.http.URL+path, "application/json", bytes.NewReader(data))
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer != nil && resp.StatusCode == 200 {
		if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
			k.t.Fatal(err)
		}
	}
	return resp.StatusCode
}

// hello has a machine tell of one disk.
func (k *rack) hello(mac string, d install.Disk) (p install.Plan) {
	k.t.Helper()
	d.Name, d.SizeBytes, d.SectorBytes = "vda", 20*gib, 512
	if status := k.post(install.HelloPath, install.Hello{MAC: mac, UUID: "U", Disks: []install.Disk{d}}, &p); status != 200 {
		k.t.Fatalf("status %d", status)
	}
	return p
}

func (k *rack) boots(mac, want string) {
	k.t.Helper()
	if _, s := k.get("/ipxe?mac=" + mac + "&uuid=u&serial="); !strings.HasPrefix(s, "#!ipxe\n") || !strings.Contains(s, want) {
		k.t.Errorf("%s boots\n%s", mac, s)
	}
}

var (
	emptyDisk = install.Disk{Content: install.Empty}
	ownDisk   = install.Disk{Content: install.Kimage, Cluster: "ours", Node: "k8s-01"}
	halfDisk  = install.Disk{Content: install.Kimage, Unfinished: true}
)

// TestInstallOnce: a machine is installed once, and once more when it was released, whatever
// is lost in between.
func TestInstallOnce(t *testing.T) {
	dir := t.TempDir()
	k := newRack(t, dir, nil)
	if _, s := k.get("/ipxe"); !strings.Contains(s, k.http.URL+"/ipxe?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}") {
		t.Errorf("who are you:\n%s", s)
	}
	k.boots(mac1, "kimage.server="+k.http.URL)
	p := k.hello(mac1, emptyDisk)
	if p.Action != install.Write || p.Disk != "vda" || p.Node != "k8s-01" || p.SHA256 != "00" {
		t.Fatalf("%+v", p)
	}
	if status, s := k.get(strings.TrimPrefix(p.Image, k.http.URL)); status != 200 || s != "frames of the image" {
		t.Errorf("%d %s", status, s)
	}
	// The config is the machine's, while it is being installed.
	seed := strings.TrimPrefix(p.Seed, k.http.URL)
	if status, s := k.get(seed); status != 200 || s != "config of k8s-01" {
		t.Errorf("%d %s", status, s)
	}
	for _, from := range []string{mac9, ""} {
		if k.from = from; true {
			if status, s := k.get(seed); status != http.StatusForbidden || strings.Contains(s, "config") {
				t.Errorf("from %q: %d %s", from, status, s)
			}
		}
	}
	k.from = mac1
	if status, _ := k.get("/seed/guess"); status != 404 {
		t.Errorf("status %d", status)
	}
	k.post(install.ProgressPath, install.Progress{MAC: mac1, Phase: "writing", Done: 43, Total: 100}, nil)
	if l := k.Lines()[0]; l.Text() != "installing 43 %" {
		t.Errorf("%+v", l)
	}
	// Power cut: it boots the installer again, which finds half an installation.
	k = newRack(t, dir, nil)
	k.boots(mac1, "kimage.server=")
	if p = k.hello(mac1, halfDisk); p.Action != install.Write {
		t.Fatalf("%+v", p)
	}
	for range 2 { // it may not hear the first answer
		if status := k.post(install.InstalledPath, install.Progress{MAC: mac1, Phase: "installed"}, nil); status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if status, _ := k.get(strings.TrimPrefix(p.Seed, k.http.URL)); status != 404 {
		t.Errorf("the config is given after the installation: %d", status)
	}
	for range 2 { // now, and after a restart of the server
		k.boots(mac1, "sanboot")
		if p := k.hello(mac1, ownDisk); p.Action != install.Local {
			t.Errorf("%+v", p)
		}
		k = newRack(t, dir, nil)
	}
	if err := Release(dir, "k8s-01"); err != nil {
		t.Fatal(err)
	}
	k.boots(mac1, "kimage.server=")
	if l := k.Lines()[0]; !l.Released || !l.Installed {
		t.Errorf("%+v", l)
	}
	if p := k.hello(mac1, ownDisk); p.Action != install.Write {
		t.Fatalf("%+v", p)
	}
	// Its word that it was written is lost: what it has now is not written over.
	if p := k.hello(mac1, ownDisk); p.Action != install.Local {
		t.Errorf("released once, and written twice: %+v", p)
	}
	k.boots(mac1, "sanboot")
}

// TestReleaseOnce: a release whose file outlives a crash is used up all the same.
func TestReleaseOnce(t *testing.T) {
	dir := t.TempDir()
	k := newRack(t, dir, nil)
	if err := Release(dir, "k8s-01"); err != nil {
		t.Fatal(err)
	}
	file := releaseFile(dir, "k8s-01")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if p := k.hello(mac1, ownDisk); p.Action != install.Write {
		t.Fatalf("%+v", p)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	k = newRack(t, dir, nil)
	if p := k.hello(mac1, ownDisk); p.Action != install.Local {
		t.Errorf("%+v", p)
	}
	if err := Release(dir, "k8s-01"); err != nil { // another one counts
		t.Fatal(err)
	}
	if p := k.hello(mac1, ownDisk); p.Action != install.Write {
		t.Errorf("%+v", p)
	}
}

// TestStrangers: who is not in the cluster file is refused, or becomes a pool's; who says
// that it is another is refused.
func TestStrangers(t *testing.T) {
	k := newRack(t, t.TempDir(), nil)
	if k.Meets(mac9, "") || !k.Meets(mac1, "") || !k.Meets("52:54:00:17:08:02", "") {
		t.Error("DHCP meets the wrong ones")
	}
	k.boots(mac9, "no machine of the cluster file")
	for serial, want := range map[string]string{"S2": "kimage.server=", "S3": "no machine", "": "no machine"} {
		if _, s := k.get("/ipxe?mac=52:54:00:17:08:02&uuid=u&serial=" + serial); !strings.Contains(s, want) {
			t.Errorf("with serial number %q it boots\n%s", serial, s)
		}
	}
	if status := k.post(install.HelloPath, install.Hello{MAC: mac9}, nil); status != http.StatusForbidden {
		t.Errorf("another's MAC: status %d", status)
	}
	k.from = mac9
	if p := k.hello(mac9, emptyDisk); p.Action != install.Stop || !strings.Contains(p.Reason, `match: {mac: "`+mac9) {
		t.Errorf("%+v", p)
	}
	if l := k.Lines(); len(l) != 4 || !l[3].Unknown || l[3].Name != mac9 || l[0].Phase != "asks for an address" {
		t.Errorf("%+v", l)
	}
	if _, s := k.get("/"); !strings.Contains(s, mac9) || !strings.Contains(s, "k8s-02") {
		t.Errorf("the page:\n%s", s)
	}
	if _, s := k.get("/status.json"); !strings.Contains(s, `"name":"k8s-01"`) {
		t.Error(s)
	}

	k = newRack(t, t.TempDir(), &Machine{Name: "crowd", Pool: "crowd", Roles: []string{"worker"}})
	k.from = mac9
	if p := k.hello(mac9, emptyDisk); p.Action != install.Write || p.Node != "crowd/"+mac9 {
		t.Errorf("%+v", p)
	}
	if l := k.Lines(); len(l) != 3 || l[2].Name != "crowd/"+mac9 {
		t.Errorf("%+v", l)
	}
	// Its agent is heard of like those of the file's machines.
	if status := k.post(install.InstalledPath, install.Progress{MAC: mac9, Phase: install.Installed}, nil); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	of := k.OfPool("crowd")
	if len(of) != 1 || of[0].Name != "crowd/"+mac9 || of[0].MAC != mac9 || len(k.OfPool("crow")) != 0 {
		t.Fatalf("%+v", of)
	}
	k.Heard(of[0].Name, "join", "an API server answers", time.Now())
	if l := k.Lines(); len(l) != 3 || l[2].Phase != "join" || !l[2].Installed {
		t.Errorf("%+v", l)
	}
}

// TestForgotten: a server that has lost what it knew believes a machine that it is installed,
// and writes nothing to it afterwards.
func TestForgotten(t *testing.T) {
	k := newRack(t, t.TempDir(), nil)
	if status := k.post(install.InstalledPath, install.Progress{MAC: mac1, Phase: install.Installed}, nil); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	k.boots(mac1, "sanboot")
	if p := k.hello(mac1, emptyDisk); p.Action != install.Stop {
		t.Errorf("%+v", p)
	}
	k.from = mac9
	if status := k.post(install.InstalledPath, install.Progress{MAC: mac9, Phase: install.Installed}, nil); status != http.StatusConflict {
		t.Errorf("an unknown machine: status %d", status)
	}
	k.from = mac1
	if status := k.post(install.ProgressPath, install.Progress{MAC: mac1, Phase: install.Writing}, nil); status != http.StatusConflict {
		t.Errorf("writing without having been told to: status %d", status)
	}
}

// TestHostile: nonsense is refused, and nothing falls over.
func TestHostile(t *testing.T) {
	k := newRack(t, t.TempDir(), nil)
	for _, body := range []string{"", "[", `{"disks": 3}`, `{"mac": "` + strings.Repeat("x", 1<<20) + `"}`} {
		for _, path := range []string{install.HelloPath, install.ProgressPath, install.InstalledPath} {
			resp, err := http.Post(k.http.URL+path, "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusForbidden {
				t.Errorf("%.20s to %s: %s", body, path, resp.Status)
			}
		}
	}
	if status := k.post(install.ProgressPath, install.Progress{MAC: mac1, Phase: "installed"}, nil); status != http.StatusBadRequest {
		t.Errorf("status %d", status)
	}
	for _, path := range []string{"/boot/../../etc/passwd", "/image/", "/seed/", "/seed/..%2f..%2fetc%2fpasswd", "/etc/passwd"} {
		if status, s := k.get(path); status == 200 {
			t.Errorf("%s: %s", path, s)
		}
	}
}

// TestCrowd: machines that nobody knows, of which there may be any number, take little room,
// and the known ones stay.
func TestCrowd(t *testing.T) {
	k := newRack(t, t.TempDir(), nil)
	k.config.Logf = func(string, ...any) {}
	k.Meets(mac1, "")
	for i := range 5 * maxUnknown {
		k.Meets(fmt.Sprintf("02:00:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255), "")
	}
	if l := k.Lines(); len(l) > maxUnknown+2 || l[0].Phase != "asks for an address" {
		t.Errorf("%d lines, the first %+v", len(l), l[0])
	}
}
