package images

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/debs"
	"github.com/kimage-project/kimage/pkg/ext4"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/tree"
)

// Layout of a base made from packages: that of Debian's own cloud images.
//
//	14  BIOS boot     sectors   2048 ..   8191   GRUB's core image
//	15  EFI system    sectors   8192 .. 262143   vfat, EFI/BOOT/BOOTX64.EFI
//	 1  root          sectors 262144 ..          ext4
const (
	biosFirst, biosLast = 2048, 8191
	espFirst, espLast   = 8192, 262143
	rootFirst           = 262144
	sectorBytes         = 512
)

const (
	typeBIOS = "21686148-6449-6E6F-744E-656564454649"
	typeESP  = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeRoot = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
)

// dropped are paths that differ from one run of mmdebstrap to the next, or that
// belong to the machine that ran it.
var dropped = []string{
	"dev", "proc", "sys", "run", "tmp",
	"boot/kimage", "etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id",
	"etc/apt/sources.list", "etc/apt/sources.list.d", "etc/.pwd.lock", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
	"var/cache/ldconfig", "var/cache/apt", "var/lib/apt/lists", "var/cache/debconf/config.dat-old", "var/cache/debconf/templates.dat-old",
	"var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old", "var/lib/systemd/random-seed", "var/lib/systemd/catalog/database",
	"var/log", "root/.bash_history", "var/cache/apparmor",
}

// unwanted content of packages: the documentation's licences stay.
var dpkgExcludes = []string{
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
}

// packagesBase makes a disk image of o from its distribution's packages.
type packagesBase struct {
	os       OS
	mirror   string
	scratch  string // private directory, removed by the caller
	unixTime int64
}

// make writes the image to file and returns the sorted list "package version"
// of what is in it. mmdebstrap needs root or user namespaces; all that follows
// does not.
func (b packagesBase) make(ctx context.Context, file string) (packages []string, err error) {
	rootUUID := strings.ToLower(parttable.DeriveGUID("base-root", b.os.Name))
	volumeID := parttable.DeriveGUID("base-esp", b.os.Name)[:8]
	subst := strings.NewReplacer("@ROOT_UUID@", rootUUID, "@ESP_UUID@", volumeID[:4]+"-"+volumeID[4:], "@TITLE@", b.os.Title)
	tarball := filepath.Join(b.scratch, "root.tar")
	if err := b.debootstrap(ctx, tarball, subst.Replace(string(embedded("debian/grub-early.cfg")))); err != nil {
		return nil, err
	}
	root, boot, err := b.unpack(tarball)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(tarball); err != nil {
		return nil, err
	}
	if err := b.configure(root, subst); err != nil {
		return nil, err
	}
	if err := b.disk(ctx, file, root, boot, rootUUID, volumeID); err != nil {
		return nil, err
	}
	return b.packageList(root)
}

// debootstrap runs mmdebstrap; GRUB's two core images are made inside, with
// the very version whose modules they hold.
func (b packagesBase) debootstrap(ctx context.Context, tarball, early string) error {
	earlyFile := filepath.Join(b.scratch, "early.cfg")
	if err := os.WriteFile(earlyFile, []byte(early), 0o644); err != nil {
		return err
	}
	modules := "part_gpt ext2 fat normal configfile search search_fs_uuid linux echo test serial terminal gzio"
	argv := []string{"mmdebstrap", "--variant=minbase", "--mode=" + mmdebstrapMode(), "--format=tar", "--quiet",
		"--architectures=amd64", "--include=" + strings.Join(b.os.Packages.Include, ",")}
	for _, x := range dpkgExcludes {
		argv = append(argv, "--dpkgopt="+x)
	}
	argv = append(argv,
		"--aptopt=Acquire::Languages none",
		"--customize-hook=mkdir -p \"$1/boot/kimage\"",
		"--customize-hook=copy-in "+earlyFile+" /boot/kimage",
		"--customize-hook=chroot \"$1\" grub-mkimage -O i386-pc -c /boot/kimage/early.cfg -p /boot/grub -o /boot/kimage/core.img biosdisk "+modules,
		"--customize-hook=chroot \"$1\" grub-mkimage -O x86_64-efi -c /boot/kimage/early.cfg -p /boot/grub -o /boot/kimage/BOOTX64.EFI efi_gop efi_uga all_video "+modules,
		"--customize-hook=cp \"$1/usr/lib/grub/i386-pc/boot.img\" \"$1/boot/kimage/boot.img\"",
		"--customize-hook=chroot \"$1\" passwd -l root >/dev/null",
		b.os.Packages.Suite, tarball)
	for _, suite := range []string{b.os.Packages.Suite, b.os.Packages.Suite + "-updates"} {
		argv = append(argv, fmt.Sprintf("deb %s %s main", b.mirror, suite))
	}
	// dpkg, shadow and initramfs-tools stamp what they make with this time.
	env := []string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.unixTime, 10), "DEBIAN_FRONTEND=noninteractive"}
	if err := run.Run(ctx, run.Cmd{Argv: argv, Env: env, Dir: b.scratch}); err != nil {
		return fmt.Errorf("making a %s base from packages of %s (another archive: --apt-mirror URL; mmdebstrap needs root or user namespaces, --base FILE neither): %w", b.os.Title, b.mirror, err)
	}
	return nil
}

