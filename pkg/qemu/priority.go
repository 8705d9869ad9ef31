package qemu

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// SetNice gives a running machine another part of the host's processors, as Renice does.
func (m *Machine) SetNice(nice int) error { return Renice(m.cmd.Process.Pid, nice) }

// Renice gives all threads of a qemu another part of the host's processors: nice is
// as in setpriority(2), from -20 to 19. Less than before needs no right, more
// needs CAP_SYS_NICE. The error names the thread that could not be changed, or says that
// there is no such process.
func Renice(pid, nice int) error {
	// It belongs to threads; those that are made later inherit it.
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(all) == 0 {
		return errors.Join(errors.New("qemu is gone"), err)
	}
	for _, task := range all {
		id, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return err
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("priority of qemu's thread %d: %w", id, err)
		}
	}
	return nil
}
