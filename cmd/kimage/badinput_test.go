package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/need"
)

// refused runs a command line that must fail: status 2, one line that has every
// one of want, nothing in the output directory.
func refused(t *testing.T, cmd *exec.Cmd, out string, want ...string) {
	t.Helper()
	_, errOut, status := finish(t, cmd)
	var last string
	lines := strings.Split(strings.TrimSpace(errOut), "\n")
	if len(lines) > 0 {
		last = lines[len(lines)-1]
	}
	if status != 2 || !strings.HasPrefix(last, "kimage: ") {
		t.Errorf("status %d:\n%s", status, errOut)
	}
	for _, l := range lines[:len(lines)-1] {
		if !strings.HasPrefix(l, "[") && !strings.HasPrefix(l, "      ") {
			t.Errorf("the error has more than one line:\n%s", errOut)
		}
	}
	for _, w := range want {
		if !strings.Contains(last, w) {
			t.Errorf("no %q in: %s", w, last)
		}
	}
	if out != "" {
		if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
			t.Errorf("left behind: %s", listing(t, out))
		}
	}
}

func TestBadWords(t *testing.T) {
	f, cache := fixtures(t), t.TempDir()
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--os", "debian-12x"}, []string{`"debian-12x"`, "did you mean debian-12"}},
		{[]string{"--os", "plan9"}, []string{"known are", "debian-13"}},
		{[]string{"--os", ""}, []string{"--os", "kimage list os"}},
		{[]string{"--kubernetes", "v1.37.99"}, []string{"v1.37.99", "v1.37.2"}},
		{[]string{"--format", "parallels"}, []string{`"parallels"`, "qcow2", "raw"}},
		{[]string{"--format", "qcow"}, []string{"did you mean qcow2"}},
		{[]string{"--network", "flanel"}, []string{"did you mean flannel"}},
		{[]string{"--runtime", "containrd"}, []string{"did you mean containerd"}},
		{[]string{"--images", "some"}, []string{"all", "control-plane", "none"}},
		{[]string{"--arch", "riscv64"}, []string{`"riscv64"`, "amd64"}}, {[]string{"--arch", "arm64", "--base", "packages"}, []string{"amd64 alone", "--base vendor"}},
		{[]string{"--name", "../up"}, []string{"--name", "lower-case"}},
		{[]string{"--agent", "/no/such/agent"}, []string{"--agent", "/no/such/agent"}},
		{[]string{"--agent", "/dev"}, []string{"--agent", "not a program"}},
		{[]string{"--base", "/no/such/base"}, []string{"--base", "/no/such/base"}},
		{[]string{"--base", "/dev"}, []string{"/dev/cloud.debian.org/", "--mirror"}},
		{[]string{"--components", "/no/such/dir"}, []string{"--components", "/no/such/dir"}},
		{[]string{"--components", "relase"}, []string{"relase", "release, source"}},
		{[]string{"--os", "debian-12", "--network", "x", "--runtime", "y"}, []string{`"x"`, `"y"`}}, // all at once
		{[]string{"--no-such-flag"}, []string{"no-such-flag"}},
		{[]string{"extra"}, []string{"extra"}},
		{[]string{"-f", "/no/such/cluster.yaml"}, []string{"/no/such/cluster.yaml"}},
		{[]string{"-f", "/etc/passwd"}, []string{"/etc/passwd: line 1: this is not a cluster file"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			refused(t, command(f.args(cache, out, c.args...)...), out, c.want...)
		})
	}
}

