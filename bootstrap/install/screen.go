package install

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/report"
)

// screen is every console that the kernel writes to. A console that takes nothing (flow
// control, nobody at the other end) loses what it does not take, and holds up nobody.
type screen struct {
	mu       sync.Mutex
	consoles []int
	open     string // the line that is written over again and again
}

func openScreen() *screen {
	s := &screen{}
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	for _, name := range strings.Fields(string(active)) {
		if fd, err := unix.Open("/dev/"+name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err == nil {
			s.consoles = append(s.consoles, fd)
		}
	}
	if s.consoles == nil {
		s.consoles = []int{1}
	}
	return s
}

func (s *screen) write(text string) {
	for _, fd := range s.consoles {
		for b := []byte(text); len(b) > 0; {
			n, err := unix.Write(fd, b)
			if err != nil || n <= 0 {
				break
			}
			b = b[n:]
		}
	}
}

// say writes a line, or several.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(s.end() + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\r\n") + "\r\n")
}

// line writes a line over the one that it wrote before.
func (s *screen) line(text string) {
	const width = 79
	if r := []rune(text); len(r) > width {
		text = string(r[:width])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if text == s.open {
		return
	}
	s.open = text
	s.write("\r" + text + "\x1b[K")
}

func (s *screen) end() string {
	if s.open == "" {
		return ""
	}
	s.open = ""
	return "\r\n"
}

// big is what a person has to see.
func (s *screen) big(text string) {
	const width = 71
	bar := strings.Repeat("#", width+8)
	var b strings.Builder
	b.WriteString("\r\n" + bar + "\r\n##" + strings.Repeat(" ", width+4) + "##\r\n")
	for _, l := range append([]string{"THIS MACHINE IS NOT INSTALLED", ""}, report.Wrap(report.Plain(text, 2000), width)...) {
		fmt.Fprintf(&b, "##  %-*s  ##\r\n", width, l)
	}
	b.WriteString("##" + strings.Repeat(" ", width+4) + "##\r\n" + bar + "\r\n")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(s.end() + b.String())
}
