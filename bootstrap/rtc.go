package bootstrap

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rtcFile has the time of the machine's clock that runs without the kernel, in seconds
// since 1970 (https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-rtc).
const rtcFile = "/sys/class/rtc/rtc0/since_epoch"

// rtcEvery is how often the two clocks are compared, and rtcBehind how far the kernel's
// may be behind; the RTC tells whole seconds.
const (
	rtcEvery  = 3 * time.Second
	rtcBehind = 2 * time.Second
)

// followRTC sets the clock of an emulated machine when it has fallen behind the RTC, at
// once and until ctx ends: where the computer that emulates it has too much to do, its
// time can pass more slowly than that of the other machines, whose certificates and tokens
// would not be valid yet. A clock that is ahead was set, and stays. No other machine's RTC
// is trusted: it may be wrong, or in local time.
func (a *Agent) followRTC(ctx context.Context) {
	out, err := exec.CommandContext(ctx, "systemd-detect-virt", "--vm").Output()
	if err != nil || strings.TrimSpace(string(out)) != "qemu" { // with KVM it is kvm
		return
	}
	behind, err := setToRTC()
	switch {
	case err != nil:
		a.logf("following the RTC: %v", err)
		return
	case behind > 0:
		a.logf("the clock of this emulated machine was %s behind its RTC: set, now and whenever it is again", behind)
	}
	go func() {
		told := ""
		for sleep(ctx, rtcEvery) == nil {
			if _, err := setToRTC(); err == nil {
				told = ""
			} else if err.Error() != told { // it may be so for a moment
				told = err.Error()
				a.logf("following the RTC: %v", err)
			}
		}
	}()
}

// setToRTC sets the clock, if it is behind, and returns by how much it was, in whole
// seconds; 0: it was not. The error says that there is no RTC, that it tells no time, or
// that the clock cannot be set.
func setToRTC() (time.Duration, error) {
	text, err := os.ReadFile(rtcFile)
	if err != nil {
		return 0, err
	}
	to, err := aheadOf(string(text), time.Now())
	if err != nil || to.IsZero() {
		return 0, err
	}
	behind := time.Until(to).Round(time.Second)
	ts := unix.NsecToTimespec(to.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return 0, fmt.Errorf("setting the clock: %w", err)
	}
	return behind, nil
}

// aheadOf is the RTC's time if now is too far behind it; zero: it is not.
func aheadOf(rtc string, now time.Time) (time.Time, error) {
	seconds, err := strconv.ParseInt(strings.TrimSpace(rtc), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", rtcFile, err)
	}
	to := time.Unix(seconds, 0)
	if to.Sub(now) <= rtcBehind {
		return time.Time{}, nil
	}
	return to, nil
}
