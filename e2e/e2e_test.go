//go:build e2e

// Package e2e boots what kimage baked and tells stories about it. The bake
// runs in TestMain, of KIMAGE_E2E_OS (debian-13), or KIMAGE_E2E_IMAGE names a
// raw image that was baked before.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
	"github.com/kimage-project/kimage/pkg/seed"
)

const user = "debian"

var (
	image  string // the raw image that the stories boot
	system string // its operating system, as --os names it
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if system = os.Getenv("KIMAGE_E2E_OS"); system == "" {
		system = "debian-13"
	}
	if image = os.Getenv("KIMAGE_E2E_IMAGE"); image != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "kimage-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("../bin/kimage", "build", "--os", system, "--base", "packages", "--lock", filepath.Join(dir, "kimage.lock"), "--json", "-o", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "baking:", err)
		return 1
	}
	var result struct {
		Artifacts []struct{ Path string }
	}
	if err := json.Unmarshal(out, &result); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	image = result.Artifacts[0].Path
	return m.Run()
}

// node is a machine that boots the image, with a way in.
type node struct {
	*qemu.Machine
	t    *testing.T
	user string
	key  qemu.Key
}

// networkConfig is a network with a gateway that leads nowhere: what QEMU's
// isolated network lacks, and every machine room without the internet has.
const networkConfig = `version: 2
ethernets:
  ` + qemu.Interface + `:
    addresses: [10.0.2.15/24]
    routes: [{to: 0.0.0.0/0, via: 10.0.2.2}]
`

func boot(t *testing.T, firmware string, memoryMiB int) *node {
	t.Helper()
	key := newKey(t)
	dir := t.TempDir()
	volume := filepath.Join(dir, "seed")
	err := seed.Write(t.Context(), volume, map[string][]byte{
		"meta-data":      []byte("instance-id: e2e\nlocal-hostname: node-1\n"),
		"network-config": []byte(networkConfig),
		"user-data":      []byte("#cloud-config\nssh_authorized_keys:\n- " + key.Public + "\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return bootWith(t, qemu.Config{Dir: filepath.Join(dir, "node"), Seed: volume, Firmware: firmware, MemoryMiB: memoryMiB}, user, key)
}

// slack is how much longer a paced machine may take for what it does than one that has
// this computer for itself: all its processors are one thread, and others run beside it.
const slack = 4

// bootWith boots a machine with the image on its disk and no way out. It is paced: on a
// computer that is slow today its deadlines would pass, and an API server that starts for
// longer than a minute begins anew.
func bootWith(t *testing.T, c qemu.Config, user string, key qemu.Key) *node {
	t.Helper()
	c.CPUs, c.Paced = 2, true
	n := newNode(t, c, user, key)
	n.start()
	return n
}

// newKey is for the machines of a test. People can get into them as well while
// it runs: ssh -i $KIMAGE_E2E_KEEP/key -p PORT, of QEMU's hostfwd.
func newKey(t *testing.T) qemu.Key {
	t.Helper()
	key, err := qemu.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("KIMAGE_E2E_KEEP"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "key"), key.PEM, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return key
}

// newNode makes a machine with the image, or the one that c names, on its disk and no way out.
func newNode(t *testing.T, c qemu.Config, user string, key qemu.Key) *node {
	t.Helper()
	if c.Image == "" {
		c.Image = image
	}
	c.Format, c.DiskGiB, c.Isolated = "raw", 20, true
	m, err := qemu.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{m, t, user, key}
	t.Cleanup(func() {
		n.Kill()
		if t.Failed() {
			t.Logf("console of %s:\n%s", filepath.Base(c.Dir), lastLines(n.Console(), 60))
			t.Logf("to repeat it: KIMAGE_E2E_OS=%s make e2e RUN=%s", system, t.Name())
		}
	})
	return n
}

func (n *node) start() {
	n.t.Helper()
	started := time.Now()
	if err := n.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), slack*6*time.Minute)
	defer cancel()
	if err := n.WaitSSH(ctx, n.user, n.key); err != nil {
		n.t.Fatal(err)
	}
	n.t.Logf("SSH after %s", time.Since(started).Round(time.Second))
}

// try runs a command as root and returns what it said. The limit is that of a machine that
// has this computer for itself.
func (n *node) try(command string, limit time.Duration) (qemu.Result, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), slack*limit)
	defer cancel()
	return n.SSH(ctx, n.user, n.key, "sudo sh -c '"+strings.ReplaceAll(command, "'", `'\''`)+"'")
}

// must runs a command as root that has to succeed.
func (n *node) must(command string, limit time.Duration) string {
	n.t.Helper()
	r, err := n.try(command, limit)
	if err != nil {
		n.t.Fatal(err)
	}
	if r.Status != 0 {
		n.t.Fatalf("%s: status %d\n%s\n%s", command, r.Status, lastLines(r.Stdout, 60), lastLines(r.Stderr, 60))
	}
	return strings.TrimSpace(r.Stdout)
}

// awaitReady waits until the machine says so. It looks at its console and asks it
// seldom: a login every few seconds takes a third of its processors. It does ask,
// because systemd gives up the console of a machine that finds it too slowly.
func (n *node) awaitReady(ctx context.Context) error {
	last := "no answer"
	for {
		shown, cancel := context.WithTimeout(ctx, time.Minute)
		err := n.WaitConsole(shown, "phase      ready since")
		cancel()
		if err == nil || n.Off() {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; last: %s", ctx.Err(), last)
		}
		if r, err := n.try("cat /run/kimage/phase.json", time.Minute); err == nil {
			last = strings.TrimSpace(r.Stdout)
		}
		if strings.Contains(last, `"phase":"ready"`) {
			return nil
		}
	}
}

// until repeats a command until its output contains want.
func (n *node) until(want, command string, limit time.Duration) {
	n.t.Helper()
	deadline := time.Now().Add(slack * limit)
	var last string
	for time.Now().Before(deadline) {
		r, err := n.try(command, time.Minute)
		last = fmt.Sprint(r.Stdout, r.Stderr, err)
		if err == nil && strings.Contains(r.Stdout, want) {
			return
		}
		time.Sleep(3 * time.Second)
	}
	n.t.Fatalf("%s: never said %q; last:\n%s", command, want, lastLines(last, 60))
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
