package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/images/components"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/oci"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/sparse"
	"github.com/kimage-project/kimage/pkg/tree"
)

// TestMain: the test program is also kimage.
func TestMain(m *testing.M) {
	if os.Getenv("KIMAGE_TEST_RUN") != "" {
		os.Exit(run(os.Args[1:]))
	}
	status := m.Run()
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(status)
}

// fixture is a small base of Debian's layout and a mirror of small files: the
// formats are real, the programs are not.
type fixture struct{ dir, base, flatcar, mirror, agent string }

var shared struct {
	once sync.Once
	dir  string
	err  error
}

func fixtures(t *testing.T) fixture {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "kimage-test"); shared.err != nil {
			return
		}
		shared.err = errors.Join(os.Chmod(shared.dir, 0o755), writeBase(filepath.Join(shared.dir, "base.raw"), shared.dir, debianDisk), writeBase(filepath.Join(shared.dir, "flatcar.raw"), shared.dir, flatcarDisk),
			writeMirror(filepath.Join(shared.dir, "mirror"), "v1.37.2", "amd64"), os.WriteFile(filepath.Join(shared.dir, "agent"), []byte("#!agent"), 0o755))
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	d := shared.dir
	return fixture{d, filepath.Join(d, "base.raw"), filepath.Join(d, "flatcar.raw"), filepath.Join(d, "mirror"), filepath.Join(d, "agent")}
}

const linuxData = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

// smallDisk is a small disk of some system's layout. Its root, the last partition, is ext4.
type smallDisk struct {
	partitions []parttable.Partition // their sizes in MiB are in LastLBA
	label      string
	files      map[string]string
}

var debianDisk = smallDisk{[]parttable.Partition{{Number: 1, Name: "root", TypeGUID: linuxData, LastLBA: 64}}, "root", map[string]string{
	"usr/lib/os-release":                           "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nID=debian\nVERSION_ID=\"13\"\n",
	"usr/lib/x86_64-linux-gnu/libcryptsetup.so.12": "elf", "usr/bin/true": "elf", "usr/lib/systemd/system/x.service": "", "etc/hostname": "localhost\n",
}}

// flatcarDisk has /usr on a partition of its own, which nothing here can read.
var flatcarDisk = smallDisk{[]parttable.Partition{
	{Number: 1, Name: "EFI-SYSTEM", TypeGUID: "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", LastLBA: 4},
	{Number: 2, Name: "BIOS-BOOT", TypeGUID: "21686148-6449-6E6F-744E-656564454649", LastLBA: 2},
	{Number: 3, Name: "USR-A", TypeGUID: "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6", GUID: "7130C94A-213A-4E5A-8E26-6CCE9662F132", Attributes: 0x0101 << 48, LastLBA: 8},
	{Number: 4, Name: "USR-B", TypeGUID: "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6", GUID: "E03DD35C-7C2D-4A47-B3FE-27F15780A57C", LastLBA: 8},
	{Number: 6, Name: "OEM", TypeGUID: linuxData, LastLBA: 2},
	{Number: 7, Name: "OEM-CONFIG", TypeGUID: "C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0", LastLBA: 2},
	{Number: 9, Name: "ROOT", TypeGUID: "3884DD41-8582-4404-B9A8-E9B84F2DF50E", LastLBA: 64},
}, "ROOT", map[string]string{"etc/flatcar/update.conf": "SERVER=none\n"}}

func writeBase(file, scratch string, d smallDisk) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	table := parttable.New(parttable.DeriveGUID("test"))
	const mib = 1 << 20 / parttable.SectorBytes
	next := uint64(4 * mib)
	var root parttable.Partition
	for i, p := range d.partitions {
		p.FirstLBA, next = next, next+p.LastLBA*mib
		if p.LastLBA = next - 1; p.GUID == "" {
			p.GUID = parttable.DeriveGUID(p.Name)
		}
		if root, err = table.Add(p); err != nil {
			return err
		}
		// What is in a vendor's partition must stay.
		if i < len(d.partitions)-1 {
			if _, err := f.WriteAt([]byte("content of "+p.Name), p.OffsetBytes()+4096); err != nil {
				return err
			}
		}
	}
	size := int64(next+28*mib) * parttable.SectorBytes
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := table.Write(f, size); err != nil {
		return err
	}
	if err := ext4.Make(context.Background(), ext4.MakeConfig{File: file, OffsetBytes: root.OffsetBytes(), SizeBytes: root.SizeBytes(), Label: d.label,
		UUID: "aaaaaaaa-bbbb-8ccc-8ddd-eeeeeeeeeeee", JournalMiB: 4, UnixTime: 1, ScratchDirectory: scratch}); err != nil {
		return err
	}
	t := tree.New()
	for p, content := range d.files {
		if err := t.Bytes(p, 0o644, []byte(content)); err != nil {
			return err
		}
	}
	return ext4.Volume{File: file, OffsetBytes: root.OffsetBytes(), UnixTime: 1}.Add(context.Background(), t, nil, scratch)
}

func put(file string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644)
}

