package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// PhaseReady is the agent's word for a machine that is well.
const PhaseReady = "ready"

const (
	lookEvery = time.Second
	// askAfter is how long a machine shows nothing new before it is asked: systemd
	// gives up the console of a machine that finds it too slowly.
	askAfter = time.Minute
)

// Wait is a wait for machines to become Ready.
type Wait struct {
	Set Set
	Out io.Writer
	// Ask asks a machine itself how far it is.
	Ask func(ctx context.Context, m MachineStatus) (Screen, error)

	started time.Time
	shown   map[string]Screen    // on the consoles
	seen    map[string]Screen    // the newest of that and of what machines answered
	told    map[string]bool      // lines
	news    map[string]time.Time // when a machine last showed something new, or was asked
	drawn   int
}

// ErrNotReady is the error of a wait that ended otherwise.
var ErrNotReady = errors.New("not Ready")

// Ready waits until all machines are, and tells how far they are: on a terminal a
// line for each, redrawn in place; else one for every change. It is an error when a
// machine goes off.
func (w *Wait) Ready(ctx context.Context) error {
	w.started, w.told, w.news = time.Now(), map[string]bool{}, map[string]time.Time{}
	w.shown, w.seen = map[string]Screen{}, map[string]Screen{}
	for waits := "nothing is known of the machines"; ; {
		st, err := w.Set.Status(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			if waits, err = w.round(ctx, st); err != nil || waits == "" {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s: %w", ErrNotReady, waits, ctx.Err())
		case <-time.After(lookEvery):
		}
	}
}

// round looks at all machines, and says which one is not Ready.
func (w *Wait) round(ctx context.Context, st Status) (waits string, err error) {
	for _, m := range st.Machines {
		if !m.On {
			return "", fmt.Errorf("%w: %s went off", ErrNotReady, m.Name)
		}
		if s := w.look(ctx, m); s.Phase != PhaseReady {
			waits = strings.TrimSpace(m.Name + " " + s.Phase + " " + s.Why)
		}
	}
	w.draw(st)
	return waits, nil
}

// look takes in what a machine shows, or says when it is asked.
func (w *Wait) look(ctx context.Context, m MachineStatus) Screen {
	before := w.seen[m.Name]
	now := before
	if s := w.Set.Screen(m.Name); s != w.shown[m.Name] {
		now, w.shown[m.Name] = s, s
	}
	last, known := w.news[m.Name]
	if !known {
		w.news[m.Name] = time.Now()
	}
	if now == before && known && before.Phase != PhaseReady && time.Since(last) > askAfter && w.Ask != nil {
		w.news[m.Name] = time.Now()
		ctx, cancel := context.WithTimeout(ctx, askAfter/2)
		defer cancel()
		if s, err := w.Ask(ctx, m); err == nil {
			now = s
		}
	}
	if now == before || now.Phase == "" {
		return before
	}
	w.news[m.Name], w.seen[m.Name] = time.Now(), now
	if text := line(m.Name, now); !w.terminal() && !w.told[text] { // what comes and goes is told once
		w.told[text] = true
		fmt.Fprintf(w.Out, "%6s  %s\n", time.Since(w.started).Round(time.Second), text)
	}
	return now
}

func line(name string, s Screen) string {
	switch {
	case s.Phase == "":
		return name + "  boots"
	case s.Why == "" || s.Phase == PhaseReady:
		return name + "  " + s.Phase
	}
	return name + "  " + s.Phase + ": " + s.Why
}

func (w *Wait) terminal() bool {
	f, ok := w.Out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// draw redraws the lines on a terminal.
func (w *Wait) draw(st Status) {
	if !w.terminal() {
		return
	}
	width, _, err := term.GetSize(int(w.Out.(*os.File).Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	var b strings.Builder
	if w.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", w.drawn)
	}
	for _, m := range st.Machines {
		text := []rune(fmt.Sprintf("%6s  %s", time.Since(w.started).Round(time.Second), line(m.Name, w.seen[m.Name])))
		fmt.Fprintf(&b, "\r\x1b[2K%s\n", string(text[:min(len(text), width-1)]))
	}
	w.drawn = len(st.Machines)
	io.WriteString(w.Out, b.String())
}
