package nic

import (
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/need"
)

// wire is two machines on one wire: this test's thread is on the one, and the
// other is a namespace of its own.
func wire(t *testing.T) (here, there func(script string)) {
	t.Helper()
	need.Root(t, "a network namespace")
	// Never unlocked: the thread ends with the test, and its namespace with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	here = func(script string) {
		t.Helper()
		if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	other := exec.Command("unshare", "--net", "--", "sh", "-c", "echo up; exec cat")
	hold, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close(); other.Wait() })
	if _, err := said.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	there = func(script string) {
		t.Helper()
		out, err := exec.Command("nsenter", "--net=/proc/"+strconv.Itoa(other.Process.Pid)+"/ns/net", "sh", "-ec", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	here("ip link set lo up; ip link add knic0 type veth peer name knic1 netns " + strconv.Itoa(other.Process.Pid))
	return here, there
}

// TestWire provokes every reason by what a person would do to a machine.
func TestWire(t *testing.T) {
	here, there := wire(t)
	want := NewWant([]string{"192.0.2.1", "2001:db8::1"}, []string{"192.0.2.0/24", "2001:db8::/64"}, "")
	look := func() string {
		t.Helper()
		cards, err := Cards()
		if err != nil {
			t.Fatal(err)
		}
		taken, err := Taken(t.Context(), want, cards)
		if err != nil {
			t.Fatal(err)
		}
		return Why(want, cards, taken)
	}
	for _, step := range []struct {
		name        string
		here, there string
		want        string // of the reason; empty: none
	}{
		{name: "switched off", want: "switched off"},
		{name: "the other end is down", here: "ip link set knic0 up", want: "no link on knic0"},
		{name: "nobody gives an address", there: "ip link set knic1 up", want: "no lease: knic0"},
		{name: "another network's address", here: "ip addr add 198.51.100.7/24 dev knic0", want: "198.51.100.7/24 of knic0"},
		{name: "another one's address", here: "ip addr add 192.0.2.9/24 dev knic0", want: "gives this machine 192.0.2.1, 2001:db8::1"},
		{name: "one family only", here: "ip addr add 192.0.2.1/24 dev knic0", want: "gives this machine 2001:db8::1"},
		{name: "both", here: "ip addr add 2001:db8::1/64 dev knic0"},
		{name: "a second machine with the address", there: "ip addr add 192.0.2.1/24 dev knic1", want: "duplicate address: the machine with the card"},
		{name: "it went away", there: "ip addr del 192.0.2.1/24 dev knic1"},
		{name: "a second machine with the other family's", here: "ip addr del 2001:db8::1/64 dev knic0", there: "ip addr add 2001:db8::1/64 dev knic1 nodad; sleep 0.2", want: "gives this machine 2001:db8::1"},
		{name: "and this one takes it", here: "ip addr add 2001:db8::1/64 dev knic0", want: "duplicate address: another machine has 2001:db8::1"},
		{name: "the cable is pulled", there: "ip link set knic1 down", want: "no link on knic0"},
	} {
		there(step.there) // not in a t.Run: that is another thread
		here(step.here)
		got := look()
		// Carriers and the kernel's own detection need a moment.
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end) && (!strings.Contains(got, step.want) || step.want == "" && got != ""); got = look() {
			time.Sleep(100 * time.Millisecond)
		}
		if !strings.Contains(got, step.want) || step.want == "" && got != "" {
			t.Fatalf("%s: got %q, want %q", step.name, got, step.want)
		}
		t.Logf("%s: %s", step.name, got)
	}
}
