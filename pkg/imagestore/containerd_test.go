package imagestore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/tree"
)

// daemon is a containerd of its own.
type daemon struct {
	t            *testing.T
	root, socket string
	ctr          string
	crictl       string
}

func start(t *testing.T, root string) *daemon {
	t.Helper()
	state := t.TempDir()
	d := &daemon{t, root, filepath.Join(state, "s"), need.Built(t, "ctr"), need.Built(t, "crictl")}
	config := fmt.Sprintf("version = 3\nroot = '%s'\nstate = '%s'\n[grpc]\naddress = '%s'\n[ttrpc]\naddress = '%s.ttrpc'\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '%s'\n",
		root, state+"/run", d.socket, d.socket, state)
	file := filepath.Join(state, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(need.Built(t, "containerd"), "--config", file)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(need.Built(t, "containerd-shim-runc-v2"))+":"+filepath.Dir(need.Built(t, "runc"))+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		cmd.Wait()
		unmountBelow(t, state) // what it leaves mounted
		if t.Failed() {
			t.Logf("containerd: %s", log.String())
		}
	})
	for range 150 {
		if exec.Command(d.ctr, "-a", d.socket, "version").Run() == nil {
			return d
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatal("containerd does not answer")
	return nil
}

func unmountBelow(t *testing.T, dir string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir+"/") {
			unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
}

func (d *daemon) run(args ...string) string {
	d.t.Helper()
	return judge(d.t, d.ctr, append([]string{"-a", d.socket, "-n", namespace}, args...)...)
}

func judge(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, &said)
	}
	return string(out)
}

// registry is Debian's docker-registry with the images in it; log returns what
// it was asked.
func registry(t *testing.T) (address string, log func() string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	err = os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nlog: {accesslog: {disabled: false}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", dir, address), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "log")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 100 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return address, func() string {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
}

func push(t *testing.T, im oci.Named) {
	t.Helper()
	ref, err := name.ParseReference(im.Ref)
	if err != nil {
		t.Fatal(err)
	}
	index, err := ocilayout.ImageIndexFromPath(im.Layout)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
}

// unpack lays the store out below root, as the disk would have it.
func unpack(t *testing.T, tr *tree.Tree, root string) {
	t.Helper()
	cmd := exec.Command("tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", root)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := tr.WriteTar(in, time.Unix(unixTime, 0)); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("tar: %v: %s", err, &said)
	}
}

// listing is all that can be seen of the files below dir.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Rdev)
		names := make([]byte, 4096)
		if n, err := unix.Llistxattr(p, names); err == nil {
			for x := range strings.SplitSeq(strings.Trim(string(names[:n]), "\x00"), "\x00") {
				value := make([]byte, 4096)
				if n, err := unix.Lgetxattr(p, x, value); err == nil && x != "" {
					line += fmt.Sprintf(" %s=%x", x, value[:n])
				}
			}
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		case d.Type().IsRegular():
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			first, ok := inodes[st.Ino]
			if !ok {
				first = rel
				inodes[st.Ino] = rel
			}
			line += fmt.Sprintf(" %d %s %q", st.Mtim.Sec, first, content)
		}
		all[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// seen is what a container of the image would see.
func (d *daemon) seen(ref string) map[string]string {
	d.t.Helper()
	dir := d.t.TempDir()
	d.run("images", "mount", ref, dir)
	defer d.run("images", "unmount", "--rm", dir)
	return listing(d.t, dir)
}

// TestContainerd: a real containerd finds the images in their place, shows a
// container the same files as when it pulls them from a real registry, fetches no
// layer of theirs again, and its garbage collector spares them.
func TestContainerd(t *testing.T) {
	need.Root(t, "containerd")
	need.Program(t, "docker-registry", "docker-registry")
	address, asked := registry(t)
	images := twoImages(t)
	for i, r := range []string{"two:2", "one:1"} {
		images[i].Ref = address + "/" + r
		push(t, images[i])
	}
	root, pulledRoot := t.TempDir(), t.TempDir()
	unpack(t, open(t, write(t, images)), root)
	ours, pulled := start(t, root), start(t, pulledRoot)

	crictl := judge(t, ours.crictl, "--runtime-endpoint", "unix://"+ours.socket, "images", "-o", "json")
	var list struct {
		Images []struct {
			RepoTags []string
			Pinned   bool
		}
	}
	if err := json.Unmarshal([]byte(crictl), &list); err != nil || len(list.Images) != 2 || !list.Images[0].Pinned || !list.Images[1].Pinned {
		t.Errorf("crictl (%v): %s", err, crictl)
	}
	for _, im := range images {
		pulled.run("images", "pull", "--plain-http", im.Ref)
		if a, b := ours.seen(im.Ref), pulled.seen(im.Ref); !reflect.DeepEqual(a, b) {
			for p := range b {
				if a[p] != b[p] {
					t.Errorf("%s in %s:\n ours   %s\n pulled %s", p, im.Ref, a[p], b[p])
				}
			}
			for p := range a {
				if _, ok := b[p]; !ok {
					t.Errorf("%s is only in ours: %s", p, a[p])
				}
			}
		} else if len(a) < 3 {
			t.Errorf("%s has only %d files", im.Ref, len(a))
		}
	}

	before := len(asked())
	for _, im := range images {
		ours.run("images", "pull", "--plain-http", im.Ref)
	}
	fetched := asked()[before:]
	for _, im := range images {
		for _, digest := range layerDigests(t, im.Layout) {
			if strings.Contains(fetched, "GET /v2") && strings.Contains(fetched, "/blobs/"+digest) {
				t.Errorf("layer %s of %s was fetched again", digest, im.Ref)
			}
		}
	}
	if !strings.Contains(fetched, "/manifests/") {
		t.Error("the registry was not asked at all")
	}

	ours.run("images", "tag", images[0].Ref, "registry.example/other:1")
	ours.run("images", "rm", "--sync", "registry.example/other:1") // collects garbage before it returns
	for _, im := range images {
		if check := ours.run("images", "check", "name=="+im.Ref); !strings.Contains(check, "true") {
			t.Errorf("%s is not unpacked any more: %s", im.Ref, check)
		}
		if len(ours.seen(im.Ref)) < 3 {
			t.Errorf("%s is empty", im.Ref)
		}
	}
}

func layerDigests(t *testing.T, dir string) (all []string) {
	t.Helper()
	index, err := ocilayout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d.String())
	}
	return all
}
