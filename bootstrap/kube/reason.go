package kube

import (
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// noise are lines of kubeadm that say nothing about what went wrong.
var noise = [...]string{"To see the stack trace of this error", "[preflight] If you know what you are doing", "[preflight] Some fatal errors occurred", "[WARNING "}

// maxReasonLines bounds what of a program's last words is shown.
const maxReasonLines = 6

// reason is what a failed program said, as short as it can be shown: from the
// line on in which kubeadm says what failed, without warnings and advice.
func reason(err error) error {
	var e *run.Error
	if !errors.As(err, &e) {
		return err
	}
	var lines []string
	for line := range strings.Lines(e.Stderr) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "error: "); ok {
			line, lines = rest, nil
		}
		line = strings.TrimPrefix(line, "error execution phase ")
		line = strings.TrimSuffix(line, " [preflight] Some fatal errors occurred:")
		if line != "" && !isNoise(line) {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return err
	}
	if n := len(lines) - maxReasonLines; n > 0 {
		lines = lines[n:]
	}
	return &programError{strings.Join(lines, "; "), e}
}

// klogLine is one of the log that Kubernetes' programs mix with what they say.
var klogLine = regexp.MustCompile(`^[IW]\d{4} `)

func isNoise(line string) bool {
	return klogLine.MatchString(line) || slices.ContainsFunc(noise[:], func(n string) bool { return strings.Contains(line, n) })
}

// programError shows a program's own words.
type programError struct {
	words string
	err   *run.Error
}

func (e *programError) Error() string { return filepath.Base(e.err.Argv[0]) + ": " + e.words }
func (e *programError) Unwrap() error { return e.err }
