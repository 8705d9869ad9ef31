package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestLock: what is pinned stays so, and what is not is added; another program of the same
// version is refused, and taken only when asked for.
func TestLock(t *testing.T) {
	f, dir := fixtures(t), t.TempDir()
	lock, mirror := filepath.Join(dir, "kimage.lock"), filepath.Join(dir, "mirror")
	if err := os.CopyFS(mirror, os.DirFS(f.mirror)); err != nil {
		t.Fatal(err)
	}
	args := func(verb, cache string, more ...string) []string {
		return append([]string{verb, "--os", "debian-13", "--base", f.base, "--components", mirror, "--images", "none", "--cache", cache, "--lock", lock}, more...)
	}
	build := func(cache string, more ...string) (string, int) {
		_, errOut, status := kimage(t, append(args("build", cache, more...), "--agent", f.agent, "-o", t.TempDir())...)
		return errOut, status
	}
	cache := t.TempDir()
	if errOut, status := build(cache, "--locked"); status != 2 || !strings.Contains(errOut, "does not exist") {
		t.Errorf("without a lock: status %d, %s", status, errOut)
	}
	if out, errOut, status := kimage(t, args("lock", cache, "--agent", f.agent)...); status == 0 {
		t.Errorf("lock knows --agent: %s %s", out, errOut)
	}
	out, errOut, status := kimage(t, args("lock", cache, "--network", "none")...)
	if status != 0 || !strings.Contains(out, "is written") {
		t.Fatalf("status %d: %s %s", status, out, errOut)
	}
	if errOut, status := build(cache, "--network", "none", "--locked"); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	// With flannel there is more than the lock has.
	if errOut, status := build(cache, "--locked"); status != 2 || !strings.Contains(errOut, "flannel") {
		t.Errorf("status %d, %s", status, errOut)
	}
	if out, _, status := kimage(t, args("lock", cache, "--check")...); status != 1 || !strings.Contains(out, "does not pin flannel") {
		t.Errorf("status %d, %s", status, out)
	}
	if errOut, status := build(cache); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	if out, errOut, status := kimage(t, args("lock", cache, "--check")...); status != 0 || !strings.Contains(out, "pins it all already") {
		t.Errorf("status %d, %s %s", status, out, errOut)
	}
	// A mirror with another kubelet, and its checksum.
	kubelet := filepath.Join(mirror, "dl.k8s.io/release/v1.37.2/bin/linux/amd64/kubelet")
	content := []byte("another program")
	if err := os.WriteFile(kubelet, content, 0o644); err != nil {
		t.Fatal(err)
	}
	sum := need.Judge(t, "sha256sum", kubelet)
	if err := os.WriteFile(kubelet+".sha256", []byte(sum[:64]+"  kubelet\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	fresh := t.TempDir()
	if errOut, status := build(fresh); status != 2 || !strings.Contains(errOut, "usr/bin/kubelet of kubernetes v1.37.2 is pinned as ") || !strings.Contains(errOut, "--update") {
		t.Errorf("status %d, %s", status, errOut)
	}
	if out, _, status := kimage(t, args("lock", fresh, "--check")...); status != 1 || !strings.Contains(out, "usr/bin/kubelet of kubernetes v1.37.2 is pinned") {
		t.Errorf("status %d, %s", status, out)
	}
	if _, errOut, status := kimage(t, args("lock", fresh, "--update")...); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	if errOut, status := build(fresh, "--locked"); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	// A given base is pinned too, by its way from the lock.
	other := filepath.Join(dir, "base.raw")
	data, err := os.ReadFile(f.base)
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := os.WriteFile(other, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if errOut, status := build(fresh, "--base", other); status != 0 {
		t.Errorf("status %d, %s", status, errOut)
	}
	data[101] ^= 1
	if err := os.WriteFile(other, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if errOut, status := build(fresh, "--base", other); status != 2 || !strings.Contains(errOut, "the base debian-13/amd64/file:base.raw is pinned as") {
		t.Errorf("status %d, %s", status, errOut)
	}
	// What writes images has a version, too; another one is said.
	text, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^  e2fsprogs: (1\.\S+)$`)
	if !version.Match(text) || os.WriteFile(lock, version.ReplaceAll(text, []byte("  e2fsprogs: 1.2.3")), 0o644) != nil {
		t.Fatalf("no version of e2fsprogs in\n%s", text)
	}
	if errOut, status := build(fresh, "--locked"); status != 0 || !strings.Contains(errOut, " in place of 1.2.3: ") {
		t.Errorf("status %d, %s", status, errOut)
	}
	for name, text := range map[string]string{"nonsense": "x: [", "another kind": "apiVersion: kimage.dev/v1alpha1\nkind: Cluster\n", "unknown fields": "apiVersion: kimage.dev/v1alpha1\nkind: Lock\nbaze: {}\n"} {
		if err := os.WriteFile(lock, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if errOut, status := build(fresh); status != 2 || !strings.Contains(errOut, lock) {
			t.Errorf("%s: status %d, %s", name, status, errOut)
		}
	}
}

// TestLockFetch: a mirror has all that an image is made from. With empty caches, without a
// network, for another user in another time zone the same bytes come out.
func TestLockFetch(t *testing.T) {
	need.Root(t, "another user")
	f := fixtures(t)
	raw, err := os.ReadFile(f.flatcar)
	if err != nil {
		t.Fatal(err)
	}
	s := need.NewFlatcarServer(t, "../..")
	s.Publish("4800.2.0", need.Day(-1), map[string][]byte{"flatcar_production_image.bin.bz2": output(t, raw, "bzip2", "-1")})
	out, cache := t.TempDir(), t.TempDir()
	if _, errOut, status := buildFlatcar(t, s, f, cache, out, "--images", "all"); status != 0 {
		t.Fatal(errOut)
	}
	site, err := os.MkdirTemp("", "kimage-site")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(site)
	mirror := filepath.Join(site, "mirror")
	fetch := command("lock", "fetch", "--os", "coreos-stable", "--components", f.mirror, "--cache", cache, "--mirror", s.Mirror, "--lock", filepath.Join(out, "kimage.lock"), "-o", mirror)
	fetch.Env = append(fetch.Env, "KIMAGE_OS_PATH="+s.OSPath)
	if _, errOut, status := finish(t, fetch); status != 0 {
		t.Fatal(errOut)
	}
	if err := os.RemoveAll(s.Mirror); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{site, mirror} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(filepath.Join(site, "kimage"), program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(site, "work")
	if err := errors.Join(os.Mkdir(work, 0o700), os.Chown(work, 65534, 65534), os.CopyFS(filepath.Join(site, "os"), os.DirFS(s.OSPath))); err != nil {
		t.Fatal(err)
	}
	again := command("build", "--os", "coreos-stable", "--base", mirror, "--components", mirror, "--agent", f.agent, "--cache", filepath.Join(work, "cache"),
		"--lock", filepath.Join(mirror, "kimage.lock"), "--locked", "--offline", "-o", filepath.Join(work, "out"))
	again.Args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--net"}, append([]string{filepath.Join(site, "kimage")}, again.Args[1:]...)...)
	again.Path = "/usr/bin/setpriv"
	again.Env = append(again.Env, "KIMAGE_OS_PATH="+filepath.Join(site, "os"), "TZ=Asia/Tokyo", "HOME="+work, "TMPDIR="+work)
	if _, errOut, status := finish(t, again); status != 0 {
		t.Fatal(errOut)
	}
	const name = "flatcar-stable-v1.37.2-amd64"
	if a, b := digest(t, filepath.Join(out, name+".raw")), digest(t, filepath.Join(work, "out", name+".raw")); a != b {
		was, _ := os.ReadFile(filepath.Join(out, name+".json"))
		is, _ := os.ReadFile(filepath.Join(work, "out", name+".json"))
		t.Errorf("from the mirror another image is baked:\n%s\n%s", was, is)
	}
}
