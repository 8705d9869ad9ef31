// Package install is the machine's side of an installation over the network: PID 1 of an
// initramfs (see pkg/initrd), on a machine that booted from the network. It brings the
// machine's drivers and its one network card up, tells the server what the machine is, and
// does what the server says (see pkg/install): writes an image and the node's config, or
// boots the disk, or waits.
//
// It asks nobody but that server, starts no program but modprobe, and never ends: after
// each error it says what is wrong, on every console and to the server, and begins anew.
package install

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/install"
)

const (
	againAfter  = 5 * time.Second // an error, or "wait"
	stopAfter   = time.Minute     // "stop": a person has to come first
	reportEvery = 2 * time.Second
	rebootAfter = 3 * time.Second // the last words can be read
)

// IsInit says whether this process is to install: the kernel gives its first process the
// command line of the kernel, not ours. That process starts another, see Run.
func IsInit() bool {
	return len(os.Args) > 0 && os.Args[0] == initFile && (os.Getpid() == 1 || os.Getppid() == 1)
}

const initFile = "/init"

// Run installs, and does not return. The kernel's first process does nothing but start
// the one that works, again and again: without its first process a kernel stops, and
// whatever ends the other (no memory, a bug) is one more error.
func Run() {
	if os.Getpid() != 1 {
		work()
	}
	for {
		cmd := exec.Command(initFile)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr // there is no /dev/null yet
		err := cmd.Run()
		fmt.Printf("kimage: the installation ended (%v); it begins again in %s\n", err, againAfter)
		time.Sleep(againAfter)
	}
}

func work() {
	i := &installer{modules: &modules{sys: "/sys"}}
	for {
		err := i.attempt(context.Background())
		i.failed(err)
		time.Sleep(againAfter)
	}
}

type installer struct {
	screen  *screen
	modules *modules
	set     settings
	client  *install.Client
	said    string // of the server, last
}

// attempt goes from nothing to the end; what an earlier one did is done already.
func (i *installer) attempt(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("BUG: %v\n%s", r, debug.Stack())
		}
	}()
	if err := mountKernel(); err != nil {
		return err
	}
	if i.screen == nil {
		i.screen = openScreen()
		i.screen.say("kimage: this machine asks its server for a system")
	}
	if err := mountLive(ctx); err != nil {
		return fmt.Errorf("the vendor's live system: %w", err)
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if i.set, err = parse(string(line)); err != nil {
		return err
	}
	if i.client, err = install.NewClient(i.set.server); err != nil {
		return err
	}
	if err := i.connect(ctx); err != nil {
		return err
	}
	i.settle(ctx)
	for {
		pause, err := i.ask(ctx)
		if err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// failed says what is wrong, also to the server, if it can be reached.
func (i *installer) failed(err error) {
	if i.screen == nil { // not even /dev
		fmt.Println("kimage:", err)
		return
	}
	i.screen.say("kimage: %v", err)
	i.screen.say("kimage: it begins again in %s", againAfter)
	if i.client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), againAfter)
	defer cancel()
	i.client.Progress(ctx, install.Progress{MAC: i.set.mac, Phase: install.Failed, Error: err.Error()})
}

// ask asks the server once and does what it says. It returns how long to wait before it is
// asked again.
func (i *installer) ask(ctx context.Context) (time.Duration, error) {
	hello, err := describe(i.set.mac)
	if err != nil {
		return 0, err
	}
	plan, err := i.client.Hello(ctx, hello)
	if err != nil {
		if text := fmt.Sprintf("kimage: asking the server what to do: %v", err); text != i.said {
			i.screen.say("%s", text)
			i.said = text
		}
		return againAfter, nil
	}
	switch plan.Action {
	case install.Write:
		if err := i.install(ctx, hello, plan); err != nil {
			return 0, err
		}
		i.reboot("installed")
	case install.Local:
		i.screen.say("kimage: %s is installed: it boots from its disk. %s", plan.Node, plan.Reason)
		i.reboot("boots from its disk")
	case install.Wait:
		i.screen.line("kimage: waiting: " + plan.Reason)
		return againAfter, nil
	case install.Stop:
		i.screen.big(plan.Reason)
		return stopAfter, nil
	default:
		return 0, fmt.Errorf("the server says %q, which this agent does not know: boot what that server has", plan.Action)
	}
	return againAfter, nil
}

func (i *installer) reboot(why string) {
	unix.Sync()
	i.screen.say("kimage: %s; restarting", why)
	time.Sleep(rebootAfter)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		i.screen.say("kimage: restarting: %v: switch it off and on", err)
	}
}

// mountKernel mounts what the kernel shows of itself.
func mountKernel() error {
	for _, m := range []struct{ point, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m.point, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.point, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mounting %s: %w", m.point, err)
		}
	}
	return nil
}
