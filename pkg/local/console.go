package local

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Screen is what the agent last showed on a machine's console.
type Screen struct {
	Phase string // empty: none yet, it boots
	Since string
	Why   string
}

// redraw begins every screen of the agent's.
const redraw = "\x1b[H\x1b[2J"

var (
	phaseLine = regexp.MustCompile(`(?m)^phase +([a-z]+) since (.*)$`)
	whyLines  = regexp.MustCompile(`(?m)^why +(.*)$((?:\n {11}.*$)*)`)
)

// tailBytes is how much of a console is looked at for its last screen.
const tailBytes = 64 << 10

// Screen reads the last one that is whole from the machine's console.
func (s Set) Screen(name string) (screen Screen) {
	text := s.consoleTail(name, tailBytes)
	for _, part := range strings.Split(text, redraw)[1:] {
		if m := phaseLine.FindStringSubmatch(part); m != nil {
			screen = Screen{Phase: m[1], Since: m[2]}
			if w := whyLines.FindStringSubmatch(part); w != nil {
				screen.Why = strings.Join(strings.Fields(w[1]+" "+w[2]), " ")
			}
		}
	}
	return screen
}

// CopyConsole copies all that a machine wrote to its serial port since it was made.
func (s Set) CopyConsole(w io.Writer, name string) error {
	for _, file := range []string{s.consoleBefore(name), s.ConsoleFile(name)} {
		if err := copyFile(w, file); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file, if there is one.
func copyFile(w io.Writer, file string) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// setConsoleAside has a machine begin a new console: what it showed before is not what it
// shows now.
func (s Set) setConsoleAside(name string) error {
	before, err := os.OpenFile(s.consoleBefore(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(copyFile(before, s.ConsoleFile(name)), before.Close())
	if err == nil {
		err = os.RemoveAll(s.ConsoleFile(name))
	}
	return err
}

func (s Set) consoleBefore(name string) string { return s.ConsoleFile(name) + ".before" }

// ConsoleFile has what a machine wrote to its serial port since it was last switched on.
func (s Set) ConsoleFile(name string) string { return filepath.Join(s.machineDir(name), "console.log") }

// QEMULog has what qemu itself said of a machine.
func (s Set) QEMULog(name string) string { return filepath.Join(s.machineDir(name), "qemu.log") }

// ConsoleTail is the last lines of a console, without what only a terminal obeys.
func (s Set) ConsoleTail(name string, lines int) string {
	all := strings.Split(strings.TrimSpace(escape.ReplaceAllString(s.consoleTail(name, tailBytes), "")), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

var escape = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]|[^\\n\\t\\x20-\\x7e\\x{a0}-\\x{10ffff}]")

func (s Set) consoleTail(name string, bytes int64) string {
	f, err := os.Open(s.ConsoleFile(name))
	if err != nil {
		return ""
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return ""
	}
	at := max(0, fi.Size()-bytes)
	data := make([]byte, fi.Size()-at)
	n, _ := f.ReadAt(data, at)
	return strings.ReplaceAll(string(data[:n]), "\r", "")
}
