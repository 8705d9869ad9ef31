package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSameBytes: the same inputs give the same bytes wherever, whenever and by
// whomever they are baked, with a cold or a warm cache.
func TestSameBytes(t *testing.T) {
	f, warm := fixtures(t), t.TempDir()
	want := build(t, f.args(warm, t.TempDir(), "--format", "raw,qcow2")...)
	for name, change := range map[string]func(*exec.Cmd) string{
		"cache warm": func(*exec.Cmd) string { return warm },
		"cache cold": func(*exec.Cmd) string { return t.TempDir() },
		"time zone, locale and epoch": func(c *exec.Cmd) string {
			c.Env = append(c.Env, "TZ=Asia/Tokyo", "LC_ALL=tr_TR.UTF-8", "SOURCE_DATE_EPOCH=5", "MKE2FS_CONFIG=/dev/null", "E2FSPROGS_FAKE_TIME=9", "TAR_OPTIONS=--no-such", "ZSTD_CLEVEL=19")
			return t.TempDir()
		},
		"one processor": func(c *exec.Cmd) string {
			c.Env = append(c.Env, "GOMAXPROCS=1")
			return t.TempDir()
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "another", "directory")
			cmd := command(f.args("", out, "--format", "raw,qcow2")...)
			cache := change(cmd)
			cmd.Args = append(cmd.Args, "--cache", cache)
			same(t, cmd, out, want)
		})
	}
	t.Run("every format", func(t *testing.T) {
		for _, formats := range []string{"raw.zst,vmdk,sysext,vagrant-libvirt,vagrant-virtualbox", "gce", "vhd"} {
			want := build(t, f.args(warm, t.TempDir(), "--format", formats)...)
			out := filepath.Join(t.TempDir(), "another")
			cmd := command(f.args(t.TempDir(), out, "--format", formats)...)
			cmd.Env = append(cmd.Env, "TZ=Asia/Tokyo", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=1")
			same(t, cmd, out, want)
		}
	})
	t.Run("umask", func(t *testing.T) {
		out, cache := filepath.Join(t.TempDir(), "out"), t.TempDir()
		cmd := exec.Command("sh", append([]string{"-c", "umask 077; exec \"$0\" \"$@\"", os.Args[0]}, f.args(cache, out, "--format", "raw,qcow2")...)...)
		cmd.Env = append(os.Environ(), "KIMAGE_TEST_RUN=1")
		same(t, cmd, out, want)
		if fi, err := os.Stat(want.Artifacts[0].Path); err != nil || fi.Mode().Perm() != 0o644 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
	})
	t.Run("an ordinary user, without devices and namespaces", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		// TempDir's parents are closed to others.
		for p := filepath.Dir(dir); p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
			if err := os.Chmod(p, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		out := filepath.Join(dir, "out")
		same(t, unprivileged(t, f.args(filepath.Join(dir, "cache"), out, "--format", "raw,qcow2")), out, want)
	})
}

// same runs a build and compares its artifacts.
func same(t *testing.T, cmd *exec.Cmd, out string, want built) {
	t.Helper()
	_, errOut, status := finish(t, cmd)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errOut)
	}
	for _, a := range want.Artifacts {
		if got := digest(t, filepath.Join(out, filepath.Base(a.Path))); got != a.Digest {
			t.Errorf("%s differs", a.Format)
		}
	}
}

// unprivileged runs kimage as nobody, without capabilities, in a root directory
// whose /dev has neither loop devices nor KVM. The kernel forbids user
// namespaces inside a chroot.
func unprivileged(t *testing.T, args []string) *exec.Cmd {
	t.Helper()
	asRoot(t)
	root := t.TempDir()
	const script = `
mount --rbind / "$ROOT"
mount -t tmpfs none "$ROOT/dev"
for d in null zero random urandom; do touch "$ROOT/dev/$d"; mount --bind /dev/$d "$ROOT/dev/$d"; done
exec chroot "$ROOT" setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --no-new-privs env HOME=/nonexistent sh -ec '
	if unshare --user true 2>/dev/null; then echo "user namespaces work" >&2; exit 99; fi
	if ls /dev/loop* /dev/kvm 2>/dev/null; then exit 98; fi
	exec "$0" "$@"' "$0" "$@"`
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-ec", script, os.Args[0]}, args...)...)
	cmd.Env = append(os.Environ(), "KIMAGE_TEST_RUN=1", "ROOT="+root)
	// The test program lies in a directory of root's.
	for p := filepath.Dir(os.Args[0]); p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return cmd
}

// TestKill: kill -9 at 50 random moments, of the whole bake with a cold or a
// half-filled cache. After each, nothing lies under a final name that is not
// whole; after all, the next build succeeds with the same bytes.
func TestKill(t *testing.T) {
	f := fixtures(t)
	want := build(t, f.args(t.TempDir(), t.TempDir())...)
	started := time.Now()
	if _, errOut, status := kimage(t, f.args(t.TempDir(), t.TempDir())...); status != 0 {
		t.Fatal(errOut)
	}
	took := time.Since(started)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KIMAGE_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KIMAGE_TEST_SEED=%d; a whole build takes %s", seed, took.Round(time.Millisecond))
	random := rand.New(rand.NewPCG(seed, 0))
	cache, out := t.TempDir(), t.TempDir()
	killed := 0
	for i := range 50 {
		if i%10 == 9 { // again from the start
			cache = t.TempDir()
		}
		cmd := command(f.args(cache, out)...)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Half of the moments in the first fifth, where most different things happen.
		limit := took
		if i%2 == 0 {
			limit /= 5
		}
		timer := time.AfterFunc(time.Duration(random.Int64N(int64(limit))), func() { cmd.Process.Signal(syscall.SIGKILL) })
		err := cmd.Wait()
		timer.Stop()
		if err != nil {
			if cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("attempt %d failed by itself: %s", i, errOut.String())
			}
			killed++
		}
		for _, a := range want.Artifacts {
			file := filepath.Join(out, filepath.Base(a.Path))
			if fi, err := os.Stat(file); err == nil && fi.Size() != a.SizeBytes {
				t.Fatalf("attempt %d left a partial %s", i, file)
			}
		}
	}
	t.Logf("killed %d times", killed)
	if killed < 25 {
		t.Errorf("only %d of 50 builds were killed before their end", killed)
	}
	got := build(t, f.args(cache, out)...)
	for i, a := range got.Artifacts {
		if a.Digest != want.Artifacts[i].Digest {
			t.Errorf("%s: other bytes after all that", a.Format)
		}
	}
	if left := listing(t, out); strings.Contains(left, "partial") {
		t.Errorf("left behind: %s", left)
	}
	if left, _ := os.ReadDir(filepath.Join(cache, "scratch")); len(left) > 0 {
		t.Errorf("left in the cache: %s", listing(t, filepath.Join(cache, "scratch")))
	}
}
