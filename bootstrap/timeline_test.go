package bootstrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/timeline"
)

// TestTimelineReadsPhases: what the agent writes about its phases is what the
// timeline understands.
func TestTimelineReadsPhases(t *testing.T) {
	now := time.Unix(1000, 0)
	var journal bytes.Buffer
	logf := func(format string, args ...any) {
		us := now.UnixMicro()
		json.NewEncoder(&journal).Encode(map[string]string{"__MONOTONIC_TIMESTAMP": strconv.FormatInt(us-990e6, 10), "__REALTIME_TIMESTAMP": strconv.FormatInt(us, 10), "MESSAGE": fmt.Sprintf(format, args...)})
	}
	p := &phases{node: "a", logf: logf, now: func() time.Time { return now }, file: filepath.Join(t.TempDir(), "phase.json")}
	for _, phase := range []string{PhaseStopped, PhaseEtcd, PhaseWaiting, PhaseInit, PhaseJoin, PhaseJoined, PhaseReady} {
		if at, err := timeline.ReadyAt(journal.Bytes()); err != nil || !at.IsZero() {
			t.Fatalf("before phase %s: ready at %s, %v", phase, at, err)
		}
		p.set(partKube, phase, "the why of "+phase)
		now = now.Add(10 * time.Second)
	}
	logf("ready: %s", Took{Seconds: 60, Own: 60})
	if at, err := timeline.ReadyAt(journal.Bytes()); err != nil || !at.Equal(time.Unix(1060, 0)) {
		t.Errorf("ready at %s, %v", at, err)
	}
	svg, err := timeline.SVG(timeline.Facts{Node: "a", Manager: []byte("UserspaceTimestampMonotonic=5000000\n"), Agent: journal.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{">a: Ready 70.0 s after the kernel's start<", ">stopped<", ">10.0 s: the why of stopped<", ">etcd<", ">waiting<", ">init<", ">join<", ">joined<", ">10.0 s: the why of joined<", ">ready<", ">Ready 60.0s after the agent's start: own 60.0s<"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
}
