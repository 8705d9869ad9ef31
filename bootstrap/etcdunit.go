package bootstrap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/etcd"
	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
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
	if err := atomicfile.Write(etcdArgs, fmt.Appendf(nil, "ETCD_DATA=%s\nETCD_ARGS=%s\n", l.Data, strings.Join(l.Argv, " ")), 0o644); err != nil {
		return err
	}
	return run.Run(ctx, run.Cmd{Argv: []string{"systemctl", "--no-block", "start", etcdUnit}})
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
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"systemctl", "show", "--property=ActiveState", "--value", etcdUnit}})
	if err != nil {
		return false, fmt.Errorf("asking systemd for %s: %w", etcdUnit, err)
	}
	switch state := strings.TrimSpace(string(out)); state {
	case "active", "activating", "reloading", "deactivating":
		return true, nil
	case "inactive", "failed":
		return false, nil
	default:
		return false, fmt.Errorf("systemd says that %s is %q", etcdUnit, state)
	}
}

// initLock is a lock in etcd that keeps masters from initialising at once. A
// child holds it, and lets go when this process ends in whatever way.
func initLock(ctx context.Context) (release func(), ok bool, err error) {
	pki := func(name string) string { return filepath.Join(nodeconf.PKIDir, name) }
	// Not with ctx: the lock outlives this call.
	cmd := exec.Command("etcdctl", "--endpoints=https://"+kube.EtcdEndpoint, "--cacert="+pki(nodeconf.EtcdCA+".crt"), "--cert="+pki(nodeconf.APIServerEtcd+".crt"),
		"--key="+pki(nodeconf.APIServerEtcd+".key"), "lock", "--ttl=60", "/kimage/lock/init", "--", "sh", "-c", "echo held; read -r end || true")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, false, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, false, err
	}
	if err := cmd.Start(); err != nil {
		return nil, false, err
	}
	held := make(chan bool, 1)
	go func() {
		line, err := bufio.NewReader(stdout).ReadString('\n')
		held <- err == nil && strings.TrimSpace(line) == "held"
		io.Copy(io.Discard, stdout)
	}()
	release = func() {
		stdin.Close()
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill() // the lease ends by itself
			<-ended
		}
	}
	select {
	case ok = <-held:
	case <-time.After(5 * time.Second):
	case <-ctx.Done():
		err = ctx.Err()
	}
	if !ok {
		cmd.Process.Kill()
		release()
		if err == nil && cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
			err = errors.New("etcd does not answer")
		}
		return nil, false, err
	}
	return release, true, nil
}
