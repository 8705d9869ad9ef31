//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/initrd"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/install/pack"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/qemu"
)

const (
	installGiB   = 10
	seedBelow    = "var/lib/cloud/seed/nocloud"
	rootNumber   = 1
	linkCutAfter = 200 << 20 // bytes of the image, on the first link
)

// TestInstall: a machine with a used disk, and one that is another's, boots the image's own
// kernel, is told to wait, then to install; its power fails, its link is lost, and it ends
// with the image on its disk, byte for byte, and with its config, by which it boots.
func TestInstall(t *testing.T) {
	enough(t, 2, "make e2e")
	dir, key := t.TempDir(), newKey(t)
	s := newInstallServer(t, dir, key)
	c := qemu.Config{Dir: filepath.Join(dir, "node"), Image: usedDisk(t, dir), Format: "raw", Second: foreignDisk(t, dir), NoReboot: true, CPUs: 2, MemoryMiB: 1024, UUID: "AAAAAAAA-0000-4000-8000-000000000001", Serial: "S1"}
	c.Kernel, c.Initrd = s.boot(dir)
	c.Append = fmt.Sprintf("console=ttyS0 panic=1 kimage.server=http://10.0.2.2:%s kimage.mac=%s kimage.ip=10.0.2.15 kimage.netmask=255.255.255.0 kimage.gateway=10.0.2.2", s.port, qemu.MAC)
	before := fileSum(t, c.Second)
	m, err := qemu.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { m.Kill() }()
	started := time.Now()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.halfway:
	case <-time.After(4 * time.Minute):
		t.Fatalf("nothing was written; console:\n%s", lastLines(m.Console(), 60))
	}
	m.Kill() // the power fails
	t.Logf("power cut after %s", time.Since(started).Round(time.Second))
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := m.Wait(ctx); err != nil {
		t.Fatalf("%v; console:\n%s", err, lastLines(m.Console(), 60))
	}
	t.Logf("installed after %s; console:\n%s", time.Since(started).Round(time.Second), lastLines(m.Console(), 25))
	s.judge()
	if fileSum(t, c.Second) != before {
		t.Error("the other's disk was written to")
	}
	raw := filepath.Join(dir, "after.raw")
	need.Judge(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", m.Disk(), raw)
	s.judgeDisk(raw)

	c.Kernel, c.Initrd, c.Append, c.NoReboot, c.Isolated = "", "", "", false, true
	m = qemu.Open(c)
	n := &node{m, t, user, key}
	n.start()
	n.must("test $(hostname) = node-1", time.Minute)
	n.until("running", "systemctl is-system-running --wait || true", 8*time.Minute)
	if out := n.must("sfdisk --verify /dev/vda 2>&1; df --output=size -BM /var/lib/kimage | tail -1", time.Minute); !strings.Contains(out, "No errors detected") {
		t.Error(out)
	} else {
		t.Log(out)
	}
}

// installServer is the other side of pkg/install, and what it heard.
type installServer struct {
	t       *testing.T
	port    string
	frames  string // file
	index   []byte
	digest  string
	seeds   map[string]string
	started bool          // the first link was cut
	halfway chan struct{} // closed when much is written

	once sync.Once

	mu        sync.Mutex
	hellos    []install.Hello
	phases    []string
	installed []install.Progress
}

func newInstallServer(t *testing.T, dir string, key qemu.Key) *installServer {
	t.Helper()
	s := &installServer{t: t, frames: filepath.Join(dir, "frames"), halfway: make(chan struct{}), seeds: map[string]string{
		"meta-data": "instance-id: node-1\nlocal-hostname: node-1\n", "network-config": networkConfig, "user-data": "#cloud-config\nssh_authorized_keys:\n- " + key.Public + "\n"}}
	disk, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	out, err := os.Create(s.frames)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	began := time.Now()
	index, err := pack.Image(t.Context(), out, disk, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	if s.index, s.digest, err = index.Encode(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB of disk are %d MiB of frames and %d KiB of index, after %s", index.DiskBytes>>20, index.PackedBytes()>>20, len(s.index)>>10, time.Since(began).Round(time.Second))
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.port = u.Port()
	return s
}

// boot makes the kernel and the initramfs.
func (s *installServer) boot(dir string) (kernel, initramfs string) {
	s.t.Helper()
	agent, err := os.ReadFile("../cmd/kimage/agent/kimage-agent-amd64")
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := initrd.Make(s.t.Context(), image, agent)
	if err != nil {
		s.t.Fatal(err)
	}
	kernel, initramfs = filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	for file, data := range map[string][]byte{kernel: b.Kernel, initramfs: b.Initrd} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Logf("Linux %s, initramfs of %d MiB", b.Version, len(b.Initrd)>>20)
	return kernel, initramfs
}

func (s *installServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.URL.Path {
	case install.HelloPath:
		var h install.Hello
		json.NewDecoder(r.Body).Decode(&h)
		s.hellos = append(s.hellos, h)
		p := install.Plan{Action: install.Wait, Reason: "another machine first"}
		if len(s.hellos) > 1 {
			p = install.Plan{Action: install.Write, Node: "node-1", Disk: "vda", Image: "/image", Index: "/index", SHA256: s.digest, Seed: "/seed",
				SeedTo: install.Place{Partition: rootNumber, Type: "ext4", Directory: "/" + seedBelow}}
		}
		json.NewEncoder(w).Encode(p)
	case install.ProgressPath, install.InstalledPath:
		var p install.Progress
		json.NewDecoder(r.Body).Decode(&p)
		if p.MAC != qemu.MAC || p.Error != "" && p.Phase == install.Failed {
			s.t.Errorf("progress %+v", p)
		}
		if p.Done > 300<<20 {
			s.once.Do(func() { close(s.halfway) })
		}
		if r.URL.Path == install.InstalledPath {
			s.installed = append(s.installed, p)
		} else if !slices.Contains(s.phases, p.Phase) {
			s.phases = append(s.phases, p.Phase)
		}
	case "/index":
		w.Write(s.index)
	case "/seed":
		w.Write(s.seed())
	case "/image":
		first := !s.started && len(s.hellos) > 2 // of the second attempt
		s.started = s.started || first
		s.mu.Unlock()
		defer s.mu.Lock()
		if first {
			w = &cutLink{w, linkCutAfter}
		}
		http.ServeFile(w, r, s.frames)
	default:
		http.NotFound(w, r)
	}
}

// cutLink ends after so many bytes.
type cutLink struct {
	http.ResponseWriter
	left int
}

func (c *cutLink) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	if c.left -= n; c.left == 0 {
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func (s *installServer) seed() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range s.seeds {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(content)), Typeflag: tar.TypeReg})
		io.WriteString(w, content)
	}
	w.Close()
	return b.Bytes()
}

