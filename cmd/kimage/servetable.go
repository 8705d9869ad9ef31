package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/kimage-project/kimage/pkg/metal"
)

// board is what kimage serve shows: lines of what happens, and below them on a terminal a
// table of all machines that is redrawn in place.
type board struct {
	mu    sync.Mutex
	out   io.Writer
	width int // of the terminal; 0: it is none
	lines func() []metal.Line
	drawn int
}

func newBoard(out io.Writer) *board {
	b := &board{out: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.width = 80
	}
	return b
}

// logf tells what happened.
func (b *board) logf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.out, "%s%s  %s\n", b.erased(), time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
	b.draw()
}

// erased is what takes the table away.
func (b *board) erased() string {
	if b.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r\x1b[J", b.drawn)
}

// show redraws the table every second until ctx ends.
func (b *board) show(ctx context.Context, lines func() []metal.Line) error {
	b.mu.Lock()
	b.lines = lines
	b.mu.Unlock()
	for {
		b.mu.Lock()
		io.WriteString(b.out, b.erased())
		b.draw()
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// draw writes the table; b.mu is held, and the one before is erased.
func (b *board) draw() {
	b.drawn = 0
	if b.width == 0 || b.lines == nil {
		return
	}
	if f, ok := b.out.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width >= 20 {
			b.width = width
		}
	}
	table := machineTable(b.lines(), time.Now())
	for line := range strings.Lines(table) {
		text := []rune(strings.TrimRight(line, "\n"))
		fmt.Fprintf(b.out, "%s\n", string(text[:min(len(text), b.width-1)]))
		b.drawn++
	}
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
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Name, orDash(strings.Join(l.Roles, ",")), orDash(l.MAC), since, l.Text())
	}
	w.Flush()
	return text.String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
