package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// standIn is a disk for machines that show the agent's screen with a phase and do no
// more.
func standIn(t *testing.T, phase string) string {
	t.Helper()
	need.Program(t, "xorriso", "xorriso")
	need.Program(t, "ssh", "openssh-client")
	return need.Guest(t, "\x1b[H\x1b[2Jkimage     k8s\r\nphase      "+phase+" since 2026-11-26 11:07:06 UTC\r\nwhy        no API server answers\r\n")
}

// ended: of the machines in dir there is nothing left but the cluster file and its
// secrets.
func ended(t *testing.T, dir string) {
	t.Helper()
	gone(t, dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "cluster.secrets cluster.state cluster.yaml" {
		t.Errorf("left are %s", got)
	}
}

// gone: nothing runs that has to do with dir. What ends is seen for a moment.
func gone(t *testing.T, dir string) {
	t.Helper()
	var left []int
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = need.Processes(t, dir); len(left) == 0 {
			return
		}
	}
	t.Errorf("processes %v are left", left)
}

// TestUpInterrupted: Ctrl-C before the machines are Ready removes them.
func TestUpInterrupted(t *testing.T) {
	image, dir := standIn(t, "waiting"), t.TempDir()
	cmd := command("up", "--image", image)
	cmd.Dir = dir
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in(t, dir, "down") })
	shows(t, filepath.Join(dir, "cluster.local/machines/k8s-01/console.log"), "API server")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != statusCouldNotTell || !strings.Contains(words.String(), "wrote cluster.yaml: topology 1") || !strings.Contains(words.String(), "made the secrets of cluster demo: back up cluster.secrets") || !strings.Contains(words.String(), "ended the machines") || !strings.Contains(words.String(), "interrupted; cluster.yaml, cluster.secrets, cluster.state stay") {
		t.Errorf("status %d:\n%s", got, words.String())
	}
	ended(t, dir)
}

