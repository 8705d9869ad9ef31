package need

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Idle fails the test if a process that has nothing to do takes more than limit, in % of a
// core, in each of three windows: beside other work the same takes longer, so that one
// quiet window is enough. KIMAGE_WINDOW is how long one is, instead of window.
func Idle(t testing.TB, pid int, limit float64, window time.Duration) {
	t.Helper()
	if d, err := time.ParseDuration(os.Getenv("KIMAGE_WINDOW")); err == nil {
		window = d
	}
	for range 3 {
		before, began := cpu(t, pid), time.Now()
		time.Sleep(window)
		percent := 100 * (cpu(t, pid) - before).Seconds() / time.Since(began).Seconds()
		t.Logf("%.4f %% of a core over %s", percent, window)
		if percent <= 0 {
			t.Fatalf("process %d was not measured", pid)
		}
		if percent <= limit {
			return
		}
	}
	t.Errorf("process %d takes more than %.2f %% of a core", pid, limit)
}

// cpu is how long a process has run on processors, its children aside: the first number of
// each thread's schedstat, in ns (https://docs.kernel.org/scheduler/sched-stats.html).
// Threads that ended are missing.
func cpu(t testing.TB, pid int) (sum time.Duration) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	for _, file := range threads {
		data, err := os.ReadFile(file)
		var ns int64
		if err == nil {
			_, err = fmt.Sscan(string(data), &ns)
		}
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}
