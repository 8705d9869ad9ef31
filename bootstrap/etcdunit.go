package bootstrap

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/etcd"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/run"
)

const (
	etcdUnit = "etcd.service"
	etcdArgs = "/run/kimage/etcd.env" // read by the unit
	// systemd's name for it, where control groups are those of version 2.
	etcdGroup = "/sys/fs/cgroup/system.slice/" + etcdUnit
)

// startEtcd gives the unit its command line and starts it. systemd never starts
// it again by itself: whether its data may be used is decided each time.
func startEtcd(ctx context.Context, l etcd.Launch) error {
	if err := os.MkdirAll(filepath.Dir(etcdArgs), 0o755); err != nil {
		return err
	}
	joins := ""
	if l.Joins {
		joins = "yes"
	}
	if err := atomicfile.Write(etcdArgs, fmt.Appendf(nil, "ETCD_DATA=%s\nETCD_JOINS=%s\nETCD_ARGS=%s\n", l.Data, joins, strings.Join(l.Argv, " ")), 0o644); err != nil {
		return err
	}
	return run.Run(ctx, run.Cmd{Argv: []string{"systemctl", "--no-block", "start", etcdUnit}})
}

// etcdWords are the last lines that etcd wrote in its last run.
func etcdWords(ctx context.Context) (string, error) {
	id, err := run.Output(ctx, run.Cmd{Argv: []string{"systemctl", "show", "--property=InvocationID", "--value", etcdUnit}})
	if err != nil {
		return "", fmt.Errorf("asking systemd for %s: %w", etcdUnit, err)
	}
	invocation := strings.TrimSpace(string(id))
	if invocation == "" {
		return "", nil // not since this boot
	}
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"journalctl", "_SYSTEMD_INVOCATION_ID=" + invocation, "--lines=40", "--output=cat", "--no-pager", "--quiet"}})
	if err != nil {
		return "", fmt.Errorf("reading why etcd ended: %w", err)
	}
	return string(out), nil
}

func haltEtcd(ctx context.Context) error {
	return run.Run(ctx, run.Cmd{Argv: []string{"systemctl", "stop", etcdUnit}})
}

// etcdRuns is asked every few seconds for as long as the machine is up, so it
// looks into the unit's control group, and asks systemd only where there is none.
func etcdRuns(ctx context.Context) (bool, error) {
	if events, err := readPairsBy(etcdGroup+"/cgroup.events", " "); err == nil && events["populated"] == "1" {
		return true, nil
	}
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"systemctl", "show", "--property=ActiveState,Job", etcdUnit}})
	if err != nil {
		return false, fmt.Errorf("asking systemd for %s: %w", etcdUnit, err)
	}
	return unitRuns(string(out))
}

// unitRuns reads whether a unit runs, or is about to. systemd has started it only some
// time after it was told to, and a start that waits must not look like one that has ended.
func unitRuns(shown string) (bool, error) {
	properties := map[string]string{}
	for line := range strings.Lines(shown) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		properties[name] = value
	}
	switch state := properties["ActiveState"]; state {
	case "active", "activating", "reloading", "deactivating":
		return true, nil
	case "inactive", "failed":
		job := properties["Job"] // its number; without one systemd shows none, or 0
		return job != "" && job != "0", nil
	default:
		return false, fmt.Errorf("systemd says that %s is %q", etcdUnit, state)
	}
}