func mmdebstrapMode() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return "unshare"
}

// bootFiles are what goes outside the root file system.
type bootFiles struct{ bootImg, coreImg, efi string }

// unpack reads the tarball into a tree whose contents lie in the scratch directory.
func (b packagesBase) unpack(tarball string) (*tree.Tree, bootFiles, error) {
	in, err := os.Open(tarball)
	if err != nil {
		return nil, bootFiles{}, err
	}
	defer in.Close()
	store := filepath.Join(b.scratch, "files")
	if err := os.Mkdir(store, 0o700); err != nil {
		return nil, bootFiles{}, err
	}
	all, n, host := tree.New(), 0, map[string]string{}
	err = all.AddTar(in, func(h *tar.Header, r io.Reader) (string, error) {
		n++
		p := filepath.Join(store, strconv.Itoa(n))
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return "", err
		}
		if _, err := io.Copy(f, r); err != nil {
			f.Close()
			return "", err
		}
		host[strings.TrimPrefix(h.Name, "./")] = p
		return p, f.Close()
	})
	if err != nil {
		return nil, bootFiles{}, err
	}
	root := tree.New()
	for _, e := range all.Entries() {
		if isDropped(e.Path) {
			continue
		}
		if err := root.Add(e); err != nil {
			return nil, bootFiles{}, err
		}
	}
	boot := bootFiles{host["boot/kimage/boot.img"], host["boot/kimage/core.img"], host["boot/kimage/BOOTX64.EFI"]}
	return root, boot, nil
}

