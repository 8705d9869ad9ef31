package bootstrap

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kimage-project/kimage/bootstrap/kube"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// initLock is a lock in etcd that keeps masters from initialising or joining at
// once.
type initLock struct {
	endpoint string        // HOST:PORT
	pki      string        // directory
	patience time.Duration // how long a holder is waited for
}

// lockWait is long: each new try costs a program's start.
const (
	lockWait   = 2 * time.Minute
	lockMoment = 10 * time.Second
)

// askLock takes the masters' lock, and tells whether it has it or waits for
// another master.
func (a *Agent) askLock(ctx context.Context, to kube.Verb) (release func(), ok bool, err error) {
	waits, phase, why := "no API server answers: asking the other masters whether one of them is initialising (a lock in etcd)", PhaseInit, "no API server answers"
	switch to {
	case kube.Keep: // of a machine that goes on meanwhile
		return initLock{kube.EtcdEndpoint, nodeconf.PKIDir, lockMoment}.take(ctx)
	case kube.Join:
		waits, phase, why = "masters come up one after the other: another one is not yet Ready", PhaseJoin, "an API server answers"
	}
	a.phase.set(partKube, PhaseWaiting, waits)
	release, ok, err = initLock{kube.EtcdEndpoint, nodeconf.PKIDir, lockWait}.take(ctx)
	if ok {
		a.phase.set(partKube, phase, why)
	}
	return release, ok, err
}

// take waits for the lock; ok is false while another holds it. etcdctl holds it
// until it is told to end, or this process does in whatever way: then the
// kernel tells it.
func (l initLock) take(ctx context.Context) (release func(), ok bool, err error) {
	pki := func(name string) string { return filepath.Join(l.pki, name) }
	// Not with ctx: the lock outlives this call. Without a command of its own,
	// whose input would be /dev/null, etcdctl prints the lock's key and waits.
	cmd := exec.Command("etcdctl", "--endpoints=https://"+l.endpoint, "--cacert="+pki(nodeconf.EtcdCA+".crt"), "--cert="+pki(nodeconf.APIServerEtcd+".crt"),
		"--key="+pki(nodeconf.APIServerEtcd+".key"), "lock", "--ttl=60", "/kimage/lock/init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, false, err
	}
	if err := cmd.Start(); err != nil {
		return nil, false, err
	}
	held, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		r := bufio.NewReader(stdout)
		if _, err := r.ReadString('\n'); err == nil {
			close(held)
		}
		io.Copy(io.Discard, r)
		cmd.Wait()
	}()
	release = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill() // the lease ends by itself
			<-ended
		}
	}
	select {
	case <-held:
		return release, true, nil
	case <-ended:
		return nil, false, errors.New("etcd does not answer")
	case <-time.After(l.patience):
	case <-ctx.Done():
		err = ctx.Err()
	}
	release()
	return nil, false, err
}