func damagedBase(t *testing.T, f fixture, damage string) string {
	t.Helper()
	base := filepath.Join(t.TempDir(), "base.raw")
	need.Judge(t, "cp", "--sparse=always", f.base, base)
	v := ext4.Volume{File: base, OffsetBytes: 8192 * 512}
	device := fmt.Sprintf("%s?offset=%d", v.File, v.OffsetBytes)
	debugfs := func(script string) {
		cmd := exec.Command("debugfs", "-w", "-f", "-", device)
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	switch damage {
	case "no table":
		need.Judge(t, "dd", "if=/dev/zero", "of="+base, "bs=1M", "count=1", "conv=notrunc")
		need.Judge(t, "dd", "if=/dev/zero", "of="+base, "bs=1M", "count=1", "seek=95", "conv=notrunc")
	case "truncated":
		if err := os.Truncate(base, 20<<20); err != nil {
			t.Fatal(err)
		}
	case "short":
		if err := os.Truncate(base, 5); err != nil {
			t.Fatal(err)
		}
	case "no root":
		debugfs("rm /usr/lib/os-release\n")
	case "another system":
		file := filepath.Join(t.TempDir(), "release")
		if err := os.WriteFile(file, []byte("PRETTY_NAME=\"Ubuntu 24.04 LTS\"\nID=ubuntu\nVERSION_ID=\"24.04\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		debugfs("rm /usr/lib/os-release\nwrite " + file + " /usr/lib/os-release\n")
	case "feature":
		debugfs("feature +casefold\n")
	case "link":
		debugfs("rm /usr/bin/true\nrmdir /usr/bin\nsymlink /usr/bin /usr/lib\n")
	case "journal":
		debugfs("jo\njw -b 3000 /etc/hostname\njc\n")
	case "tables":
		// The inodes of the first group, where the root directory is.
		need.Judge(t, "dd", "if=/dev/urandom", "of="+base, "bs=4096", "seek=1040", "count=200", "conv=notrunc")
	}
	return base
}

func TestBadBase(t *testing.T) {
	f := fixtures(t)
	for damage, want := range map[string][]string{
		"no table":       {"no partition table", "complete?"},
		"truncated":      {"truncated"},
		"short":          {"too short"},
		"no root":        {"no ext4 root", "Debian 13"},
		"another system": {"Ubuntu 24.04", "Debian 13", "--os"},
		"feature":        {"casefold", "base image"},
		"link":           {"/usr/bin", "cannot be used"},
		"tables":         nil,
	} {
		t.Run(damage, func(t *testing.T) {
			out := t.TempDir()
			refused(t, command(f.args(t.TempDir(), out, "--base", damagedBase(t, f, damage))...), out, want...)
		})
	}
	t.Run("packed and cut off", func(t *testing.T) {
		dir, out := t.TempDir(), t.TempDir()
		packed := filepath.Join(dir, "base.raw.xz")
		need.Judge(t, "sh", "-ec", "xz -0 <"+f.base+" >"+packed+"; truncate -s -100 "+packed)
		refused(t, command(f.args(t.TempDir(), out, "--base", packed)...), out, "complete?")
	})
	t.Run("not shut down", func(t *testing.T) {
		b := build(t, f.args(t.TempDir(), t.TempDir(), "--base", damagedBase(t, f, "journal"))...)
		need.Judge(t, "e2fsck", "-fn", b.Artifacts[0].Path+"?offset=4194304")
	})
}

// spoil changes one byte in the middle of the first file that match picks.
func spoil(t *testing.T, cache, match string, how func(file string, size int64) error) {
	t.Helper()
	done := false
	err := filepath.WalkDir(filepath.Join(cache, "entries"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || done || !strings.Contains(p, match) || d.Name() == ".index" {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		done = true
		return how(p, fi.Size())
	})
	if err != nil || !done {
		t.Fatalf("nothing like %s in the cache (%v)", match, err)
	}
}

func flip(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b, size/2)
	return err
}

func truncate(file string, size int64) error { return os.Truncate(file, size/2) }

// TestCorruptCache: what was changed in the cache is refused and discarded, or
// noticed and made again; the next build gives the same bytes.
func TestCorruptCache(t *testing.T) {
	f, cache := fixtures(t), t.TempDir()
	want := build(t, f.args(cache, t.TempDir())...).Artifacts[0].Digest
	for _, kind := range []string{"/base/", "/unpacked/", "/pulled/", "/store/", "/data", "/entries.json", "/blocks", "/index.json"} {
		t.Run(kind+" flipped", func(t *testing.T) {
			// Read only to make something else, which is in the cache too.
			if made, ok := map[string]string{"/pulled/": "store", "/unpacked/": "packed"}[kind]; ok {
				if err := os.RemoveAll(filepath.Join(cache, "entries", made)); err != nil {
					t.Fatal(err)
				}
			}
			spoil(t, cache, kind, flip)
			out := t.TempDir()
			refused(t, command(f.args(cache, out)...), out, "corrupt", "discarded", "again")
			if got := build(t, f.args(cache, t.TempDir())...).Artifacts[0].Digest; got != want {
				t.Error("the next build gives another image")
			}
		})
		t.Run(kind+" truncated", func(t *testing.T) {
			spoil(t, cache, kind, truncate)
			if got := build(t, f.args(cache, t.TempDir())...).Artifacts[0].Digest; got != want {
				t.Error("the build gives another image")
			}
		})
	}
}

func TestMissingProgram(t *testing.T) {
	f, out := fixtures(t), t.TempDir()
	// No e2fsprogs anywhere: a root directory without sbin.
	const hide = "mount -t tmpfs none /usr/sbin"
	refused(t, inNamespace(t, f.args(t.TempDir(), out), hide), out, "mke2fs", "apt-get install e2fsprogs")
	text, errOut, status := finish(t, inNamespace(t, []string{"doctor"}, hide))
	if status != 1 || !regexp.MustCompile(`mke2fs +MISSING, package e2fsprogs`).MatchString(text) || !regexp.MustCompile(`mmdebstrap +ok`).MatchString(text) {
		t.Errorf("doctor: status %d\n%s%s", status, text, errOut)
	}
	if text, _, status := kimage(t, "doctor"); status != 0 {
		t.Errorf("doctor: status %d where everything is installed\n%s", status, text)
	}
}

// TestNoNetwork: what cannot be fetched is said at once, with what to do.
func TestNoNetwork(t *testing.T) {
	f := fixtures(t)
	for name, c := range map[string]struct{ args, want []string }{
		"release":  {[]string{"--components", "release"}, []string{"dl.k8s.io", "--components"}},
		"source":   {[]string{"--components", "source"}, []string{"sources of k8s.io/kubernetes", "--components"}},
		"mirror":   {[]string{"--components", "http://127.0.0.1:9/mirror"}, []string{"http://127.0.0.1:9/mirror/dl.k8s.io", "--components"}},
		"packages": {[]string{"--base", "packages", "--apt-mirror", "http://127.0.0.1:9/debian"}, []string{"http://127.0.0.1:9/debian", "--apt-mirror"}},
		"base":     {[]string{"--base", "http://127.0.0.1:9/base.raw#sha256:" + strings.Repeat("0", 64)}, []string{"http://127.0.0.1:9/base.raw", "--base"}},
		"offline":  {[]string{"--base", "packages", "--offline"}, []string{"not in the cache", "--offline"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			cmd := inNamespace(t, f.args(t.TempDir(), out, c.args...), "", "--net")
			// An empty module cache, too.
			cmd.Env = append(cmd.Env, "GOMODCACHE="+t.TempDir(), "GOFLAGS=-modcacherw")
			refused(t, cmd, out, c.want...)
		})
	}
}

// inNamespace runs kimage as root after a script, in a mount namespace of its
// own, and in those that more options of unshare name.
func inNamespace(t *testing.T, args []string, script string, more ...string) *exec.Cmd {
	t.Helper()
	asRoot(t)
	argv := append(more, "--mount", "--propagation", "private", "sh", "-ec", script+"\nexec \"$0\" \"$@\"", os.Args[0])
	cmd := exec.Command("unshare", append(argv, args...)...)
	cmd.Env = append(os.Environ(), "KIMAGE_TEST_RUN=1")
	return cmd
}

func TestNoSpace(t *testing.T) {
	f := fixtures(t)
	for what, sizes := range map[string][]string{"output": {"100k", "400k", "700k"}, "cache": {"200k", "500k"}} {
		for _, size := range sizes {
			t.Run(what+" "+size, func(t *testing.T) {
				cache, out := t.TempDir(), t.TempDir()
				full := out
				if what == "cache" {
					full = cache
				}
				// The file system of the namespace is gone with it, so it is listed inside.
				cmd := inNamespace(t, f.args(cache, out), "mount -t tmpfs -o size="+size+" none "+full)
				script := &cmd.Args[slices.Index(cmd.Args, "-ec")+1]
				*script = strings.Replace(*script, "exec \"$0\" \"$@\"", "s=0; \"$0\" \"$@\" || s=$?; ls -A "+out+" | sed 's/^/left: /' >&2; exit $s", 1)
				_, errOut, status := finish(t, cmd)
				if status != 2 || !strings.Contains(strings.ToLower(errOut), "no space left") || strings.Contains(errOut, "left: ") {
					t.Errorf("status %d:\n%s", status, errOut)
				}
			})
		}
	}
}

func TestUnwritable(t *testing.T) {
	f := fixtures(t)
	for _, dir := range []string{"output", "cache"} {
		t.Run(dir, func(t *testing.T) {
			cache, out := t.TempDir(), t.TempDir()
			readOnly := out
			if dir == "cache" {
				readOnly = cache
			}
			cmd := inNamespace(t, f.args(cache, out), "mount -t tmpfs -o ro none "+readOnly)
			refused(t, cmd, "", "read-only file system")
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, command(f.args(t.TempDir(), filepath.Join(file, "out"))...), "", "output directory")
}

func TestInspectRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string][]byte{"empty": nil, "zeros": make([]byte, 1<<20), "text": []byte("hello"), "qcow2": append([]byte("QFI\xfb\x00\x00\x00\x03"), bytes.Repeat([]byte{0xff}, 200)...)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, command("inspect", file), "", name)
	}
	refused(t, command("inspect", filepath.Join(dir, "missing")), "", "missing")
}
