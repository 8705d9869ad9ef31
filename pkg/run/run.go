// Package run starts external programs for the rest of kimage.
//
// Every child gets a scrubbed environment (fixed locale, UTC, no
// SOURCE_DATE_EPOCH or MKE2FS_CONFIG inherited from the caller), so that what a
// program writes depends on its arguments alone. It does not search for
// programs (see pkg/doctor) and does not interpret their output.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	tailBytes    = 2048 // of a failed program's stderr are kept
	messageLines = 4    // of it are quoted
	commandBytes = 120  // of a command line are quoted
)

// Cmd is one run of a program.
type Cmd struct {
	Argv   []string  // program and arguments; the program is looked up on PATH and in sbin
	Dir    string    // working directory; empty: the caller's
	Env    []string  // NAME=value, added to the scrubbed environment, later ones win
	Stdin  io.Reader // nil: /dev/null
	Stdout io.Writer // nil: returned by Output, discarded by Run
	Stderr io.Writer // also sent here; nil: only kept for the error
}

// Error is a program that could not be started or exited with a status other than 0.
type Error struct {
	Argv   []string
	Status int    // exit status; -1: not started or ended by a signal
	Stderr string // the last bytes of standard error
	Err    error
}

func (e *Error) Error() string {
	command := strings.Join(e.Argv, " ")
	if len(command) > commandBytes {
		command = command[:commandBytes] + "…"
	}
	s := fmt.Sprintf("running %s: %v", command, e.Err)
	if lines := strings.Split(strings.TrimSpace(e.Stderr), "\n"); lines[0] != "" {
		s += ": " + strings.Join(lines[max(0, len(lines)-messageLines):], "\n")
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Run runs c and waits. When ctx ends the whole process group is killed.
func Run(ctx context.Context, c Cmd) error {
	_, _, err := run(ctx, c)
	return err
}

// Output runs c and returns its standard output.
func Output(ctx context.Context, c Cmd) ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	_, _, err := run(ctx, c)
	return out.Bytes(), err
}

// Both runs c and returns its standard output and standard error, for programs
// whose exit status does not tell whether they succeeded (debugfs).
func Both(ctx context.Context, c Cmd) (stdout, stderr []byte, err error) {
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	_, _, err = run(ctx, c)
	return out.Bytes(), errOut.Bytes(), err
}

func run(ctx context.Context, c Cmd) (*exec.Cmd, string, error) {
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	path, err := Find(c.Argv[0])
	if err != nil {
		return nil, "", &Error{Argv: c.Argv, Status: -1, Err: err}
	}
	cmd := exec.CommandContext(ctx, path, c.Argv[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append(Env(), c.Env...)
	cmd.Stdin = c.Stdin
	cmd.Stdout = c.Stdout
	tail := &tailWriter{}
	cmd.Stderr = tail
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(tail, c.Stderr)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	if err != nil {
		if ctx.Err() != nil {
			return cmd, tail.String(), ctx.Err()
		}
		status := -1
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		}
		return cmd, tail.String(), &Error{Argv: c.Argv, Status: status, Stderr: tail.String(), Err: err}
	}
	return cmd, tail.String(), nil
}

// Env is the scrubbed environment that every child starts with.
func Env() []string {
	env := []string{"PATH=" + searchPath(), "LC_ALL=C", "TZ=UTC"}
	for _, name := range []string{"HOME", "TMPDIR"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// searchPath is PATH with the directories that distributions hide from
// ordinary users, where e2fsprogs lives.
func searchPath() string {
	path := os.Getenv("PATH")
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if !strings.Contains(":"+path+":", ":"+dir+":") {
			path += ":" + dir
		}
	}
	return strings.TrimPrefix(path, ":")
}

// Find returns the path of program name, looked up on PATH and in the sbin directories.
func Find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(searchPath(), ":") {
		if dir == "" {
			continue
		}
		p := dir + "/" + name
		if fi, err := os.Stat(p); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// tailWriter keeps the last tailBytes bytes written to it.
type tailWriter struct{ buf []byte }

func (t *tailWriter) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailBytes; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tailWriter) String() string { return string(t.buf) }
