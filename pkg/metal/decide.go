package metal

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/install"
	"github.com/kimage-project/kimage/pkg/progress"
)

// Machine is a machine of the cluster file, or one that becomes a pool's.
type Machine struct {
	Name  string // of the node; of a machine of a pool: POOL/MAC
	Pool  string // empty: it is known by name
	Roles []string
	Match cluster.Match
	Disk  cluster.Install
}

// sectorBytes are those of the disks that images are made for.
const sectorBytes = 512

// decide says what a machine is to do. It goes by what the machine tells of its disks and
// by what is remembered of it:
//
//	the disk          not installed       installed          released
//	empty             written             person             written
//	half written      written             person             written
//	kimage's, its own boots it            boots it           written
//	kimage's, other   person              person             as `overwrite` says
//	anything else     as `overwrite` says person             as `overwrite` says
//
// What is written uses up the release, whatever becomes of it: a half-written disk is
// recognised by what is on it, and one that was not touched yet by what is not.
func decide(m Machine, r record, h install.Hello, c Config) install.Plan {
	stop := func(format string, args ...any) install.Plan {
		return install.Plan{Action: install.Stop, Node: m.Name, Reason: fmt.Sprintf(format, args...)}
	}
	disk, why := choose(m.Disk, h.Disks)
	if why != "" {
		return stop("%s", why)
	}
	own := func(d install.Disk) bool {
		return d.Content == install.Kimage && d.Cluster == c.ClusterUID && (d.Node == m.Name || m.Pool != "")
	}
	if i := slices.IndexFunc(h.Disks, own); i >= 0 && h.Disks[i].Name != disk.Name {
		return stop("%s is chosen by the cluster file, and %s has the machine's data: say which disk is meant by disks.install", disk.Name, h.Disks[i].Name)
	}
	write := install.Plan{Action: install.Write, Node: m.Name, Disk: disk.Name}
	// Whatever the rule is: here is the machine's own data.
	if disk.Content == install.Kimage && !disk.Unfinished && !r.released {
		// What was written just now says nothing yet.
		if disk.Cluster == "" && r.State != "" || own(disk) {
			return install.Plan{Action: install.Local, Node: m.Name}
		}
		return stop("%s holds data of %s: kimage replace %s has it written over", disk.Name, whose(disk), m.Name)
	}
	switch {
	case disk.SectorBytes != sectorBytes:
		return stop("%s has sectors of %d bytes, and the image is made for %d: use another disk, or have this one's controller present %d", disk.Name, disk.SectorBytes, sectorBytes, sectorBytes)
	case disk.SizeBytes < c.Image.DiskBytes:
		return stop("%s has %s, and the image needs %s", disk.Name, progress.FormatBytes(disk.SizeBytes), progress.FormatBytes(c.Image.DiskBytes))
	case r.State == installed && !r.released:
		return stop("%s was installed before, and its disk is another now (%s is %s): kimage replace %s has it installed again", m.Name, disk.Name, content(disk), m.Name)
	case disk.Content == install.Other && m.Disk.Overwrite != cluster.OverwriteAny:
		return stop("%s holds %s: nothing but what kimage installed is written over, unless the cluster file says disks: {install: {overwrite: any}}", disk.Name, disk.What)
	case disk.Content == install.Kimage && disk.Unfinished:
	case disk.Content == install.Kimage && disk.Cluster != "" && !own(disk) && m.Disk.Overwrite != cluster.OverwriteAny:
		return stop("%s holds data of %s, not of %s: it is written over only if the cluster file says disks: {install: {overwrite: any}}", disk.Name, whose(disk), m.Name)
	case disk.Content == install.Kimage && m.Disk.Overwrite == cluster.OverwriteNever:
		return stop("%s holds data of %s, and the cluster file says overwrite: never", disk.Name, whose(disk))
	}
	return write
}

func content(d install.Disk) string {
	switch {
	case d.Content == install.Other:
		return d.What
	case d.Unfinished:
		return "half written"
	}
	return d.Content
}

// whose names the owner of kimage's data.
func whose(d install.Disk) string {
	if d.Node == "" {
		return "an installation that did not say whose it is"
	}
	return fmt.Sprintf("%s of cluster %s", d.Node, d.Cluster)
}

// choose finds the disk that is meant; why says why none is.
func choose(rule cluster.Install, disks []install.Disk) (disk install.Disk, why string) {
	var fit []install.Disk
	for _, d := range disks {
		if fits(rule, d) {
			fit = append(fit, d)
		}
	}
	switch len(fit) {
	case 0:
		return disk, fmt.Sprintf("no disk fits what the cluster file says of it: there %s", list(disks))
	case 1:
		return fit[0], ""
	}
	ours := slices.DeleteFunc(slices.Clone(fit), func(d install.Disk) bool { return d.Content != install.Kimage })
	if len(ours) == 1 {
		return ours[0], ""
	}
	return disk, fmt.Sprintf("%d disks fit: say which by disks.install in the cluster file; there %s", len(fit), list(disks))
}

func fits(rule cluster.Install, d install.Disk) bool {
	path := strings.TrimPrefix(rule.Path, "/dev/")
	return (path == "" || path == d.Name || slices.Contains(d.Paths, rule.Path)) &&
		(rule.Serial == "" || rule.Serial == d.Serial) &&
		(rule.Model == "" || strings.Contains(d.Model, rule.Model)) &&
		int64(rule.MinGiB)<<30 <= d.SizeBytes
}

// list is for people.
func list(disks []install.Disk) string {
	if len(disks) == 0 {
		return "is none"
	}
	var all []string
	for _, d := range disks {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s (%s, model %q, serial %q, %s)", d.Name, progress.FormatBytes(d.SizeBytes), d.Model, d.Serial, content(d))))
	}
	return "are " + strings.Join(all, ", ")
}