// writeMirror writes what components.Downloads lists.
func writeMirror(dir, kubernetes, arch string) error {
	downloads, refs, err := components.Downloads(kubernetes, "flannel", arch)
	if err != nil {
		return err
	}
	sums := map[string]string{}
	for _, d := range downloads {
		u, err := url.Parse(d.URL)
		if err != nil {
			return err
		}
		content := []byte("#!program " + u.Path)
		if len(d.Members) > 0 {
			if content, err = archive(d.Members); err != nil {
				return err
			}
		}
		if err := put(filepath.Join(dir, u.Host, u.Path), content); err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		c, err := url.Parse(d.Checksum)
		if err != nil {
			return err
		}
		sums[filepath.Join(dir, c.Host, c.Path)] += hex.EncodeToString(sum[:]) + "  " + path.Base(u.Path) + "\n"
	}
	for file, content := range sums {
		if err := put(file, []byte(content)); err != nil {
			return err
		}
	}
	for _, ref := range refs {
		if err := writeImage(dir, ref, arch); err != nil {
			return err
		}
	}
	return nil
}

func archive(members []string) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, m := range members {
		content := []byte("#!program " + m)
		if err := w.WriteHeader(&tar.Header{Name: "./" + m, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	err := errors.Join(w.Close(), z.Close())
	return b.Bytes(), err
}

// writeImage lays an image out as its registry serves it.
func writeImage(dir, ref, arch string) error {
	work, err := os.MkdirTemp(dir, "work")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	t := tree.New()
	if err := t.Bytes("program", 0o755, []byte(ref)); err != nil {
		return err
	}
	l, err := oci.WriteLayer(t, filepath.Join(work, "layer"), time.Unix(1, 0))
	if err != nil {
		return err
	}
	layout := filepath.Join(work, "layout")
	if err := oci.WriteLayout(layout, oci.Config{Arch: arch, Entrypoint: []string{"/program"}, Created: time.Unix(1, 0)}, []oci.Layer{l}); err != nil {
		return err
	}
	digest, _, err := oci.Manifest(layout)
	if err != nil {
		return err
	}
	registry, rest, _ := strings.Cut(ref, "/")
	name, tag, _ := strings.Cut(rest, ":")
	repository := filepath.Join(dir, registry, "v2", name)
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		return err
	}
	for _, b := range blobs {
		data, err := os.ReadFile(b)
		if err != nil {
			return err
		}
		if "sha256:"+filepath.Base(b) == digest {
			err = errors.Join(put(filepath.Join(repository, "manifests", tag), data), put(filepath.Join(repository, "manifests", digest), data))
		} else {
			err = put(filepath.Join(repository, "blobs", "sha256:"+filepath.Base(b)), data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// asRoot is for a test that makes namespaces.
func asRoot(t *testing.T) {
	t.Helper()
	need.Root(t, "a namespace")
}

// command is kimage as a child process.
func command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "KIMAGE_TEST_RUN=1")
	return cmd
}

// kimage runs a command line to its end.
func kimage(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	return finish(t, command(args...))
}

func finish(t *testing.T, cmd *exec.Cmd) (string, string, int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// args are those of a build that needs no network: what a test is about is
// appended, and wins.
func (f fixture) args(cache, out string, more ...string) []string {
	dir := cache
	if !filepath.IsAbs(dir) {
		dir = f.dir
	}
	return append([]string{"build", "--os", "debian-13", "--base", f.base, "--components", f.mirror, "--agent", f.agent, "--cache", cache, "--lock", filepath.Join(dir, strings.ReplaceAll(out, "/", "-")+".lock"), "-o", out}, more...)
}

type built struct {
	APIVersion, Name, ImageID, OS, Kubernetes, Runtime, Network, Arch, Manifest string
	Artifacts                                                                   []artifact
}

type artifact struct {
	Format, Path, SHA256 string
	SizeBytes            int64
	Digest               string `json:"-"`
}

// buildJSON bakes and must succeed.
func buildJSON(t *testing.T, args ...string) built {
	t.Helper()
	out, errOut, status := kimage(t, append(args, "--json")...)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errOut)
	}
	var b built
	if err := json.Unmarshal([]byte(out), &b); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	return b
}

// build is buildJSON without the checksums, which take longer than all else.
func build(t *testing.T, args ...string) built {
	t.Helper()
	if _, errOut, status := kimage(t, args...); status != 0 {
		t.Fatalf("status %d: %s", status, errOut)
	}
	out := args[slices.Index(args, "-o")+1]
	manifests, err := filepath.Glob(filepath.Join(out, "*.json"))
	if err != nil || len(manifests) != 1 {
		t.Fatalf("%v in %s", manifests, out)
	}
	data, err := os.ReadFile(manifests[0])
	if err != nil {
		t.Fatal(err)
	}
	b := built{Manifest: manifests[0]}
	if err := json.Unmarshal(data, &b); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"qcow2", "raw"} {
		a := artifact{Format: format, Path: strings.TrimSuffix(manifests[0], "json") + format}
		fi, err := os.Stat(a.Path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		a.SizeBytes, a.Digest = fi.Size(), digest(t, a.Path)
		b.Artifacts = append(b.Artifacts, a)
	}
	return b
}

// digest names the content of a file without reading its holes.
func digest(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := sparse.DigestFile(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func sha256File(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum, _, err := sparse.SHA256(t.Context(), f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return fmt.Sprint(names)
}
