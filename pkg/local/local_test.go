package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/need"
)

// supervisorVariable makes the test program the supervisor of a directory.
const supervisorVariable = "KIMAGE_TEST_SUPERVISE"

func TestMain(m *testing.M) {
	if os.Getenv(supervisorVariable) == "" {
		os.Exit(m.Run())
	}
	log.Fatal(Set{Dir: os.Args[1]}.Supervise(context.Background(), log.Printf))
}

func screen(phase, why string) string {
	return redraw + "kimage     a of demo (worker)\r\nphase      " + phase + " since 2026-11-26 11:07:06 UTC\r\nwhy        " + why + "\r\nmore       kimage-agent status\r\n\r\n"
}

func startSet(t *testing.T, change func(*Spec), images ...string) Set {
	t.Helper()
	t.Setenv(supervisorVariable, "yes")
	s := Set{Dir: filepath.Join(t.TempDir(), "demo.local")}
	spec := Spec{Accel: "tcg", Subnet: netip.MustParsePrefix("172.17.8.0/24"), Server: netip.MustParseAddr("172.17.8.1")}
	for i, image := range images {
		spec.Machines = append(spec.Machines, Machine{Name: string(rune('a' + i)), Image: image, Format: "raw", DiskGiB: 1, CPUs: 1, MemoryMiB: 32, MAC: fmt.Sprintf("52:54:00:17:08:%02d", i+1), API: i == 0})
	}
	if change != nil {
		change(&spec)
	}
	if err := s.Write(spec); err != nil {
		t.Fatal(err)
	}
	begin(t, s)
	t.Cleanup(func() { s.Stop(context.Background()) })
	return s
}

