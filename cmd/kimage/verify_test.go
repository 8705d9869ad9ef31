package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/ddi"
	"github.com/kimage-project/kimage/pkg/need"
)

type verification struct {
	APIVersion, File, Format, Name, ImageID string
	Verified                                bool
	Checks                                  []struct{ Thing, Result, With, Got, Want, Remedy, Why string }
}

func (v verification) of(result string) (things []string) {
	for _, c := range v.Checks {
		if c.Result == result {
			things = append(things, c.Thing)
		}
	}
	return things
}

// verified runs kimage verify; there must be an answer, and nothing be left behind.
func verified(t *testing.T, file string) verification {
	t.Helper()
	tmp := t.TempDir()
	cmd := command("verify", "--json", file)
	cmd.Env = append(cmd.Env, "TMPDIR="+tmp)
	out, errOut, status := finish(t, cmd)
	var v verification
	if err := json.Unmarshal([]byte(out), &v); err != nil || status == 2 {
		t.Fatalf("status %d, %v\n%s%s", status, err, out, errOut)
	}
	if wrong := v.of("differs"); v.Verified != (status == 0) || v.Verified != (len(wrong) == 0) || v.APIVersion != "kimage.dev/v1alpha1" {
		t.Errorf("status %d, verified %t, differs %q", status, v.Verified, wrong)
	}
	for _, c := range v.Checks {
		if c.Result == "differs" && (c.Got == "" || c.Remedy == "") || c.Result == "ok" && c.With == "" || c.Result == "notJudged" && c.Why == "" {
			t.Errorf("says too little: %+v", c)
		}
	}
	if left, err := filepath.Glob(filepath.Join(tmp, "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return v
}

// TestVerify: a good image is verified in every format that is read, and what cannot be
// judged is said.
func TestVerify(t *testing.T) {
	b := bakedImage(t)
	var first []string
	for _, format := range []string{"raw", "qcow2", "vhd"} {
		v := verified(t, b.file+"."+format)
		if wrong := v.of("differs"); len(wrong) > 0 || v.Format != format || v.Name != "debian-13-v1.37.2-amd64" || len(v.ImageID) != 12 {
			t.Errorf("%s: %+v", format, v)
		}
		good := v.of("ok")
		if format == "raw" {
			first = good
		}
		if !slices.Equal(good, first) {
			t.Errorf("%s: %q, and of raw %q", format, good, first)
		}
		if got, want := v.of("notJudged"), []string{"content of unpacked layers", "files of the base"}; !slices.Equal(got, want) {
			t.Errorf("%s: not judged: %q, want %q", format, got, want)
		}
	}
	for _, want := range []string{"partition table", "file system of KIMAGE", "file system of the root", "payload", "payload in the manifest", "hash tree of the payload", "root hash in the root", "root hash beside the payload",
		"root hash in the manifest", "kubernetes v1.37.2", "kimage-agent 0.1.0", "manifest", "manifest beside the image", "imageID", "bill of materials", "registry.k8s.io/pause:3.10.2", "containerd's names of the images",
		"sizes of unpacked layers", "activation files"} {
		if !slices.Contains(first, want) {
			t.Errorf("%s was not judged: %q", want, first)
		}
	}
	out, errOut, status := kimage(t, "verify", b.file+".raw")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); status != 0 || len(lines) != len(first)+2+2 || !strings.HasPrefix(lines[len(lines)-1], "verified: "+b.file+".raw, imageID ") {
		t.Errorf("status %d\n%s", status, out)
	}
	if !strings.Contains(errOut, "[5/5] root file system") {
		t.Errorf("no stages in\n%s", errOut)
	}
	if out, errOut, status := kimage(t, "verify", "--quiet", b.file+".raw"); out+errOut != "" || status != 0 {
		t.Errorf("--quiet: status %d, %q", status, out+errOut)
	}
}

// TestVerifyDamaged: one changed byte, wherever something records what it should be, and
// the image is not verified; the thing is named.
func TestVerifyDamaged(t *testing.T) {
	b := bakedImage(t)
	im, err := ddi.Open(bytes.NewReader(b.payload), int64(len(b.payload)))
	if err != nil {
		t.Fatal(err)
	}
	part := func(off, n int64) []byte { return b.payload[off : off+n] }
	_, tree, _ := im.Tree.Outer()
	const ref = "registry.k8s.io/pause:3.10.2"
	manifest, config := b.blobs(t, ref)
	last := func(file string) int64 {
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size() - 512
	}
	inKIMAGE := func(content string, nth int, plus int64) func(*testing.T, string) int64 {
		return func(t *testing.T, file string) int64 { return find(t, file, b.kimage, []byte(content), nth) + plus }
	}
	inRoot := func(content string, plus int64) func(*testing.T, string) int64 {
		return func(t *testing.T, file string) int64 { return find(t, file, b.root, []byte(content), 0) + plus }
	}
	at := func(off int64) func(*testing.T, string) int64 {
		return func(*testing.T, string) int64 { return off }
	}
	for _, tt := range []struct {
		name string
		at   func(*testing.T, string) int64
		want []string // exactly these differ
	}{
		{"primary GPT", at(512 + 60), []string{"partition table"}},
		{"primary GPT's entries", at(1024 + 60), []string{"partition table"}},
		{"backup GPT", func(_ *testing.T, file string) int64 { return last(file) + 60 }, []string{"partition table"}},
		{"protective MBR", at(511), []string{"partition table"}},
		{"superblock of KIMAGE", at(b.kimage.OffsetBytes() + 1024 + 0x0C), []string{"file system of KIMAGE"}},
		{"superblock of the root", at(b.root.OffsetBytes() + 1024 + 0x0C), []string{"file system of the root"}},
		{"group descriptors of the root", at(b.root.OffsetBytes() + 4096 + 8), []string{"file system of the root", "root"}},
		{"payload's first data", inKIMAGE(string(part(ddi.FilesystemOffset+96, 64)), 0, 20), []string{"payload", "payload in the manifest", "data of the payload", "/usr/bin/containerd"}},
		{"payload's hash tree", inKIMAGE(string(part(tree+4096, 64)), 0, 33), []string{"payload", "payload in the manifest", "hash tree of the payload"}},
		{"payload's partition table", inKIMAGE(string(part(512, 92)), 0, 60), []string{"payload", "payload in the manifest", "partition table of the payload"}},
		{"name in the manifest", inKIMAGE(`"os": "debian-13"`, 0, 15), []string{"manifest"}},
		{"space in the manifest", inKIMAGE(`"os": "debian-13"`, 0, 5), []string{"manifest"}},
		{"payload's digest in the manifest", inKIMAGE(`"payload": {`, 0, 60), []string{"payload in the manifest"}},
		{"root hash in the manifest", inKIMAGE(`"rootHash": "`, 0, 20), []string{"root hash in the manifest"}},
		{"root hash beside the payload", inKIMAGE(b.rootHash, 0, 20), []string{"root hash beside the payload"}},
		{"root hash in the root", inRoot(b.rootHash, 20), []string{"root hash in the root"}},
		{"bill of materials", inKIMAGE(`"versionInfo": "v1.37.2"`, 0, 21), []string{"bill of materials"}},
		{"namespace in the bill of materials", inKIMAGE(`https://kimage.dev/spdx/`, 0, 2), []string{"bill of materials"}},
		{"image's manifest", inKIMAGE(manifest, 0, 40), []string{ref}},
		{"image's config", inKIMAGE(config, 0, 40), []string{ref}},
		{"containerd's database", inKIMAGE(ref, 0, 3), []string{"containerd's names of the images"}},
		{"activation file", inRoot("# Finds the partition KIMAGE on the disk", 5), []string{"/etc/kimage/activate"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := b.copied(t)
			flipAt(t, file, tt.at(t, file))
			v := verified(t, file)
			got := v.of("differs")
			if v.Verified || !slices.Equal(got, tt.want) {
				t.Errorf("differs: %q, want %q: %+v", got, tt.want, v.Checks)
			}
		})
	}
}

// TestVerifyDamagedQcow2: the same in the other format, and for people: the thing, what
// it is and should be, and the remedy.
func TestVerifyDamagedQcow2(t *testing.T) {
	b := bakedImage(t)
	need.Program(t, "qemu-img", "qemu-utils")
	file := b.copied(t)
	flipAt(t, file, find(t, file, b.root, []byte(b.rootHash), 0)+20)
	qcow2 := filepath.Join(t.TempDir(), "image.qcow2")
	need.Judge(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", file, qcow2)
	if v := verified(t, qcow2); v.Format != "qcow2" || !slices.Equal(v.of("differs"), []string{"root hash in the root"}) {
		t.Errorf("%+v", v)
	}
	for _, quiet := range []bool{false, true} {
		args := []string{"verify", qcow2}
		if quiet {
			args = append(args, "--quiet")
		}
		out, _, status := kimage(t, args...)
		for _, want := range []string{"root hash in the root", "DIFFERS", "want  " + b.rootHash, "NOT VERIFIED: " + qcow2, "bake it again"} {
			if status != 1 || !quiet != strings.Contains(out, want) && !(quiet && strings.Contains(out, "NOT VERIFIED")) {
				t.Errorf("quiet %t: status %d, no %q in\n%s", quiet, status, want, out)
			}
		}
	}
}

// TestVerifyBooted: a disk that ran is no damaged image, and the remedy is another one.
func TestVerifyBooted(t *testing.T) {
	b := bakedImage(t)
	file := b.copied(t)
	need.Judge(t, "debugfs", "-w", "-R", "ssv state 0", ext4Device(file, b.root))
	v := verified(t, file)
	if !slices.Equal(v.of("differs"), []string{"file system of the root"}) {
		t.Errorf("%+v", v)
	}
	if out, _, _ := kimage(t, "verify", file); !strings.Contains(out, "it was mounted") || !strings.Contains(out, "a disk that was booted has changed since") {
		t.Error(out)
	}
}

// TestVerifyLayers: of an unpacked layer the sizes are judged, and that its content is not
// is said.
func TestVerifyLayers(t *testing.T) {
	b := bakedImage(t)
	const layer = "/state/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs"
	change := func(script string) verification {
		t.Helper()
		file := b.copied(t)
		cmd := exec.Command("debugfs", "-w", "-f", "-", ext4Device(file, b.kimage))
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return verified(t, file)
	}
	content := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(content, []byte("other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if v := change("rm " + layer + "/program\n"); !slices.Equal(v.of("differs"), []string{"sizes of unpacked layers"}) {
		t.Errorf("a file less: %q", v.of("differs"))
	}
	if v := change("rm " + layer + "/program\nwrite " + content + " " + layer + "/program\n"); !v.Verified || !slices.Contains(v.of("notJudged"), "content of unpacked layers") {
		t.Errorf("other content: %+v", v)
	}
}

// TestVerifyPlain: a payload without a hash tree is compared with its digest in the root.
func TestVerifyPlain(t *testing.T) {
	f := fixtures(t)
	base, out := filepath.Join(t.TempDir(), "base.raw"), t.TempDir()
	need.Judge(t, "cp", "--sparse=always", f.base, base)
	need.Judge(t, "debugfs", "-w", "-R", "rm /usr/lib/x86_64-linux-gnu/libcryptsetup.so.12", base+"?offset=4194304")
	build(t, f.args(filepath.Join(f.dir, "cache"), out, "--base", base, "--images", "none")...)
	b := readBaked(t, filepath.Join(out, "debian-13-v1.37.2-amd64"))
	v := verified(t, b.file+".raw")
	if !v.Verified || !slices.Contains(v.of("ok"), "payload's digest in the root") || !slices.Contains(v.of("ok"), "container images") {
		t.Errorf("%+v", v)
	}
	file := b.copied(t)
	flipAt(t, file, find(t, file, b.kimage, b.payload[200:264], 0))
	if v := verified(t, file); !slices.Contains(v.of("differs"), "payload's digest in the root") || !slices.Contains(v.of("differs"), "payload") {
		t.Errorf("%+v", v)
	}
}

// TestVerifyCannotTell: what is no image, or cannot be read, is neither right nor wrong.
func TestVerifyCannotTell(t *testing.T) {
	f, dir := fixtures(t), t.TempDir()
	for name, content := range map[string][]byte{"empty": nil, "zeros": make([]byte, 1<<20), "text": []byte("hello"), "qcow2": append([]byte("QFI\xfb\x00\x00\x00\x03"), bytes.Repeat([]byte{0xff}, 200)...),
		"packed": append([]byte("\x28\xb5\x2f\xfd"), make([]byte, 1<<20)...)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, command("verify", file), "", name)
		refused(t, command("diff", file, file), "", name)
	}
	for _, c := range [][2]string{{filepath.Join(dir, "missing"), "no such file"}, {dir, "not a file"}, {f.base, "not an image of kimage: it has no partition KIMAGE"}} {
		refused(t, command("verify", c[0]), "", c[1])
		refused(t, command("diff", c[0], f.base), "", c[1])
	}
	refused(t, inNamespace(t, []string{"verify", f.base}, "mount -t tmpfs none /usr/sbin"), "", "e2fsck", "apt-get install e2fsprogs")
}
