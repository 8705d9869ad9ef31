package need

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CPU is how long a process has run on processors, its children aside: the first number of
// each thread's schedstat, in ns (https://docs.kernel.org/scheduler/sched-stats.html).
// Threads that ended are missing.
func CPU(t testing.TB, pid int) (sum time.Duration) {
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
