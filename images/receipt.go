package images

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/progress"
)

// Receipt is the end of kimage build for people: what is inside, from where,
// verified by whom, what nobody signed, and the command that boots it.
func (r *Result) Receipt() string {
	var b strings.Builder
	m := r.manifest
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintf(&b, "\n%s  imageID %s  %s, Kubernetes %s, %s, %s, %s\n\n", r.Name, r.ImageID, r.OS, r.Kubernetes, r.Runtime, r.Network, r.Arch)
	fmt.Fprintf(w, "  INSIDE\tVERSION\tFROM\tVERIFIED BY\n")
	version := m.Base.Version
	if len(m.Base.Packages) > 0 {
		version = count(len(m.Base.Packages), "package")
	}
	fmt.Fprintf(w, "  base\t%s\t%s\t%s\n", version, m.Base.Origin, m.Base.VerifiedBy)
	for _, c := range m.Components {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", c.Name, c.Version, c.Origin, c.VerifiedBy)
	}
	for _, im := range m.Images {
		ref, tag, _ := strings.Cut(im.Ref, ":")
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", ref, tag, im.Origin, im.VerifiedBy)
	}
	w.Flush()
	switch store := m.ImageStore; {
	case store == nil:
	case store.Format == storeArchive:
		fmt.Fprintf(&b, "\n  The container images are an archive of %s, which a node imports at its first boot.\n", progress.FormatBytes(store.SizeBytes))
	default:
		fmt.Fprintf(&b, "\n  The container images take %s, unpacked in containerd's store, each layer once; their packed layers are left out.\n", progress.FormatBytes(store.SizeBytes))
	}
	if unsigned := m.unsigned(); len(unsigned) > 0 {
		fmt.Fprintf(&b, "\n  No signature was checked for: %s.\n", strings.Join(unsigned, ", "))
	}
	b.WriteString("\n")
	for _, a := range r.Artifacts {
		fmt.Fprintf(&b, "  %s  %s\n", a.Path, a.size())
	}
	fmt.Fprintf(&b, "  %s\n\nBaked in %s.%s\n", r.Manifest, r.Took.Round(100*time.Millisecond), r.next())
	return b.String()
}

// size says how large the disk is, and how much of it is not a hole.
func (a Artifact) size() string {
	size := progress.FormatBytes(a.SizeBytes)
	var st unix.Stat_t
	if unix.Stat(a.Path, &st) == nil && st.Blocks*512 < a.SizeBytes {
		size += ", " + progress.FormatBytes(st.Blocks*512) + " on disk"
	}
	return size
}

func count(n int, what string) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// unsigned names what came without a signature that was checked.
func (m manifest) unsigned() []string {
	var out []string
	if !m.Base.Signed {
		out = append(out, "base")
	}
	for _, c := range m.Components {
		if !c.Signed {
			out = append(out, c.Name)
		}
	}
	if len(m.Images) > 0 {
		out = append(out, "container images")
	}
	return slices.Compact(out)
}

// next is what to do with what was made; empty: another tool's business.
func (r *Result) next() string {
	i := slices.IndexFunc(r.Artifacts, func(a Artifact) bool { return bootsAlone(a.Format) })
	if i < 0 {
		if i = slices.IndexFunc(r.Artifacts, func(a Artifact) bool { return a.Format == boxLibvirt || a.Format == boxVirtualBox }); i >= 0 {
			return fmt.Sprintf(" Add it to Vagrant:\n  vagrant box add --name %s %s", r.Name, r.Artifacts[i].Path)
		}
		return ""
	}
	a := r.Artifacts[i]
	file := a.Path
	if !filepath.IsAbs(file) { // a backing file's name is relative to the overlay's
		file = "$PWD/" + file
	}
	return fmt.Sprintf(" Boot it, with 20 GiB of disk:\n  qemu-img create -q -f qcow2 -F %s -b \"%s\" node.qcow2 20G && qemu-system-x86_64 -accel kvm -accel tcg -cpu max -smp 2 -m 4096 -nographic -drive file=node.qcow2,if=virtio -nic user,model=virtio",
		a.Format, file)
}
