package kube

import (
	"errors"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// noise are lines of kubeadm that say nothing about what went wrong.
var noise = []string{"To see the stack trace of this error", "[preflight] If you know what you are doing", "Some fatal errors occurred", "W1", "W0", "I1", "I0"}

// maxReasonLines bounds what of a program's last words is shown.
const maxReasonLines = 6

// reason is what a failed program said, as short as it can be shown.
func reason(err error) error {
	var e *run.Error
	if !errors.As(err, &e) {
		return err
	}
	var lines []string
	for line := range strings.Lines(e.Stderr) {
		line = strings.TrimSpace(line)
		line = strings.TrimPrefix(line, "error: ")
		line = strings.TrimPrefix(line, "error execution phase ")
		if line == "" || isNoise(line) {
			continue
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return err
	}
	if n := len(lines) - maxReasonLines; n > 0 {
		lines = lines[n:]
	}
	return &kubeadmError{strings.Join(lines, "; "), e}
}

func isNoise(line string) bool {
	for _, n := range noise {
		if strings.Contains(line, n) && (len(n) > 2 || strings.HasPrefix(line, n)) {
			return true
		}
	}
	return false
}

// kubeadmError shows kubeadm's own words.
type kubeadmError struct {
	words string
	err   *run.Error
}

func (e *kubeadmError) Error() string { return "kubeadm: " + e.words }
func (e *kubeadmError) Unwrap() error { return e.err }
