package libvirt

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// TestReach: who is shut out of a directory is told which, and reads files of his own
// after he was let in, and nobody else does.
func TestReach(t *testing.T) {
	need.Root(t, "another account")
	need.Program(t, "setfacl", "acl")
	hypervisors = []string{"no-such-account", "nobody"}
	t.Cleanup(func() { hypervisors = []string{"libvirt-qemu", "qemu"} })
	top, err := os.MkdirTemp("/var/tmp", "kimage-libvirt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir := filepath.Join(top, "home/me/.vagrant/kimage")
	file, other := filepath.Join(dir, "config/nodes/a/seed"), filepath.Join(dir, "config/nodes/a/secret")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, other} {
		if err := os.WriteFile(f, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"home", "home/me/.vagrant"} {
		if err := os.Chmod(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	me := filepath.Join(top, "home/me")
	err = CheckReach(t.Context(), dir)
	if want := "which run as nobody, cannot reach " + dir + ": setfacl -m u:nobody:x " + me + " " + top; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Fatalf("%v, not %q", err, want)
	}
	_, remedy, _ := strings.Cut(err.Error(), dir+": ")
	if out, err := exec.Command("sh", "-c", remedy).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", remedy, err, out)
	}
	if err := CheckReach(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	// A mask takes back what a list gives.
	if out, err := exec.Command("setfacl", "-m", "m::r", me).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := CheckReach(t.Context(), dir); err == nil || !strings.HasSuffix(err.Error(), ":x "+me) {
		t.Errorf("behind a mask: %v", err)
	}
	if out, err := exec.Command("setfacl", "-m", "u:nobody:x", me).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := LetRead(t.Context(), dir, []string{file}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		account, file string
		may           bool
	}{{"nobody", file, true}, {"nobody", other, false}, {"daemon", file, false}} {
		if err := exec.Command("setpriv", "--reuid", x.account, "--clear-groups", "cat", x.file).Run(); (err == nil) != x.may {
			t.Errorf("%s reads %s: %v", x.account, x.file, err)
		}
	}
}
