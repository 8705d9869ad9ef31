package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/run"
)

// The status screen is what a console shows above the login prompt. It is given
// to agetty (agetty(8), ISSUE FILES), which runs on the first screen and on
// every serial console that the kernel has, and not written to the consoles by
// the agent itself, because then
//   - a person who logs in, or has begun to type a name, is not disturbed;
//   - the prompt and the screen cannot overwrite each other;
//   - a console that does not take what is written (flow control, nobody at the
//     other end) holds up one agetty, and not the agent;
//   - what the kernel and systemd wrote stays until there is something new.
//
// A console without agetty shows no screen. agetty only appends when it is told
// to show the screen anew; that the text begins with "go home, clear" makes it
// redraw in place, on serial consoles too.
const (
	screenFile = "/run/kimage/console.issue"
	redraw     = "\x1b[H\x1b[2J"
)

// issueLinks lead agetty to the screen. It looks into the second directory only
// where there is no /etc/issue, or, newer ones, in both: the screen that is
// drawn again over itself is one screen.
var issueLinks = [...]string{"/etc/issue.d/10-kimage.issue", "/run/issue.d/10-kimage.issue"}

// screenWidth is that of the narrowest console.
const screenWidth = 79

// screen is what a console shows.
type screen struct {
	name, cluster, roles string
	addresses            []string
	image                Manifest
	phase                Phase
}

// text is the screen in lines that fit. A backslash would be an instruction to agetty.
func (s screen) text() string {
	var b strings.Builder
	b.WriteString(redraw)
	line := func(what, value string) {
		const indent = 11
		for i, l := range report.Wrap(report.Plain(strings.ReplaceAll(value, `\`, "/"), 4096), screenWidth-indent) {
			if i > 0 {
				what = ""
			}
			fmt.Fprintf(&b, "%-*s%s\n", indent, what, l)
		}
	}
	line("kimage", fmt.Sprintf("%s of %s (%s)", s.name, s.cluster, s.roles))
	addresses := strings.Join(s.addresses, ", ")
	if addresses == "" {
		addresses = "none"
	}
	line("addresses", addresses)
	line("image", fmt.Sprintf("%s: %s, Kubernetes %s, %s, %s", s.image.ImageID, s.image.OS, s.image.Kubernetes, s.image.Runtime, s.image.Network))
	if s.phase.Phase != "" {
		line("phase", fmt.Sprintf("%s since %s", s.phase.Phase, s.phase.Since.UTC().Format("2006-01-02 15:04:05 MST")))
	}
	if s.phase.Why != "" {
		line("why", s.phase.Why)
	}
	line("more", "kimage-agent status; journalctl -u kimage-agent")
	b.WriteString("\n")
	return b.String()
}

// screens shows what it is told on every console.
type screens struct {
	root   string // where files begin; empty: /
	reload func(context.Context) error
	shown  string
}

// show does nothing if the text is what is shown already.
func (s *screens) show(ctx context.Context, text string) error {
	if text == s.shown {
		return nil
	}
	file := filepath.Join("/", s.root, screenFile)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(file, []byte(text), 0o644); err != nil {
		return err
	}
	for _, link := range issueLinks {
		link = filepath.Join("/", s.root, link)
		if to, err := os.Readlink(link); err == nil && to == screenFile {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(screenFile, link); err != nil {
			return err
		}
	}
	s.shown = text
	return s.reload(ctx)
}

// reloadConsoles has every agetty that waits for a name show the file anew.
func reloadConsoles(ctx context.Context) error {
	err := run.Run(ctx, run.Cmd{Argv: []string{"agetty", "--reload"}})
	if errors.Is(err, exec.ErrNotFound) {
		return nil // no console has a prompt
	}
	return err
}

// screens shows each change of the phase or the addresses until ctx ends.
func (a *Agent) screens(ctx context.Context) {
	changed, s := a.phase.listen(), screens{reload: reloadConsoles}
	for {
		now := screen{name: a.name, cluster: a.conf.Cluster.Name, roles: strings.Join(a.conf.Node.Roles, ", "), addresses: a.seen.currentAddresses(), image: a.image, phase: a.phase.current()}
		if err := s.show(ctx, now.text()); err != nil && ctx.Err() == nil {
			a.logf("showing the status on the consoles: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-a.shows:
		}
		// What comes in a row is shown once.
		if sleep(ctx, time.Second) != nil {
			return
		}
	}
}

// show has the screen drawn anew, if it differs.
func (a *Agent) show() {
	select {
	case a.shows <- struct{}{}:
	default:
	}
}
