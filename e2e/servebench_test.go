//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

const (
	fetchers      = 100
	fetchURL      = "KIMAGE_BENCH_FETCH" // set: this process is the machines
	maxServeBytes = 128 << 20
	minServeRatio = 0.9
)

// fetched is what the machines say.
type fetched struct {
	Bytes   int64
	Seconds float64
}

// fetchAll is a hundred machines that fetch one file at once, and throw it away.
func fetchAll(url string) (f fetched, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	started := time.Now()
	for range fetchers {
		wg.Go(func() {
			n, e := fetchOne(url)
			mu.Lock()
			defer mu.Unlock()
			if f.Bytes += n; e != nil {
				err = e
			}
		})
	}
	wg.Wait()
	f.Seconds = time.Since(started).Seconds()
	return f, err
}

// fetchOne reads by the connection's own calls: a client that costs much hides what the
// server costs.
func fetchOne(url string) (int64, error) {
	host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	c, err := net.Dial("tcp", host)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host)
	r := bufio.NewReaderSize(c, 256<<10)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", url, resp.Status)
	}
	// Discard has its own small buffers, which the struct hides.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
	if err == nil && n != resp.ContentLength {
		err = fmt.Errorf("%s: %d bytes, not %d", url, n, resp.ContentLength)
	}
	return n, err
}

// peak is the most memory that a process has had since reset, in bytes (proc_pid_status(5)).
func peak(t *testing.T, pid int, reset bool) int64 {
	t.Helper()
	if reset {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o200); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmHWM in\n%s", data)
	return 0
}

// TestServeRatio: a hundred machines fetch the image from kimage serve as fast as the same file
// from nginx, by turns on one computer, and kimage serve's memory does not grow with them.
func TestServeRatio(t *testing.T) {
	if url := os.Getenv(fetchURL); url != "" {
		f, err := fetchAll(url)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(os.Stderr).Encode(f); err != nil {
			t.Fatal(err)
		}
		return
	}
	if os.Getenv("KIMAGE_BENCH_SERVE") == "" {
		t.Skip("measured by make bench-serve")
	}
	need.Program(t, "nginx", "nginx-light")
	r := newRoom(t, "--dhcp-range", "192.168.77.101-192.168.77.150")
	frames, err := filepath.Glob(filepath.Join(r.dir, "*.serve/images/*.frames"))
	if err != nil || len(frames) != 1 {
		t.Fatalf("frames: %v, %v", frames, err)
	}
	r.nginx(filepath.Dir(frames[0]))
	urls := map[string]string{"kimage": r.url + "/image/frames", "nginx": "http://" + roomAddress + ":8081/" + filepath.Base(frames[0])}
	rates := map[string][]float64{}
	idle := peak(t, r.pid, true)
	for round := range 5 {
		for _, who := range []string{"nginx", "kimage"} {
			cmd := r.inside(t.Context(), os.Args[0], "-test.run", "^TestServeRatio$")
			cmd.Env = append(os.Environ(), fetchURL+"="+urls[who], "KIMAGE_E2E_IMAGE="+image) // nothing is baked for it
			var said strings.Builder
			cmd.Stderr = &said
			if err := cmd.Run(); err != nil {
				t.Fatalf("%s: %v\n%s", who, err, said.String())
			}
			var f fetched
			if err := json.Unmarshal([]byte(said.String()), &f); err != nil {
				t.Fatalf("%s: %v\n%s", who, err, said.String())
			}
			rate := float64(f.Bytes) / f.Seconds
			t.Logf("%s: %d machines, %d MiB in %.1f s: %.0f MiB/s", who, fetchers, f.Bytes>>20, f.Seconds, rate/(1<<20))
			if round > 0 { // the first fills caches
				rates[who] = append(rates[who], rate)
			}
		}
	}
	median := func(all []float64) float64 { slices.Sort(all); return all[len(all)/2] }
	ratio := median(rates["kimage"]) / median(rates["nginx"])
	memory := peak(t, r.pid, false)
	t.Logf("%.2f times nginx' bytes per second (goal: %.1f); memory %d MiB at most, %d MiB before", ratio, minServeRatio, memory>>20, idle>>20)
	if ratio < minServeRatio {
		t.Error("too slow")
	}
	if memory > maxServeBytes {
		t.Error("too much memory")
	}
}

// nginx serves a directory on port 8081 until the test ends.
func (r *room) nginx(dir string) {
	r.t.Helper()
	config := filepath.Join(r.dir, "nginx.conf")
	text := fmt.Sprintf("daemon off; user root; worker_processes auto; pid %s/nginx.pid; error_log stderr;\nevents { worker_connections 1024; }\n"+
		"http { access_log off; sendfile on; tcp_nopush on; server { listen %s:8081; root %s; } }\n", r.dir, roomAddress, dir)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	cmd := r.inside(r.t.Context(), "nginx", "-p", r.dir, "-c", config)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdout, cmd.Stderr = r, r
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); exec.Command("ip", "netns", "exec", r.ns, "curl", "--silent", "--head", "http://"+roomAddress+":8081/").Run() != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("nginx does not answer\n%s", r.words())
		}
	}
}
