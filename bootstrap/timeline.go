package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/timeline"
	"github.com/kimage-project/kimage/pkg/run"
)

// Timeline is an SVG of how this machine came to be Ready since it booted.
func Timeline(ctx context.Context) ([]byte, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the journal of other units is for root alone: sudo kimage-agent timeline")
	}
	f, err := timelineFacts(ctx)
	if err != nil {
		return nil, err
	}
	return timeline.SVG(f)
}

func timelineFacts(ctx context.Context) (f timeline.Facts, err error) {
	if f.Node, err = ownName(); err != nil {
		return f, err
	}
	if m, err := readManifest(); err == nil {
		f.Image = fmt.Sprintf("Image %s: %s, Kubernetes %s, %s, %s", m.ImageID, m.OS, m.Kubernetes, m.Runtime, m.Network)
	}
	if f.Manager, err = run.Output(ctx, run.Cmd{Argv: []string{"systemctl", "show"}}); err != nil {
		return f, err
	}
	if f.Units, err = run.Output(ctx, run.Cmd{Argv: []string{"systemctl", "show", "--all", "--property=" + timeline.UnitProperties, "*"}}); err != nil {
		return f, err
	}
	if f.Agent, err = journal(ctx, "_SYSTEMD_UNIT=kimage-agent.service"); err != nil {
		return f, err
	}
	others := []string{"_SYSTEMD_UNIT=etcd.service", "+", "_SYSTEMD_UNIT=containerd.service", "+", "_PID=1", "UNIT=etcd.service", "UNIT=containerd.service", "UNIT=kubelet.service"}
	ready, err := timeline.ReadyAt(f.Agent)
	if err != nil {
		return f, err
	}
	if !ready.IsZero() { // a machine may have been up for months
		others = append(others, fmt.Sprintf("--until=@%d", ready.Add(time.Minute).Unix()))
	}
	if f.Others, err = journal(ctx, others...); err != nil {
		return f, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return f, err
	}
	f.Now = time.Duration(now.Nano())
	return f, nil
}

// journal is what units have written in this boot.
func journal(ctx context.Context, args ...string) ([]byte, error) {
	return run.Output(ctx, run.Cmd{Argv: append([]string{"journalctl", "--boot", "--quiet", "--no-pager", "--output=json", "--output-fields=" + timeline.JournalFields}, args...)})
}

// ownName is empty where first boot told this machine nothing.
func ownName() (string, error) {
	data, err := os.ReadFile(nodeconf.File)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	conf, err := nodeconf.Decode(data)
	if err != nil {
		return "", err
	}
	name, err := lastName(conf)
	return name + " of " + conf.Cluster.Name, err
}
