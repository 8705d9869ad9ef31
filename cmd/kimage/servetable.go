package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/kimage-project/kimage/pkg/metal"
)

// board is what kimage serve shows: lines of what happens, and below them on a terminal a
// table of all machines that is redrawn in place. Nobody who tells something waits for the
// terminal: machines would wait as well.
type board struct {
	out           io.Writer
	width, height int // of the terminal; 0: it is none
	said          chan string
	lines         atomic.Pointer[func() []metal.Line] // nil: there is no table yet
	ended         chan struct{}
	drawn         int
}

func newBoard(out io.Writer) *board {
	b := &board{out: out, said: make(chan string, 1000), ended: make(chan struct{})}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.width, b.height = 80, 24
	}
	go b.show()
	return b
}

// logf tells what happened.
func (b *board) logf(format string, args ...any) {
	select {
	case b.said <- time.Now().Format(time.TimeOnly) + "  " + fmt.Sprintf(format, args...):
	default: // a terminal that stands still
	}
}

// end shows what is left.
func (b *board) end() {
	close(b.said)
	<-b.ended
}

func (b *board) show() {
	defer close(b.ended)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case line, ok := <-b.said:
			if !ok {
				return
			}
			b.draw(line + "\n")
		case <-tick.C:
			b.draw("")
		}
	}
}

// draw writes text in place of the table, and the table anew.
func (b *board) draw(text string) {
	lines := b.lines.Load()
	if b.width == 0 || lines == nil {
		io.WriteString(b.out, text)
		return
	}
	if f, ok := b.out.(*os.File); ok {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width >= 20 {
			b.width, b.height = width, height
		}
	}
	var out strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA\r\x1b[J", b.drawn)
	}
	out.WriteString(text)
	table := strings.Split(strings.TrimSuffix(machineTable((*lines)(), time.Now()), "\n"), "\n")
	if most := max(b.height-2, 2); len(table) > most { // what has left the screen cannot be redrawn
		table = append(table[:most-1], fmt.Sprintf("... and %d more", len(table)-most+1))
	}
	for _, line := range table {
		line := []rune(line)
		fmt.Fprintf(&out, "%s\n", string(line[:min(len(line), b.width-1)]))
	}
	b.drawn = len(table)
	io.WriteString(b.out, out.String())
}

// machineTable is how far all machines are.
func machineTable(lines []metal.Line, now time.Time) string {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "MACHINE\tROLES\tMAC\tFOR\tPHASE")
	for _, l := range lines {
		since := "-"
		if !l.Since.IsZero() {
			since = now.Sub(l.Since).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Name, cmp.Or(strings.Join(l.Roles, ","), "-"), cmp.Or(l.MAC, "-"), since, l.Text())
	}
	w.Flush()
	return text.String()
}
