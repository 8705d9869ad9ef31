// Package doctor knows which external programs and files kimage needs, which
// Debian package has each, and what is missing on this machine.
package doctor

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// Need is one program or file.
type Need struct {
	Program string // looked up on PATH and in sbin
	File    string // or: a file that must exist
	Package string // Debian package that has it
	Why     string
}

// Name is what people look for.
func (n Need) Name() string {
	if n.Program != "" {
		return n.Program
	}
	return n.File
}

func (n Need) present() bool {
	if n.File != "" {
		_, err := os.Stat(n.File)
		return err == nil
	}
	_, err := run.Find(n.Program)
	return err == nil
}

// Groups of needs, by what a person wants to do.
var (
	Bake = []Need{
		{Program: "mke2fs", Package: "e2fsprogs", Why: "makes the data partition"},
		{Program: "e2fsck", Package: "e2fsprogs", Why: "checks what was written"},
		{Program: "debugfs", Package: "e2fsprogs", Why: "writes into ext4 without mounting"},
	}
	Read = []Need{
		{Program: "e2fsck", Package: "e2fsprogs", Why: "checks the file systems of an image (kimage verify)"},
		{Program: "debugfs", Package: "e2fsprogs", Why: "reads ext4 without mounting"},
	}
	BasePackages = []Need{
		{Program: "mmdebstrap", Package: "mmdebstrap", Why: "makes a base from packages"},
		{Program: "mkfs.vfat", Package: "dosfstools", Why: "makes the EFI system partition"},
		{Program: "mcopy", Package: "mtools", Why: "fills the EFI system partition"},
		{File: "/usr/share/keyrings/debian-archive-keyring.gpg", Package: "debian-archive-keyring", Why: "verifies Debian's packages"},
	}
	Source = []Need{
		{Program: "go", Package: "golang", Why: "builds components from source"},
	}
	SourceImages = []Need{
		{Program: "gcc", Package: "gcc", Why: "builds runc, flannel and pause"},
		{Program: "pkg-config", Package: "pkg-config", Why: "finds libseccomp for runc"},
		{File: "/usr/include/seccomp.h", Package: "libseccomp-dev", Why: "runc filters system calls with it"},
		{Program: "apt-get", Package: "apt", Why: "resolves the packages in kube-proxy's image"},
		{Program: "dpkg-deb", Package: "dpkg", Why: "unpacks them"},
		{File: "/usr/share/keyrings/debian-archive-keyring.gpg", Package: "debian-archive-keyring", Why: "verifies them"},
	}
	Seed = []Need{
		{Program: "xorriso", Package: "xorriso", Why: "writes NoCloud volumes"},
	}
	Libvirt = []Need{
		{Program: "setfacl", Package: "acl", Why: "lets libvirt's machines read their configs (vagrant up)"},
		{Program: "getfacl", Package: "acl", Why: "sees whether they can"},
	}
	Run = []Need{
		{Program: "qemu-system-x86_64", Package: "qemu-system-x86", Why: "runs a cluster on this computer (kimage up)"},
		{Program: "qemu-img", Package: "qemu-utils", Why: "makes its disks"},
		{Program: "ssh", Package: "openssh-client", Why: "logs in to its machines (kimage ssh)"},
	}
	Serve = []Need{
		{File: "/usr/lib/ipxe/undionly.kpxe", Package: "ipxe", Why: "is what machines load from the network first (kimage serve)"},
	}
	Boot = []Need{
		{Program: "qemu-system-x86_64", Package: "qemu-system-x86", Why: "boots an image on this machine"},
		{Program: "qemu-img", Package: "qemu-utils", Why: "makes its disks"},
		{File: "/usr/share/OVMF/OVMF_CODE_4M.fd", Package: "ovmf", Why: "boots it by UEFI"},
	}
)

// Missing returns the needs that this machine does not meet.
func Missing(groups ...[]Need) []Need {
	var out []Need
	for _, g := range groups {
		for _, n := range g {
			if !n.present() && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// Check returns one error that names everything missing and how to get it.
func Check(groups ...[]Need) error {
	missing := Missing(groups...)
	if len(missing) == 0 {
		return nil
	}
	var names, packages []string
	for _, n := range missing {
		names = append(names, n.Name())
		if !slices.Contains(packages, n.Package) {
			packages = append(packages, n.Package)
		}
	}
	return fmt.Errorf("missing on this machine: %s; on Debian and Ubuntu: apt-get install %s",
		strings.Join(names, ", "), strings.Join(packages, " "))
}