func begin(t *testing.T, s Set) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context(), program, s.Dir); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestSet: machines run without the process that started them, are waited for,
// replaced and switched off and on, and at the end nothing is left of them.
func TestSet(t *testing.T) {
	s := startSet(t, nil, need.Guest(t, screen("ready", "nothing")), need.Guest(t, screen("ready", "nothing")))
	run, err := os.ReadFile(filepath.Join(s.Dir, runFile))
	if err != nil {
		t.Fatal(err)
	}
	program, _ := os.Executable()
	if err := s.Start(t.Context(), program, s.Dir); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second supervisor: %v", err)
	}
	var out bytes.Buffer
	ready := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return (&Wait{Set: s, Out: &out}).Ready(ctx)
	}
	if err := ready(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "a  ready\n") || !strings.Contains(out.String(), "b  ready\n") {
		t.Errorf("told:\n%s", out.String())
	}

	// Another image for b, which does not come so far.
	spec, err := s.Spec()
	if err != nil {
		t.Fatal(err)
	}
	spec.Machine("b").Image = need.Guest(t, screen("waiting", "no API server answers: asking the\r\n           other masters"))
	if err := s.Write(spec); err != nil {
		t.Fatal(err)
	}
	if err := s.Boot(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := ready(15 * time.Second); err == nil || !strings.Contains(err.Error(), "b waiting no API server answers: asking the other masters") {
		t.Errorf("waiting for what does not come: %v", err)
	}
	if err := s.Boot(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "no machine x") {
		t.Errorf("replacing nobody: %v", err)
	}

	if n := len(need.Processes(t, s.Dir)); n != 3 {
		t.Errorf("%d processes, not a supervisor and two machines", n)
	}
	// One that ends is told of.
	for _, pid := range need.Processes(t, filepath.Join(s.Dir, "machines/b")) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := ready(15 * time.Second); !errors.Is(err, ErrNotReady) || err.Error() != "not Ready: b went off" {
		t.Errorf("a machine that is off: %v", err)
	}
	// It boots from its disk again, and who is on stays on.
	disk := filepath.Join(s.Dir, "machines/b/disk.qcow2")
	before, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "b", "a"} {
		if err := s.SwitchOn(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if after, err := os.Stat(disk); err != nil || !os.SameFile(before, after) {
		t.Errorf("its disk was made anew: %v", err)
	}
	eventually(t, "b shows its screen again", func() bool { return s.Screen("b").Phase == "waiting" })
	if n := len(need.Processes(t, s.Dir)); n != 3 {
		t.Errorf("%d processes, not a supervisor and two machines", n)
	}
	if err := s.SwitchOn(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "no machine x") {
		t.Errorf("switching on nobody: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are gone", func() bool { return len(need.Processes(t, s.Dir)) == 0 })
	if _, err := os.Stat(strings.TrimSpace(string(run))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the sockets' directory: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("stopping what does not run: %v", err)
	}
	if _, err := s.Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("the status of what does not run: %v", err)
	}
}

// TestKilledSupervisor: machines do not outlive their supervisor, and run again from
// their disks, behind the same port.
func TestKilledSupervisor(t *testing.T) {
	s := startSet(t, nil, need.Guest(t, screen("ready", "nothing")))
	before, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a shows its screen", func() bool { return s.Screen("a").Phase == PhaseReady })
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are gone", func() bool { on, _ := s.Running(); return !on && len(need.Processes(t, s.Dir)) == 0 })
	run, err := os.ReadFile(filepath.Join(s.Dir, runFile))
	if err != nil {
		t.Fatal(err)
	}
	begin(t, s)
	if _, err := os.Stat(strings.TrimSpace(string(run))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the sockets' directory of the one that was killed: %v", err)
	}
	after, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.APIPort != before.APIPort || after.PID == before.PID {
		t.Errorf("%+v after %+v", after, before)
	}
	eventually(t, "a shows its screen again", func() bool { return s.Screen("a").Phase == PhaseReady })
}

// TestOwnSeed: a machine boots again with what it was told at first, which is no longer
// where it was.
func TestOwnSeed(t *testing.T) {
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	told := t.TempDir()
	for _, name := range []string{"seed.iso", "config.ign"} {
		if err := os.WriteFile(filepath.Join(told, name), make([]byte, 1024), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := startSet(t, func(spec *Spec) {
		spec.Machines[0].Seed, spec.Machines[0].FwCfg = filepath.Join(told, "seed.iso"), map[string]string{"opt/a": filepath.Join(told, "config.ign")}
	}, need.Guest(t, screen("ready", "nothing")))
	eventually(t, "a shows its screen", func() bool { return s.Screen("a").Phase == PhaseReady })
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(told); err != nil {
		t.Fatal(err)
	}
	begin(t, s)
	eventually(t, "a shows its screen again", func() bool { return s.Screen("a").Phase == PhaseReady })
}

// TestConsoleSetAside: a machine's screen is that of its last start, its console that of
// all.
func TestConsoleSetAside(t *testing.T) {
	s := Set{Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Dir(s.ConsoleFile("a")), 0o700); err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for _, phase := range []string{"init", "joined", "ready"} {
		if err := s.setConsoleAside("a"); err != nil {
			t.Fatal(err)
		}
		if got := s.Screen("a"); got != (Screen{}) {
			t.Errorf("before it said anything: %+v", got)
		}
		all.WriteString(screen(phase, "nothing"))
		if err := os.WriteFile(s.ConsoleFile("a"), []byte(screen(phase, "nothing")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got bytes.Buffer
	if err := s.CopyConsole(&got, "a"); err != nil || got.String() != all.String() {
		t.Errorf("%v, %q", err, got.String())
	}
}

// TestStartFails: what the supervisor says is the error.
func TestStartFails(t *testing.T) {
	need.Program(t, "qemu-system-x86_64", "qemu-system-x86")
	t.Setenv(supervisorVariable, "yes")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	program, _ := os.Executable()
	good := Spec{Subnet: netip.MustParsePrefix("172.17.8.0/24"), Server: netip.MustParseAddr("172.17.8.1")}
	for name, tt := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"the port is in use": {func(s *Spec) { s.APIPort = ln.Addr().(*net.TCPAddr).Port }, "address already in use"},
		"no image": {func(s *Spec) {
			s.Machines = []Machine{{Name: "a", Image: "/no/image", Format: "raw", MAC: "52:54:00:17:08:01"}}
		}, "starting a: making the disk"},
		"one address twice": {func(s *Spec) {
			a := netip.MustParseAddr("172.17.8.101")
			s.Machines = []Machine{{Name: "a", MAC: "52:54:00:17:08:01", Address: a}, {Name: "b", MAC: "52:54:00:17:08:02", Address: a}}
		}, "a and b are to have one address, 172.17.8.101"},
		"no card": {func(s *Spec) { s.Machines = []Machine{{Name: "a", MAC: "x"}} }, `a: "x" is no card's address`},
	} {
		t.Run(name, func(t *testing.T) {
			s, spec := Set{Dir: t.TempDir()}, good
			tt.change(&spec)
			if err := s.Write(spec); err != nil {
				t.Fatal(err)
			}
			if err := s.Start(t.Context(), program, s.Dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
			eventually(t, "all are gone", func() bool { return len(need.Processes(t, s.Dir)) == 0 })
		})
	}
}

// TestAPI: connections go to the server that is ready, and to another when it no longer
// is. One at a time is ready: of several the quickest to say so is taken.
func TestAPI(t *testing.T) {
	type server struct {
		*httptest.Server
		ready atomic.Bool
	}
	var servers []*server
	var ports []int
	for i := range 3 {
		s := &server{}
		s.ready.Store(i == 1)
		s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/readyz" && !s.ready.Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
			fmt.Fprint(w, i)
		}))
		defer s.Close()
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		p, _ := strconv.Atoi(port)
		servers, ports = append(servers, s), append(ports, p)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(ln, func() []int { return ports })
	defer a.Close()
	forget := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.until = time.Time{}
	}
	ask := func() string {
		client := servers[0].Client()
		client.Transport = &http.Transport{DisableKeepAlives: true, TLSClientConfig: servers[0].Client().Transport.(*http.Transport).TLSClientConfig}
		resp, err := client.Get("https://" + ln.Addr().String() + "/who")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return string(data)
	}
	if got := ask(); got != "1" {
		t.Errorf("led to %s", got)
	}
	servers[1].ready.Store(false)
	servers[2].ready.Store(true)
	forget()
	if got := ask(); got != "2" {
		t.Errorf("led to %s", got)
	}
	servers[2].ready.Store(false)
	forget()
	if got := ask(); !strings.Contains(got, "EOF") && !strings.Contains(got, "reset") {
		t.Errorf("led to %s", got)
	}
}

// TestScreen finds the last whole screen on a console.
func TestScreen(t *testing.T) {
	s := Set{Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Dir(s.ConsoleFile("a")), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Screen{
		"":                          {},
		"[    1.0] kernel says\r\n": {},
		screen("etcd", "asking b"):  {"etcd", "2026-11-26 11:07:06 UTC", "asking b"},
		screen("etcd", "asking b") + "k8s login: " + screen("waiting", "no API server\r\n           answers"): {"waiting", "2026-11-26 11:07:06 UTC", "no API server answers"},
		screen("init", "x") + redraw + "kimage     a of demo":                                                 {"init", "2026-11-26 11:07:06 UTC", "x"},
	} {
		if err := os.WriteFile(s.ConsoleFile("a"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := s.Screen("a"); got != want {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if got := s.ConsoleTail("a", 1); strings.Contains(got, "\x1b") {
		t.Errorf("%q", got)
	}
}

func TestCrowded(t *testing.T) {
	have := runtime.NumCPU()
	for _, c := range []struct {
		accel string
		cpus  []int
		want  bool
	}{{"tcg", []int{have}, false}, {"tcg", []int{have, 1}, true}, {"kvm", []int{have, 1}, false}} {
		s := Spec{Accel: c.accel}
		for _, n := range c.cpus {
			s.Machines = append(s.Machines, Machine{CPUs: n})
		}
		if s.Crowded() != c.want {
			t.Errorf("%s, %d processors on %d: %t", c.accel, c.cpus, have, !c.want)
		}
		if s.Pacing() != c.want {
			t.Errorf("%s, %d processors on %d: pacing %t", c.accel, c.cpus, have, !c.want)
		}
		if s.Paced = true; s.Pacing() != (c.accel == "tcg") {
			t.Errorf("%s, asked for: pacing %t", c.accel, s.Pacing())
		}
	}
}

func TestPlan(t *testing.T) {
	text, err := cluster.New(cluster.Outline{Topology: "6", Name: "demo", OS: "debian-13", Kubernetes: "v1.37.2"})
	if err != nil {
		t.Fatal(err)
	}
	support := cluster.Support{OSes: []cluster.OS{{Name: "debian-13", FirstBoot: "cloud-init"}}, Kubernetes: []string{"v1.37.2"}, Runtimes: []string{"containerd"}, Plugins: []string{"flannel"}}
	text = strings.Replace(text, "    address: 172.17.8.103\n    match: {mac: \"52:54:00:17:08:03\"}\n", "    machine: {qemu: {cpus: 3, memoryMiB: 4096}}\n", 1) + "  pools:\n  - {name: crowd, roles: [worker], size: 2}\n"
	f, err := cluster.Parse([]byte(text), "cluster.yaml", support)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Plan(f, "tcg")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range s.Machines {
		got = append(got, fmt.Sprint(m.Name, " ", m.Pool, " ", m.API, " ", m.CPUs, " ", m.MemoryMiB, " ", m.Address, " ", m.MAC))
	}
	want := []string{
		"k8s-01  true 2 2560 172.17.8.101 52:54:00:17:08:01",
		"k8s-02  true 2 2560 172.17.8.102 52:54:00:17:08:02",
		"k8s-03  false 3 4096 172.17.8.2 " + madeMAC("demo/k8s-03"),
		"k8s-04  false 1 512 172.17.8.104 52:54:00:17:08:04",
		"k8s-05  false 1 512 172.17.8.105 52:54:00:17:08:05",
		"k8s-06  false 1 512 172.17.8.106 52:54:00:17:08:06",
		"crowd-1 crowd false 1 1536 172.17.8.3 " + madeMAC("demo/crowd-1"),
		"crowd-2 crowd false 1 1536 172.17.8.4 " + madeMAC("demo/crowd-2"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// A pool's machines name themselves by it.
	if a, b := s.Machine("crowd-1").UUID, s.Machine("crowd-2").UUID; a == "" || b == "" || a == b || s.Machine("k8s-01").UUID != "" {
		t.Errorf("UUIDs %q and %q", a, b)
	}
	if s.Server.String() != "172.17.8.1" || s.Subnet.String() != "172.17.8.0/24" || s.MemoryMiB() != 2*2560+4096+3*512+2*1536 {
		t.Errorf("%+v", s)
	}
	for i := range s.Machines {
		s.Machines[i].MemoryMiB = 1 << 30
	}
	if err := s.Fits(t.TempDir(), 0); err == nil || !strings.Contains(err.Error(), "MiB are free") {
		t.Errorf("more memory than there is: %v", err)
	}
	// What a disk takes already is not needed once more.
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := allocatedMiB(file); got < 2 || got > 4 {
		t.Errorf("%d MiB, not 3", got)
	}
	if got := allocatedMiB(file + "x"); got != 0 {
		t.Errorf("%d MiB of no file", got)
	}
	if err := (Spec{}).Fits(t.TempDir(), 1<<40); err == nil || !strings.Contains(err.Error(), "MiB free") {
		t.Errorf("more disk than there is: %v", err)
	}
}
