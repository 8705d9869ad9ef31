package local

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/kimage-project/kimage/pkg/qemu"
)

// grownMiB is what a machine's disk grows by until it is Ready, and some.
const grownMiB = 2048

// Fits says what this computer lacks for machines that are not on, with the numbers; nil:
// nothing. dir is their set's; what their disks take there is theirs already. imageMiB is
// what an image takes that is still to be baked into it.
func (s Spec) Fits(dir string, imageMiB int) error {
	available, err := memAvailableMiB()
	if err != nil {
		return err
	}
	// qemu itself and its caches take some as well.
	if need := s.MemoryMiB() + 100*len(s.Machines); available < need {
		return fmt.Errorf("%d machines need %d MiB of memory, and %d MiB are free: end what else runs, choose a smaller topology, or give machines less (machine.qemu.memoryMiB)", len(s.Machines), need, available)
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return err
	}
	need := imageMiB
	for _, m := range s.Machines {
		need += max(0, grownMiB-allocatedMiB(qemu.Open(qemu.Config{Dir: Set{dir}.machineDir(m.Name)}).Disk()))
	}
	if free := int(fs.Bavail * uint64(fs.Bsize) >> 20); free < need {
		return fmt.Errorf("%d machines need %d MiB of disk, and %s has %d MiB free: make room, or run kimage where there is more", len(s.Machines), need, dir, free)
	}
	return nil
}

// allocatedMiB is what a file takes of the disk, 0 if there is none.
func allocatedMiB(file string) int {
	var st syscall.Stat_t
	if syscall.Stat(file, &st) != nil {
		return 0
	}
	return int(st.Blocks >> 11) // of 512 bytes
}

func memAvailableMiB() (int, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if kib, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(kib, "kB")))
			return n >> 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo does not say how much memory is available")
}
