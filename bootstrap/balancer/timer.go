package balancer

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timer calls a function when its time has come, like that of time.AfterFunc. It
// is the kernel's (timerfd_create(2)): a balancer does little but arm timers and
// stop them, and Go wakes up when the time of one has come that was stopped, twice
// for one that was not, and its monitor each time.
type timer struct {
	file *os.File
	soft *time.Timer // where the kernel has none left
}

// newTimer makes a timer that is not armed. While it calls it does not fire again.
func newTimer(call func()) *timer {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		soft := time.AfterFunc(time.Hour, call)
		soft.Stop()
		return &timer{soft: soft}
	}
	t := &timer{file: os.NewFile(uintptr(fd), "timer")}
	go func() {
		var times [8]byte // how often it fired since the last read
		for {
			if _, err := t.file.Read(times[:]); err != nil {
				return // closed
			}
			call()
		}
	}()
	return t
}

// newPause makes a timer whose times are received; those that nobody received in
// between count once.
func newPause() (*timer, <-chan struct{}) {
	due := make(chan struct{}, 1)
	return newTimer(func() {
		select {
		case due <- struct{}{}:
		default:
		}
	}), due
}

// reset arms the timer anew.
func (t *timer) reset(d time.Duration) {
	if t.soft != nil {
		t.soft.Reset(d)
		return
	}
	t.set(max(d, 1))
}

// stop disarms the timer; it may be calling just now.
func (t *timer) stop() {
	if t.soft != nil {
		t.soft.Stop()
		return
	}
	t.set(0)
}

func (t *timer) set(d time.Duration) {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return // closed
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	raw.Control(func(fd uintptr) { err = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
	if err != nil {
		panic("BUG: timerfd_settime: " + err.Error())
	}
}

func (t *timer) close() {
	t.stop()
	if t.file != nil {
		t.file.Close()
	}
}