// judge judges what the machine told of itself.
func (s *installServer) judge() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.hellos) < 2 || len(s.installed) != 1 || s.installed[0].Done != s.installed[0].Total {
		s.t.Fatalf("%d hellos, installed: %+v", len(s.hellos), s.installed)
	}
	h := s.hellos[0]
	data, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("it said %s; then %v", data, s.phases)
	if h.MAC != qemu.MAC || h.UUID != "aaaaaaaa-0000-4000-8000-000000000001" || h.Serial != "S1" || h.MemoryMiB < 800 || len(h.Disks) != 2 {
		s.t.Fatal("which is not what it is")
	}
	if d := h.Disks[0]; d.Name != "vda" || d.Content != install.Empty || d.SizeBytes != installGiB<<30 || d.SectorBytes != 512 || !strings.Contains(strings.Join(d.Paths, " "), "/dev/disk/by-path/virtio-pci-0000:00:") {
		s.t.Errorf("the used disk: %+v", d)
	}
	if d := s.hellos[len(s.hellos)-1].Disks[0]; d.Content != install.Kimage || !strings.Contains(d.What, "did not end") {
		s.t.Errorf("the disk after the power cut: %+v", d)
	}
	if d := h.Disks[1]; d.Name != "vdb" || d.Content != install.Other || !strings.Contains(d.What, "ext4") {
		s.t.Errorf("the other's disk: %+v", d)
	}
	if !slices.Contains(s.phases, install.Writing) {
		s.t.Errorf("phases: %v", s.phases)
	}
}

// usedDisk has random bytes in places: at its start and its end, around where the image's
// partitions begin, and where the image has zeros.
func usedDisk(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "used.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(installGiB << 30); err != nil {
		t.Fatal(err)
	}
	random, b := rand.NewChaCha8([32]byte{5}), make([]byte, 8<<20)
	for _, mib := range []int64{0, 120, 1000, 3196, 4000, 6268, 8000, 8380, 9000, installGiB<<10 - 8} {
		random.Read(b)
		if _, err := f.WriteAt(b, mib<<20); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

func foreignDisk(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(dir, "foreign.raw")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	err := ext4.Make(t.Context(), ext4.MakeConfig{File: file, SizeBytes: 64 << 20, Label: "precious", UUID: "11111111-2222-8333-8444-555555555555", JournalMiB: 4, UnixTime: 1, ScratchDirectory: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func fileSum(t *testing.T, file string) [32]byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

// judgeDisk compares a disk with the image: all is equal but what the config changed in the
// root file system, and the old content of the disk's end is gone.
func (s *installServer) judgeDisk(raw string) {
	t := s.t
	t.Helper()
	want, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	got, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	fi, err := want.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, err := parttable.Read(got, installGiB<<30)
	if err != nil {
		t.Fatal(err)
	}
	root := table.Partitions[slices.IndexFunc(table.Partitions, func(p parttable.Partition) bool { return p.Number == rootNumber })]
	const block = 4096
	a, b, changed := make([]byte, 4<<20), make([]byte, 4<<20), 0
	for at := int64(0); at < fi.Size(); at += int64(len(a)) {
		n := min(int64(len(a)), fi.Size()-at)
		if _, err := want.ReadAt(a[:n], at); err != nil {
			t.Fatal(err)
		}
		if _, err := got.ReadAt(b[:n], at); err != nil {
			t.Fatal(err)
		}
		for i := int64(0); i < n; i += block {
			if bytes.Equal(a[i:min(i+block, n)], b[i:min(i+block, n)]) {
				continue
			}
			if at+i < root.OffsetBytes() || at+i >= root.OffsetBytes()+root.SizeBytes() {
				t.Fatalf("the disk differs from the image at byte %d", at+i)
			}
			changed++
		}
	}
	t.Logf("the config changed %d blocks of the root", changed)
	if changed == 0 || changed > 500 {
		t.Errorf("the config changed %d blocks of the root", changed)
	}
	end := make([]byte, 4<<20)
	if _, err := got.ReadAt(end, installGiB<<30-int64(len(end))); err != nil || !bytes.Equal(end, make([]byte, len(end))) {
		t.Errorf("what was at the disk's end is still there (%v)", err)
	}
	v := ext4.Volume{File: raw, OffsetBytes: root.OffsetBytes()}
	if err := v.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for name, content := range s.seeds {
		data, err := v.ReadFile(t.Context(), seedBelow+"/"+name)
		if err != nil || string(data) != content {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		inode, err := v.Inodes(t.Context(), []string{seedBelow + "/" + name})
		if n := inode[seedBelow+"/"+name]; err != nil || n.Mode != 0o600 || n.UID != 0 {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}