func isDropped(p string) bool {
	if strings.HasPrefix(p, "etc/ssh/ssh_host_") {
		return true
	}
	return slices.ContainsFunc(dropped, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
}

// configure adds what makes the packages a machine: mount points, network, first boot.
func (b packagesBase) configure(t *tree.Tree, subst *strings.Replacer) error {
	dirs := map[string]os.FileMode{"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o777 | os.ModeSticky,
		"boot/efi": 0o755, "var/log": 0o755, "var/log/journal": 0o755, "var/log/apt": 0o755, "var/cache/apt/archives/partial": 0o755, "var/lib/apt/lists/partial": 0o755}
	for d, mode := range dirs {
		if err := t.Add(tree.Entry{Path: d, Mode: os.ModeDir | mode}); err != nil {
			return err
		}
	}
	files := map[string][]byte{
		"boot/grub/grub.cfg":                          []byte(subst.Replace(string(embedded("debian/grub.cfg")))),
		"etc/fstab":                                   []byte(subst.Replace(string(embedded("debian/fstab")))),
		"etc/machine-id":                              nil,
		"etc/hostname":                                []byte("localhost\n"),
		"etc/cloud/cloud.cfg.d/90_kimage.cfg":         embedded("debian/cloud.cfg"),
		"etc/systemd/network/99-kimage-dhcp.network":  embedded("debian/dhcp.network"),
		"etc/modprobe.d/kimage.conf":                  embedded("debian/modprobe.conf"),
		"etc/systemd/system/kimage-host-keys.service": embedded("debian/sshd-keys.service"),
	}
	for p, content := range files {
		if _, exists := t.Lookup(p); exists {
			t.Remove(p)
		}
		if err := t.Bytes(p, 0o644, content); err != nil {
			return err
		}
	}
	links := map[string]string{
		"etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
		"etc/systemd/system/ssh.service.wants/kimage-host-keys.service":                       "../kimage-host-keys.service",
		"etc/systemd/system/multi-user.target.wants/systemd-networkd.service":                 "/usr/lib/systemd/system/systemd-networkd.service",
		"etc/systemd/system/sockets.target.wants/systemd-networkd.socket":                     "/usr/lib/systemd/system/systemd-networkd.socket",
		"etc/systemd/system/dbus-org.freedesktop.network1.service":                            "/usr/lib/systemd/system/systemd-networkd.service",
		"etc/systemd/system/sysinit.target.wants/systemd-network-generator.service":           "/usr/lib/systemd/system/systemd-network-generator.service",
		"etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service": "/usr/lib/systemd/system/systemd-networkd-wait-online.service",
	}
	for p, target := range links {
		if _, exists := t.Lookup(p); exists {
			continue
		}
		if err := t.Symlink(p, target); err != nil {
			return err
		}
	}
	return nil
}

// disk lays out the image.
func (b packagesBase) disk(ctx context.Context, file string, root *tree.Tree, boot bootFiles, rootUUID, volumeID string) error {
	rootBytes := b.os.RootMiB << 20
	total := int64(rootFirst*sectorBytes) + rootBytes + 1<<20
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(total); err != nil {
		return err
	}
	table := parttable.New(parttable.DeriveGUID("base-disk", b.os.Name))
	for _, p := range []parttable.Partition{
		{Number: 14, Name: "bios", TypeGUID: typeBIOS, FirstLBA: biosFirst, LastLBA: biosLast},
		{Number: 15, Name: "esp", TypeGUID: typeESP, FirstLBA: espFirst, LastLBA: espLast},
		{Number: 1, Name: "root", TypeGUID: typeRoot, FirstLBA: rootFirst, LastLBA: uint64(rootFirst + rootBytes/sectorBytes - 1)},
	} {
		p.GUID = parttable.DeriveGUID("base-partition", p.Name, b.os.Name)
		if _, err := table.Add(p); err != nil {
			return err
		}
	}
	if err := table.Write(f, total); err != nil {
		return err
	}
	if err := writeBIOSBoot(f, boot); err != nil {
		return err
	}
	if err := b.esp(ctx, f, boot.efi, volumeID); err != nil {
		return err
	}
	const rootOffset = rootFirst * sectorBytes
	if err := ext4.Make(ctx, ext4.MakeConfig{File: file, OffsetBytes: rootOffset, SizeBytes: rootBytes, Label: "root", UUID: rootUUID,
		ReservedPercent: 5, UnixTime: b.unixTime, ScratchDirectory: b.scratch}); err != nil {
		return err
	}
	v := ext4.Volume{File: file, OffsetBytes: rootOffset, UnixTime: b.unixTime}
	if err := v.Add(ctx, root, nil, b.scratch); err != nil {
		return err
	}
	if err := v.Check(ctx); err != nil {
		return err
	}
	return f.Sync()
}

// esp makes the EFI system partition: one vfat with the fallback boot program.
func (b packagesBase) esp(ctx context.Context, disk *os.File, efi, volumeID string) error {
	img := filepath.Join(b.scratch, "esp.img")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(img, (espLast-espFirst+1)*sectorBytes); err != nil {
		return err
	}
	env := []string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.unixTime, 10), "MTOOLS_SKIP_CHECK=1"}
	if err := os.Chtimes(efi, fixedTime(b.unixTime), fixedTime(b.unixTime)); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"mkfs.vfat", "--invariant", "-F", "32", "-n", "UEFI", "-i", volumeID, img},
		{"mmd", "-i", img, "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-m", "-i", img, efi, "::/EFI/BOOT/BOOTX64.EFI"},
	} {
		if err := run.Run(ctx, run.Cmd{Argv: argv, Env: env}); err != nil {
			return fmt.Errorf("making the EFI system partition: %w", err)
		}
	}
	in, err := os.Open(img)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(io.NewOffsetWriter(disk, espFirst*sectorBytes), in)
	return err
}

// packageList reads dpkg's database out of the tree.
func (b packagesBase) packageList(t *tree.Tree) ([]string, error) {
	e, ok := t.Lookup("var/lib/dpkg/status")
	if !ok {
		return nil, fmt.Errorf("BUG: the base has no dpkg database")
	}
	r, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return dpkgPackages(data), nil
}

// dpkgPackages lists "name version" of the packages in a dpkg status file, sorted.
func dpkgPackages(status []byte) []string {
	var list []string
	for stanza := range strings.SplitSeq(string(status), "\n\n") {
		var name, version string
		for line := range strings.SplitSeq(stanza, "\n") {
			if v, ok := strings.CutPrefix(line, "Package: "); ok {
				name = v
			}
			if v, ok := strings.CutPrefix(line, "Version: "); ok {
				version = v
			}
		}
		if name != "" && version != "" {
			list = append(list, name+" "+version)
		}
	}
	slices.Sort(list)
	return list
}

// mirror returns the package archive to use: the one given, else the machine's own.
func mirror(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	return debs.MachineMirror()
}
