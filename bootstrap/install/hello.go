package install

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/parttable"
)

// describe is what this machine is.
func describe(mac string) (install.Hello, error) {
	dmi := func(name string) string { return text("/sys/class/dmi/id/" + name) }
	h := install.Hello{MAC: mac, UUID: strings.ToLower(dmi("product_uuid")), Serial: dmi("product_serial"), MemoryMiB: memoryMiB()}
	for _, name := range disks("/sys") {
		d, err := describeDisk("/sys", "/dev", name)
		if err != nil {
			return h, err
		}
		h.Disks = append(h.Disks, d)
	}
	return h, nil
}

func text(file string) string {
	data, _ := os.ReadFile(file) // what is not there is not known
	return strings.TrimSpace(string(data))
}

func memoryMiB() int {
	for line := range strings.Lines(text("/proc/meminfo")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			kib, _ := strconv.Atoi(f[1])
			return kib >> 10
		}
	}
	return 0
}

// notDisks are optical drives, floppies, and the parts of an eMMC that hold firmware.
var notDisks = regexp.MustCompile(`^(sr|fd|nbd)\d|^mmcblk\d+(boot|rpmb)`)

// disks are the machine's own, of hardware: what the kernel makes by itself (loop, ram,
// zram, RAID, LVM) has no device, and what hangs on USB or can be taken out is a person's.
func disks(sys string) (names []string) {
	all, _ := filepath.Glob(filepath.Join(sys, "block/*/device"))
	for _, device := range all {
		dir := filepath.Dir(device)
		name := filepath.Base(dir)
		real, _ := filepath.EvalSymlinks(dir)
		if notDisks.MatchString(name) || strings.Contains(real, "/usb") || text(dir+"/removable") == "1" || text(dir+"/hidden") == "1" || text(dir+"/ro") == "1" {
			continue
		}
		if size := text(dir + "/size"); size != "" && size != "0" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// describeDisk reads a disk, and writes nothing to it.
func describeDisk(sys, dev, name string) (install.Disk, error) {
	dir := filepath.Join(sys, "block", name)
	d := install.Disk{Name: name, Model: text(dir + "/device/model"), Paths: links(sys, name)}
	d.Serial = serial(dir)
	sectors, err := strconv.ParseInt(text(dir+"/size"), 10, 64)
	if err != nil {
		return d, fmt.Errorf("the size of %s: %w", name, err)
	}
	d.SizeBytes = sectors * 512 // whatever its sectors are
	d.SectorBytes, _ = strconv.Atoi(text(dir + "/queue/logical_block_size"))
	// A disk that cannot be read is none to write to.
	unreadable := func(err error) (install.Disk, error) {
		d.Content, d.What = install.Other, "it cannot be read: "+err.Error()
		return d, nil
	}
	f, err := os.Open(filepath.Join(dev, name))
	if err != nil {
		return unreadable(err)
	}
	defer f.Close()
	// What this kernel read earlier is not what a disk on two machines holds now.
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	var table *parttable.Table
	if d.Content, d.What, table, err = content(f, d.SizeBytes); err != nil {
		return unreadable(err)
	}
	switch {
	case d.Content == install.Kimage && table == nil:
		d.Unfinished = true
	case d.Content == install.Kimage:
		d.Cluster, d.Node, d.What = owner(sys, dev, name, table)
	}
	return d, nil
}

// owner is whose state a data partition holds. What is read is what is on the disk, without
// its journal, which would have to be written back: on a disk whose power failed within
// seconds of its first boot nothing may be found.
func owner(sys, dev, disk string, table *parttable.Table) (cluster, node, what string) {
	p, _ := table.FindName(dataPartition)
	name := partition(sys, disk, p.Number)
	if name == "" {
		return "", "", fmt.Sprintf("the kernel does not know its partition %d", p.Number)
	}
	point, err := os.MkdirTemp("", "kimage")
	if err != nil {
		return "", "", err.Error()
	}
	defer os.Remove(point)
	if err := unix.Mount(filepath.Join(dev, name), point, "ext4", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "noload"); err != nil {
		return "", "", fmt.Sprintf("its state cannot be read: mounting %s: %v", name, err)
	}
	defer unix.Unmount(point, 0)
	o, err := bootstrap.ReadOwner(point)
	switch {
	case err != nil:
		return "", "", err.Error()
	case o == nil:
		return "", "", "no state"
	}
	return o.ClusterUID, o.Node, ""
}

// partition is the kernel's name of a partition; empty: it has none of that number.
func partition(sys, disk string, number int) string {
	all, _ := filepath.Glob(filepath.Join(sys, "block", disk, disk+"*", "partition"))
	for _, file := range all {
		if text(file) == strconv.Itoa(number) {
			return filepath.Base(filepath.Dir(file))
		}
	}
	return ""
}
