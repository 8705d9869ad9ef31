//go:build chaos

package etcd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// chaosNode is what an agent process of the test is told.
type chaosNode struct {
	Name, Address string
	Dir           string // the machine: disk/, said, clock, etcd.log, pki/
	Cluster       nodeconf.Cluster
	Roster        nodeconf.SignedRoster
	Etcd, Etcdutl string
	Settled       time.Duration // 0: 300 ms
	Count         time.Duration // 0: as on a node
	Death         *death        // nil: none is arranged
}

func (n chaosNode) disk() string  { return filepath.Join(n.Dir, "disk") }
func (n chaosNode) state() string { return filepath.Join(n.Dir, "disk", "state") }

// isKIMAGE is the file that a directory has if it is "mounted".
const isKIMAGE = "this is KIMAGE"

// TestMain: the test program is also the agent, so that it can be killed.
func TestMain(m *testing.M) {
	if w := os.Getenv(writerVariable); w != "" {
		var client writer
		if err := json.Unmarshal([]byte(w), &client); err != nil {
			log.Fatal(err)
		}
		log.Fatal(client.run(context.Background()))
	}
	file := os.Getenv("KIMAGE_CHAOS_AGENT")
	if file == "" {
		os.Exit(m.Run())
	}
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	var n chaosNode
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err == nil {
		err = n.run(context.Background())
	}
	log.Fatal(err)
}

// run is the agent. etcd outlives it, as a unit of systemd's does.
func (n chaosNode) run(ctx context.Context) error {
	a, err := New(Config{
		Name: n.Name, Address: n.Address, Cluster: n.Cluster, Roster: n.Roster, State: n.state(), PKI: filepath.Join(n.Dir, "pki"), Etcdutl: n.Etcdutl,
		Heartbeat: 200 * time.Millisecond, Election: 2 * time.Second,
		Interval: 100 * time.Millisecond, Settled: cmp.Or(n.Settled, 300*time.Millisecond), Timeout: time.Second, Count: n.Count,
		Mounted: func() error {
			if _, err := os.Stat(filepath.Join(n.disk(), isKIMAGE)); err != nil {
				return errors.New("KIMAGE is not mounted")
			}
			return nil
		},
		Running: func(context.Context) (bool, error) { return etcdStarted(n.state()) != 0, nil },
		Start:   n.start,
		Ended: func(context.Context) (string, error) {
			data, err := os.ReadFile(filepath.Join(n.Dir, "etcd.log"))
			if errors.Is(err, os.ErrNotExist) {
				return "", nil // none was ever started
			}
			return string(data[max(0, bytes.LastIndex(data, []byte(etcdStarts))):]), err
		},
		Halt: func(ctx context.Context) error {
			for ; etcdOf(n.state()) != 0 && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
				syscall.Kill(etcdOf(n.state()), syscall.SIGTERM)
			}
			return ctx.Err()
		},
		Now: func() time.Time {
			jump, _ := os.ReadFile(filepath.Join(n.Dir, "clock"))
			d, _ := time.ParseDuration(strings.TrimSpace(string(jump)))
			return time.Now().Add(d)
		},
		Report: func(act Action) {
			os.WriteFile(filepath.Join(n.Dir, "said.new"), fmt.Appendf(nil, "%s: %s", act.Do, act.Why), 0o600)
			os.Rename(filepath.Join(n.Dir, "said.new"), filepath.Join(n.Dir, "said"))
		},
		Logf: log.Printf,
	})
	if err != nil {
		return err
	}
	if d := n.Death; d != nil && !d.came() {
		d.state = n.state()
		d.counting(a)
	}
	return a.Run(ctx)
}

// pidFile, in a machine's directory, has the process ID of its etcd.
const pidFile = "etcd.pid"

// etcdStarts begins what one etcd wrote.
const etcdStarts = "--- an etcd starts\n"

func (n chaosNode) start(_ context.Context, l Launch) error {
	if etcdOf(n.state()) != 0 {
		return nil
	}
	out, err := os.OpenFile(filepath.Join(n.Dir, "etcd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	out.WriteString(etcdStarts)
	cmd := exec.Command("sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(n.Dir, pidFile), n.Etcd}, l.Argv...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// As with systemd it runs from the moment on in which it was told to.
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	for etcdStarted(n.state()) != cmd.Process.Pid {
		select {
		case <-ended:
			return nil
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// etcdStarted finds the etcd process that start began last for a state directory,
// if it works there; 0: none. It is asked all the time.
func etcdStarted(state string) int {
	data, _ := os.ReadFile(filepath.Join(state, "../..", pidFile))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	if pid == 0 || !works(fmt.Sprintf("/proc/%d/cmdline", pid), state) {
		return 0
	}
	return pid
}

// works says whether a command line is that of an etcd that works below state.
func works(cmdline, state string) bool {
	line, _ := os.ReadFile(cmdline)
	return strings.Contains(string(line), "\x00--data-dir="+state+"/")
}

// etcdOf finds the etcd process that works below a state directory; 0: none. It is
// not misled by one whose agent was killed while it started.
func etcdOf(state string) int {
	if pid := etcdStarted(state); pid != 0 {
		return pid
	}
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		if works(p, state) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			return pid
		}
	}
	return 0
}