// TestUpNeverReady: of machines that do not become Ready one learns why; two clusters
// run side by side, outlive what started them and a supervisor that was killed, and
// are ended.
func TestUpNeverReady(t *testing.T) {
	image := standIn(t, "waiting")
	dirs := []string{t.TempDir(), t.TempDir()}
	t.Cleanup(func() {
		for _, dir := range dirs {
			in(t, dir, "down")
		}
	})
	for i, dir := range dirs {
		args := []string{"up", "--image", image, "--keep", "--timeout", "7s"}
		if i == 1 { // stand-ins need no memory
			text := inOK(t, dir, "cluster", "new", "--topology", "3")
			write(t, dir, "cluster.yaml", strings.Replace(text, "  nodes:\n", "    qemu: {memoryMiB: 512}\n  nodes:\n", 1))
		}
		_, words, status := in(t, dir, args...)
		for _, want := range []string{"k8s-01  waiting: no API server answers", `k8s-01: phase "waiting", no API server answers; the end of its console`, "not Ready: k8s-0", "the machines run on: kimage status, kimage down"} {
			if status != statusNo || !strings.Contains(words, want) {
				t.Errorf("status %d, no %q in\n%s", status, want, words)
			}
		}
	}
	out, _, status := in(t, dirs[1], "status")
	if status != statusNo || strings.Count(out, "  on     waiting  2026-11-26 11:07:06 UTC  no API server answers\n") != 3 {
		t.Errorf("status %d:\n%s", status, out)
	}
	out, _, _ = in(t, dirs[0], "status", "--json")
	var said struct {
		OK       bool
		Machines []machineLine
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil || said.OK || len(said.Machines) != 1 || said.Machines[0].Phase != "waiting" || said.Machines[0].Power != powerOn {
		t.Errorf("%v:\n%s", err, out)
	}
	if out := inOK(t, dirs[0], "logs", "--console", "k8s-01"); !strings.Contains(out, "no API server answers") {
		t.Errorf("the console:\n%s", out)
	}
	if out := inOK(t, dirs[0], "kubeconfig"); !strings.Contains(out, `"server": "https://127.0.0.1:`) {
		t.Errorf("the kubeconfig:\n%s", out)
	}
	for _, refused := range [][]string{{"ssh", "k8s-02", "true"}, {"console", "k8s-02"}, {"logs", "k8s-02"}, {"logs", "--console", "k8s-02"}, {"replace", "k8s-02"}} {
		if _, words, status := in(t, dirs[0], refused...); status != statusCouldNotTell || !strings.Contains(words, `unknown machine "k8s-02"`) {
			t.Errorf("%v: status %d: %s", refused, status, words)
		}
	}
	if _, words, status := in(t, dirs[0], "up", "--topology", "3"); status != statusCouldNotTell || !strings.Contains(words, "leave --topology out") {
		t.Errorf("another topology: status %d: %s", status, words)
	}
	if _, words, _ := in(t, dirs[0], "up", "--timeout", "1s"); !strings.Contains(words, "the machines are there already") {
		t.Errorf("up again: %s", words)
	}

	if _, words, status := in(t, dirs[0], "replace", "k8s-01", "--image", image); status != statusCouldNotTell || !strings.Contains(words, "--yes does it") {
		t.Errorf("replacing the only etcd member: status %d: %s", status, words)
	}
	if _, words, status := in(t, dirs[1], "replace", "k8s-02", "--image", standIn(t, "init"), "--timeout", "7s"); status != statusNo || !strings.Contains(words, "k8s-02  init") || !strings.Contains(words, "k8s-01  waiting") {
		t.Errorf("replaced: status %d: %s", status, words)
	}
	// A machine that was added to the file is booted, and nobody else.
	text, err := os.ReadFile(filepath.Join(dirs[1], "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dirs[1], "cluster.yaml", string(text)+"  - {name: k8s-04, roles: [worker], address: 172.17.8.104}\n")
	if _, words, status := in(t, dirs[1], "up", "--image", image, "--timeout", "7s"); status != statusNo || !strings.Contains(words, "booting k8s-04, which") || !strings.Contains(words, "k8s-04  waiting") || strings.Contains(words, "booting k8s-01") {
		t.Errorf("a machine was added: status %d: %s", status, words)
	}
	if out := inOK(t, dirs[1], "logs", "--console", "k8s-04"); !strings.Contains(out, "waiting") {
		t.Errorf("the added machine's console:\n%s", out)
	}
	// One that is ended is gone, and booted again by kimage up.
	for _, again := range []bool{true, false} {
		if _, words, status := in(t, dirs[1], "down", "k8s-04"); status != 0 || !strings.Contains(words, "ended k8s-04") {
			t.Errorf("ending one: status %d: %s", status, words)
		}
		if out, _, _ := in(t, dirs[1], "status"); !regexp.MustCompile(`(?m)^k8s-04 +worker +off .* it is not made: kimage up -f cluster.yaml boots it$`).MatchString(out) || strings.Count(out, "  on  ") != 3 {
			t.Errorf("without the one that was ended:\n%s", out)
		}
		if left := need.Processes(t, filepath.Join(dirs[1], "cluster.local/machines/k8s-04")); len(left) > 0 {
			t.Errorf("processes %v of k8s-04 are left", left)
		}
		if again {
			if _, words, _ := in(t, dirs[1], "up", "--image", image, "--timeout", "7s"); !strings.Contains(words, "booting k8s-04, which") {
				t.Errorf("booting it again: %s", words)
			}
		}
	}
	if _, words, status := in(t, dirs[1], "down", "k8s-40"); status != statusCouldNotTell || !strings.Contains(words, `unknown machine "k8s-40"`) {
		t.Errorf("ending nobody: status %d: %s", status, words)
	}
	// A cluster file that is wrong by now keeps nobody from his machines.
	write(t, dirs[1], "cluster.yaml", "nonsense")
	if out, _, _ := in(t, dirs[1], "status"); strings.Count(out, "waiting") != 2 || strings.Count(out, "init") != 1 {
		t.Errorf("after a replacement:\n%s", out)
	}

	if _, words, status := in(t, t.TempDir(), "down", "k8s-01"); status != statusCouldNotTell || !strings.Contains(words, "has no machines on this computer") {
		t.Errorf("ending one of no machines: status %d: %s", status, words)
	}
	// As by this computer's power cut.
	for _, pid := range need.Processes(t, dirs[0]) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	gone(t, dirs[0])
	out, _, status = in(t, dirs[0], "status")
	if status != statusNo || !strings.Contains(out, "k8s-01  etcd,master,worker  off") || !strings.Contains(out, "kimage up -f cluster.yaml boots it from its disk again") {
		t.Errorf("all off: status %d:\n%s", status, out)
	}
	if _, words, status := in(t, dirs[0], "up", "--timeout", "7s"); status != statusNo || !strings.Contains(words, "they boot from their disks again") || !strings.Contains(words, "k8s-01  waiting") {
		t.Errorf("after a power cut: status %d: %s", status, words)
	}
	// And after another one, one machine is lost and one new.
	for _, pid := range need.Processes(t, dirs[0]) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	gone(t, dirs[0])
	inOK(t, dirs[0], "down", "k8s-01")
	if _, words, status := in(t, dirs[0], "up", "--image", image, "--timeout", "7s"); status != statusNo || !strings.Contains(words, "booting k8s-01, which") || !strings.Contains(words, "k8s-01  waiting") {
		t.Errorf("after a power cut and a loss: status %d: %s", status, words)
	}
	for i, dir := range dirs {
		inOK(t, dir, "down")
		ended(t, dir)
		inOK(t, dir, "down") // nothing to end
		want := []string{"no machines on this computer (kimage up)", "not a cluster file"}[i]
		if _, words, status := in(t, dir, "status"); status != statusCouldNotTell || !strings.Contains(words, want) {
			t.Errorf("status %d: %s", status, words)
		}
	}
}

// TestUpGivesUp: what the machines said is told before it is removed with them, and no
// file is named that is gone then; also if their supervisor ended.
func TestUpGivesUp(t *testing.T) {
	image := standIn(t, "waiting")
	const console = "no API server answers" // of the stand-in
	for name, tt := range map[string]struct {
		timeout string
		kill    bool
		status  int
		want    []string
	}{
		"not Ready in time":    {"10s", false, statusNo, []string{`k8s-01: phase "waiting", no API server answers; the end of its console:`, console, "--keep keeps machines", "ended the machines"}},
		"the supervisor ended": {"1m", true, statusCouldNotTell, []string{"supervisor has ended; it said: nothing", "k8s-01 is off; qemu said: nothing", console, "--keep keeps machines", "the machines are not running"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := command("up", "--image", image, "--timeout", tt.timeout)
			cmd.Dir = dir
			var words bytes.Buffer
			cmd.Stderr = &words
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { in(t, dir, "down") })
			if tt.kill {
				shows(t, filepath.Join(dir, "cluster.local/machines/k8s-01/console.log"), console)
				for _, pid := range need.Processes(t, "supervise\x00"+dir) {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			cmd.Wait()
			for _, want := range tt.want {
				if got := cmd.ProcessState.ExitCode(); got != tt.status || !strings.Contains(words.String(), want) {
					t.Errorf("status %d, no %q in\n%s", got, want, words.String())
				}
			}
			if strings.Contains(words.String(), "console.log") || strings.Contains(words.String(), "supervisor.log") {
				t.Errorf("names what is gone:\n%s", words.String())
			}
			ended(t, dir)
		})
	}
}

// shows waits until a file has a text.
func shows(t *testing.T, file, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if data, _ := os.ReadFile(file); bytes.Contains(data, []byte(text)) {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%s never showed %q", file, text)
		}
	}
}

// TestUpOff: a machine that went off by itself is booted from its disk again.
func TestUpOff(t *testing.T) {
	image, dir := standIn(t, "waiting"), t.TempDir()
	t.Cleanup(func() { in(t, dir, "down") })
	in(t, dir, "up", "--image", image, "--keep", "--timeout", "2s")
	disk := filepath.Join(dir, "cluster.local/machines/k8s-01/disk.qcow2")
	before, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range need.Processes(t, filepath.Dir(disk)) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	gone(t, filepath.Dir(disk))
	const remedy = "off: kimage up -f cluster.yaml boots it from its disk again"
	if out, _, status := in(t, dir, "status"); status != statusNo || !strings.Contains(out, remedy) {
		t.Errorf("status %d:\n%s", status, out)
	}
	if _, words, status := in(t, dir, "ssh", "k8s-01", "true"); status != statusCouldNotTell || !strings.Contains(words, remedy) {
		t.Errorf("status %d: %s", status, words)
	}
	if _, words, _ := in(t, dir, "up", "--timeout", "2s"); !strings.Contains(words, "k8s-01 was off: it boots from its disk again") || strings.Contains(words, "went off") {
		t.Errorf("it is switched on:\n%s", words)
	}
	if after, err := os.Stat(disk); err != nil || !os.SameFile(before, after) {
		t.Errorf("its disk was made anew: %v", err)
	}
}

// TestUpPortTaken: machines boot again behind another port if somebody took theirs.
func TestUpPortTaken(t *testing.T) {
	image, dir := standIn(t, "waiting"), t.TempDir()
	t.Cleanup(func() { in(t, dir, "down") })
	in(t, dir, "up", "--image", image, "--keep", "--timeout", "1s")
	for _, pid := range need.Processes(t, dir) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	gone(t, dir)
	server := func() string {
		return string(localServer.Find([]byte(inOK(t, dir, "kubeconfig"))))
	}
	before := server()
	ln, err := net.Listen("tcp", strings.TrimPrefix(before, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, words, _ := in(t, dir, "up", "--timeout", "1s")
	after := server()
	if !strings.Contains(words, "the Kubernetes API is at "+strings.TrimPrefix(after, "https://")) || after == before || after == "" {
		t.Errorf("the API was at %s and is at %s:\n%s", before, after, words)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(after, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestUpRefuses says before booting what is wrong.
func TestUpRefuses(t *testing.T) {
	image := standIn(t, "ready")
	dir := t.TempDir()
	inOK(t, dir, "cluster", "check", "-f", write(t, dir, "large.yaml", strings.Replace(inOK(t, dir, "cluster", "new"), "  nodes:\n", "    qemu: {memoryMiB: 9999999}\n  nodes:\n", 1)))
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"memory":   {[]string{"-f", "large.yaml", "--image", image}, "1 machines need 10000099 MiB of memory, and "},
		"no image": {[]string{"-f", "a.yaml", "--image", "none.raw"}, "none.raw: no such file"},
		"no place": {[]string{"-f", "none/a.yaml", "--image", image}, "there is no directory none: make it"},
		"topology": {[]string{"-f", "b.yaml", "--topology", "4"}, `unknown topology "4"`},
		"system":   {[]string{"-f", "c.yaml", "--os", "debian-99"}, `debian-99`},
	} {
		_, words, status := in(t, dir, append([]string{"up"}, tt.args...)...)
		if status != statusCouldNotTell || !strings.Contains(words, tt.want) {
			t.Errorf("%s: status %d: %s", name, status, words)
		}
	}
	bare := command("up", "-f", "d.yaml", "--image", image)
	bare.Dir, bare.Env = dir, append(bare.Env, "PATH="+t.TempDir())
	if _, words, status := finish(t, bare); status != statusCouldNotTell || !strings.Contains(words, "missing on this machine: qemu-system-x86_64, qemu-img") || !strings.Contains(words, "apt-get install qemu-system-x86") {
		t.Errorf("without qemu: status %d: %s", status, words)
	}
	// As after this computer's power cut, and with less memory.
	const once = `{"accel": "tcg", "machines": [{"name": "k8s-01", "memoryMiB": 9999999}]}`
	write(t, dir, "once.yaml", inOK(t, dir, "cluster", "new"))
	if err := os.Mkdir(filepath.Join(dir, "once.local"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "once.local/claim", "")
	write(t, dir, "once.local/machines.json", once)
	if _, words, status := in(t, dir, "up", "-f", "once.yaml"); status != statusCouldNotTell || !strings.Contains(words, "1 machines need 10000099 MiB of memory, and ") {
		t.Errorf("once more, with less memory: status %d: %s", status, words)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "once.local/machines.json")); err != nil || string(got) != once {
		t.Errorf("what was there does not stay: %v, %s", err, got)
	}
	inOK(t, dir, "down", "-f", "once.yaml")
	left, err := filepath.Glob(filepath.Join(dir, "*.local"))
	if err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	gone(t, dir)
	// Vagrant's machines are not made twice.
	write(t, dir, vagrantFile, "{}")
	for _, args := range [][]string{{"up", "--image", image}, {"ssh", "k8s-01"}} {
		if _, words, status := in(t, dir, args...); status != statusCouldNotTell || !strings.Contains(words, "vagrant ssh NODE") {
			t.Errorf("%v: status %d: %s", args, status, words)
		}
	}
	if err := os.Remove(filepath.Join(dir, vagrantFile)); err != nil {
		t.Fatal(err)
	}
	// What is not kimage's stays.
	mine := filepath.Join(dir, "cluster.local", "thesis.txt")
	if err := os.Mkdir(filepath.Dir(mine), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(mine), "thesis.txt", "all of it")
	for _, args := range [][]string{{"up", "--image", image}, {"down"}} {
		if _, words, status := in(t, dir, args...); status != statusCouldNotTell || !strings.Contains(words, "was not made by kimage up") {
			t.Errorf("%v: status %d: %s", args, status, words)
		}
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
