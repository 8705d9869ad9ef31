#!/usr/bin/env bash
# Makes a disk image with a vendor's very partition table, file systems, labels and GUIDs,
# and a Debian userland that boots. Run as root.
#
#   make.sh flatcar|ubuntu|centos ROOT OUT
#
# ROOT is a directory with Debian's root file system, which is used up; for flatcar with
# dracut, Ignition, veritysetup and btrfs in it, for centos with xfsprogs.
set -euo pipefail
kind=$1 root=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "$out.XXXXXX")
trap 'umount -q "$root/dev" "$root/proc" "$root/sys" || true; rm -rf "$work"' EXIT
kver=$(ls "$root/usr/lib/modules")
# debugfs drops these bits.
chmod u+s "$root"/usr/bin/{sudo,su,passwd,mount,umount}
chmod 1777 "$root/tmp" "$root/var/tmp"

inside() {
	chroot "$root" "$@"
}

# partition NUMBER FIRST SECTORS TYPE NAME GUID
partition() {
	sgdisk --set-alignment=1 --new="$1:$2:$(($2 + $3 - 1))" --typecode="$1:$4" --change-name="$1:$5" --partition-guid="$1:$6" "$out" >/dev/null
}

# put FILE SECTOR
put() {
	dd if="$1" of="$out" bs=1M seek=$(($2 * 512)) oflag=seek_bytes conv=notrunc,sparse status=none
}

# system_of ID VERSION MORE: the userland calls itself the vendor's.
system_of() {
	printf 'NAME=%s\nID=%s\nVERSION_ID="%s"\nPRETTY_NAME="%s lookalike"\n%s\n' "$1" "$1" "$2" "$1" "$3" >"$root/usr/lib/os-release"
	rm -f "$root/etc/fstab" "$root/etc/cloud/cloud.cfg.d/90_kimage.cfg" "$root/etc/cloud/ds-identify.cfg" "$root/etc/systemd/network/99-kimage-dhcp.network"
}

# grub FIRST SECTORS CONFIG EFI: GRUB in the MBR and from sector FIRST on, and a program for
# UEFI, both with the same first words.
grub() {
	cp "$3" "$root/tmp/early.cfg"
	modules="part_gpt part_msdos ext2 fat btrfs xfs normal configfile search search_fs_uuid search_label linux echo test serial terminal gzio"
	# shellcheck disable=SC2086 # words
	inside grub-mkimage -O i386-pc -c /tmp/early.cfg -p /grub -o /tmp/core.img biosdisk $modules
	# shellcheck disable=SC2086
	inside grub-mkimage -O x86_64-efi -c /tmp/early.cfg -p /grub -o /tmp/boot.efi efi_gop efi_uga all_video $modules
	mv "$root/tmp/boot.efi" "$4"
	python3 - "$root/usr/lib/grub/i386-pc/boot.img" "$root/tmp/core.img" "$out" "$1" "$2" <<'PYTHON'
import struct, sys
boot, core = (bytearray(open(p, "rb").read()) for p in sys.argv[1:3])
first, room = int(sys.argv[4]), int(sys.argv[5])
sectors = (len(core) + 511) // 512
assert sectors <= room, (sectors, room)
# include/grub/i386/pc/boot.h: where core.img begins, no check of the drive, the list of its blocks
struct.pack_into("<Q", boot, 0x5c, first)
boot[0x66:0x68] = b"\x90\x90"
struct.pack_into("<QH", core, 0x1f4, first + 1, sectors - 1)
with open(sys.argv[3], "r+b") as disk:
    disk.write(boot[:440])
    disk.seek(first * 512)
    disk.write(core)
PYTHON
	rm -f "$root/tmp/core.img" "$root/tmp/early.cfg"
}

# vfat FILE SECTORS LABEL ID
vfat() {
	truncate -s $(($2 * 512)) "$1"
	mkfs.vfat --invariant -F 32 -n "$3" -i "$4" "$1" >/dev/null
	mmd -i "$1" ::/EFI ::/EFI/BOOT
}

# ext4 FILE SECTORS LABEL UUID DIRECTORY: with the features that Debian 13 and Ubuntu make.
ext4() {
	truncate -s $(($2 * 512)) "$1"
	mkfs.ext4 -q -O metadata_csum_seed,orphan_file -L "$3" -U "$4" -d "$5" "$1"
}

# xfs FILE SECTORS UUID DIRECTORY: mkfs.xfs fills it by a prototype, which knows neither names
# with spaces nor sticky bits.
xfs() {
	python3 - "$4" >"$work/prototype" <<'PYTHON'
import os, stat, sys
kinds = {stat.S_IFREG: "-", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
def mode(s):
    m = s.st_mode
    return "%s%s%s%03o %d %d" % (kinds[stat.S_IFMT(m)], "u" if m & stat.S_ISUID else "-", "g" if m & stat.S_ISGID else "-", m & 0o777, s.st_uid, s.st_gid)
def directory(path):
    for name in sorted(os.listdir(path)):
        p = os.path.join(path, name)
        s = os.lstat(p)
        if " " in name or name.startswith(":"):
            continue
        if stat.S_ISLNK(s.st_mode):
            print(name, mode(s), os.readlink(p))
        elif stat.S_ISREG(s.st_mode):
            print(name, mode(s), p)
        elif stat.S_ISDIR(s.st_mode):
            print(name, mode(s))
            directory(p)
            print("$")
print("-\n0 0\n" + mode(os.stat(sys.argv[1])))
directory(sys.argv[1])
print("$")
PYTHON
	truncate -s $(($2 * 512)) "$1"
	mkfs.xfs -q -m uuid="$3",bigtime=0,inobtcount=0 -p "$work/prototype" "$1"
}

# live: what Flatcar publishes for PXE, beside the disk: a kernel, and an archive with its
# /usr as a squashfs. Flatcar's kernel has a small initramfs inside, with modprobe and what
# mounts disks, but without drivers of cards; Debian's has none, so that here it lies in the
# same archive. Its first process is none that a kernel can start: who boots it as it is sees
# that at once.
live() {
	small=$root/tmp/small
	mkdir -p "$small"/{dev,etc,proc,sys,usr/bin,usr/lib,usr/lib64,realinit,sysusr/usr}
	ln -s usr/bin "$small/bin"
	ln -s usr/bin "$small/sbin"
	ln -s bin "$small/usr/sbin"
	ln -s usr/lib "$small/lib"
	ln -s usr/lib64 "$small/lib64"
	echo "the vendor's own first process" >"$small/init"
	chmod 755 "$small/init"
	mknod "$small/dev/console" c 5 1
	[ -e "$root/usr/bin/modprobe" ] || ln -s kmod "$root/usr/bin/modprobe" # where Flatcar has it
	for file in /usr/bin/kmod $(inside ldd /usr/bin/kmod | grep -o '/[^ ]*'); do
		install -D "$root$file" "$small$file"
	done
	ln -s kmod "$small/usr/bin/modprobe"
	for module in loop squashfs overlay btrfs dm_verity virtio_pci virtio_blk sd_mod nvme; do
		for file in $(inside modprobe --set-version "$kver" --show-depends "$module" | sed -n 's#^insmod .*/lib/modules/\([^ ]*\).*#\1#p'); do
			install -D -m 644 "$root/usr/lib/modules/$file" "$small/usr/lib/modules/$file"
		done
	done
	cp "$root/usr/lib/modules/$kver"/modules.{builtin,builtin.modinfo,order} "$small/usr/lib/modules/$kver/"
	inside depmod --basedir /tmp/small "$kver"
	mksquashfs "$root/usr" "$small/usr.squashfs" -quiet -no-progress -comp zstd -Xcompression-level 3
	(cd "$small" && find . -print0 | cpio --null --create --format=newc --quiet | gzip -1) >"${out%.raw}.cpio.gz"
	cp "$root/boot/vmlinuz-$kver" "${out%.raw}.vmlinuz"
	rm -rf "$small"
}

flatcar() {
	# disk_layout.json of Flatcar, its layout "base".
	truncate -s 8455716864 "$out"
	sgdisk --clear --disk-guid=00000000-0000-0000-0000-000000000001 "$out" >/dev/null
	partition 1 4096 2097152 C12A7328-F81F-11D2-BA4B-00A0C93EC93B EFI-SYSTEM 10000000-0000-4000-8000-000000000001
	partition 2 2101248 4096 21686148-6449-6E6F-744E-656564454649 BIOS-BOOT 10000000-0000-4000-8000-000000000002
	partition 3 2105344 4194304 5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6 USR-A 7130C94A-213A-4E5A-8E26-6CCE9662F132
	partition 4 6299648 4194304 5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6 USR-B E03DD35C-7C2D-4A47-B3FE-27F15780A57C
	partition 6 10493952 2097152 0FC63DAF-8483-4772-8E79-3D69D8477DE4 OEM 10000000-0000-4000-8000-000000000006
	partition 7 12591104 131072 C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0 OEM-CONFIG 10000000-0000-4000-8000-000000000007
	partition 9 12722176 3653632 3884DD41-8582-4404-B9A8-E9B84F2DF50E ROOT 10000000-0000-4000-8000-000000000009
	sgdisk --attributes=3:set:48 --attributes=3:set:56 "$out" >/dev/null # ChromeOS' priority 1, successful

	system_of flatcar 4757.2.0 'SYSEXT_LEVEL=1.0'
	inside useradd --create-home --uid 500 --groups sudo --shell /bin/bash core
	echo 'core ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/core"
	echo 'AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys.d/ignition' >"$root/etc/ssh/sshd_config.d/ignition.conf"
	# Debian's Ignition labels files for SELinux whether there is any or not.
	mkdir -p "$root/etc/selinux/none/contexts/files"
	printf 'SELINUX=disabled\nSELINUXTYPE=none\n' >"$root/etc/selinux/config"
	echo '/.* system_u:object_r:file_t:s0' >"$root/etc/selinux/none/contexts/files/file_contexts"
	cp "$root/boot/config-$kver" "$root/usr/lib/modules/$kver/config" # where kubeadm looks; Flatcar's kernel has it inside
	echo 'disable *' >"$root/usr/lib/systemd/system-preset/99-default.preset"
	printf '[Match]\nType=ether\n\n[Network]\nDHCP=yes\n' >"$root/usr/lib/systemd/network/zz-default.network"
	printf '[Match]\nDriver=veth\nName=veth*\n\n[Link]\nUnmanaged=yes\n' >"$root/usr/lib/systemd/network/90-docker-veth.network"
	rm -f "$root/etc/machine-id" # its first boot begins without
	rm -f "$root"/etc/systemd/system/*.wants/apparmor.service # Flatcar has none
	install -m 644 "$here/quench.service" "$root/usr/lib/systemd/system/lookalike-quench.service"
	ln -s ../lookalike-quench.service "$root/usr/lib/systemd/system/multi-user.target.wants/"

	cp -r "$here/90lookalike" "$root/usr/lib/dracut/modules.d/"
	mount -t proc proc "$root/proc"
	mount -t sysfs sys "$root/sys"
	mount --bind /dev "$root/dev"
	inside dracut --quiet --force --no-hostonly --add "ignition lookalike" --add-drivers "qemu_fw_cfg virtio_blk virtio_pci ext4 btrfs dm_verity overlay squashfs loop" --kver "$kver" /initrd
	umount "$root/dev" "$root/proc" "$root/sys"

	# Its own runtimes are system extensions inside /usr, which /etc turns on.
	mkdir -p "$root/usr/share/flatcar/sysext" "$root/etc/extensions" "$root/usr/lib/systemd/system/systemd-confext.service.d"
	for runtime in containerd docker; do
		ext=$work/$runtime
		mkdir -p "$ext/usr/lib/extension-release.d" "$ext/usr/share/flatcar-runtime"
		printf 'ID=flatcar\nSYSEXT_LEVEL=1.0\n' >"$ext/usr/lib/extension-release.d/extension-release.$runtime-flatcar"
		touch "$ext/usr/share/flatcar-runtime/$runtime"
		mksquashfs "$ext" "$root/usr/share/flatcar/sysext/$runtime-flatcar.raw" -quiet -all-root -no-progress
		ln -s "/usr/share/flatcar/sysext/$runtime-flatcar.raw" "$root/etc/extensions/$runtime-flatcar.raw"
	done
	# What /etc has comes with /usr: an overlay's lower part, or from 4757 on an extension.
	printf '[Service]\nExecStart=\nExecStart=systemd-confext --mutable=yes refresh\n' >"$root/usr/lib/systemd/system/systemd-confext.service.d/mutable.conf"
	mkdir -p "$root/etc/extension-release.d" "$root/usr/lib/confexts"
	echo 'ID=_any' >"$root/etc/extension-release.d/extension-release.00-flatcar-default"
	mkdir "$work/confext"
	cp -a "$root/etc" "$work/confext/"
	mksquashfs "$work/confext" "$root/usr/lib/confexts/00-flatcar-default.raw" -quiet -no-progress
	mv "$root/etc" "$root/usr/share/flatcar/etc"
	mkdir "$root/etc"

	live

	# /usr: btrfs in 260094 blocks, and behind them what verifies it.
	usr=$((260094 * 4096))
	truncate -s $usr "$work/usr"
	mkfs.btrfs -q -m single --byte-count $usr --rootdir "$root/usr" "$work/usr"
	truncate -s $((4194304 * 512)) "$work/usr"
	hash=$(veritysetup format --data-blocks=260094 --hash-offset=$usr "$work/usr" "$work/usr" | sed -n 's/^Root hash:[[:space:]]*//p')
	put "$work/usr" 2105344

	vfat "$work/esp" 2097152 EFI-SYSTEM 7B7795E7
	cat >"$work/early.cfg" <<-'GRUB'
		search --no-floppy --set=root --fs-uuid 7B77-95E7
		configfile ($root)/grub/grub.cfg
	GRUB
	grub 2101248 4096 "$work/early.cfg" "$work/boot.efi"
	sed "s/@HASH@/$hash/; s/@OFFSET@/$usr/" "$here/flatcar-grub.cfg" >"$work/grub.cfg"
	mmd -i "$work/esp" ::/flatcar ::/grub
	mcopy -i "$work/esp" "$work/boot.efi" ::/EFI/BOOT/BOOTX64.EFI
	mcopy -i "$work/esp" "$work/grub.cfg" ::/grub/grub.cfg
	mcopy -i "$work/esp" "$root/boot/vmlinuz-$kver" ::/flatcar/vmlinuz-a
	mcopy -i "$work/esp" "$root/initrd" ::/flatcar/initrd
	: >"$work/first_boot"
	mcopy -i "$work/esp" "$work/first_boot" ::/flatcar/first_boot
	put "$work/esp" 4096

	mkdir "$work/oem"
	echo 'set oem_id="qemu"' >"$work/oem/grub.cfg"
	truncate -s $((2097152 * 512)) "$work/oem.img"
	mkfs.btrfs -q -L OEM --rootdir "$work/oem" "$work/oem.img"
	put "$work/oem.img" 10493952

	rm -rf "${root:?}/usr" "${root:?}/boot" "$root/initrd" "$root/var/lib/dpkg"
	mkdir -p "$root/usr" "$root/boot" "$root/oem" "$root/.etc-work"
	ext4 "$work/root" 3653632 ROOT 57a2d17e-8a3f-4c51-a3c5-d2d1b4a6a9b1 "$root"
	put "$work/root" 12722176
}

ubuntu() {
	# livecd-rootfs for 24.04: /boot has a partition of its own, with number 16.
	truncate -s $((3584 << 20)) "$out"
	sgdisk --clear --disk-guid=20000000-0000-4000-8000-000000000000 "$out" >/dev/null
	partition 14 2048 8192 21686148-6449-6E6F-744E-656564454649 '' 20000000-0000-4000-8000-000000000014
	partition 15 10240 217088 C12A7328-F81F-11D2-BA4B-00A0C93EC93B '' 20000000-0000-4000-8000-000000000015
	partition 16 227328 1869824 BC13C2FF-59E6-4262-A352-B275FD6F7172 '' 20000000-0000-4000-8000-000000000016
	partition 1 2097152 5238784 0FC63DAF-8483-4772-8E79-3D69D8477DE4 '' 20000000-0000-4000-8000-000000000001

	system_of ubuntu 24.04 'ID_LIKE=debian'
	sed -i 's/name: debian/name: ubuntu/' "$root/etc/cloud/cloud.cfg"
	printf 'LABEL=cloudimg-rootfs / ext4 discard,errors=remount-ro 0 1\nLABEL=BOOT /boot ext4 defaults 0 2\nLABEL=UEFI /boot/efi vfat umask=0077 0 1\n' >"$root/etc/fstab"

	vfat "$work/esp" 217088 UEFI 1A2B3C4D
	cat >"$work/early.cfg" <<-'GRUB'
		search --no-floppy --set=root --label BOOT
		configfile ($root)/grub/grub.cfg
	GRUB
	grub 2048 8192 "$work/early.cfg" "$work/boot.efi"
	mcopy -i "$work/esp" "$work/boot.efi" ::/EFI/BOOT/BOOTX64.EFI
	put "$work/esp" 10240

	rm -rf "$root/boot/grub" "$root/boot/efi"
	mkdir -p "$root/boot/grub" "$root/boot/efi"
	sed "s/@KVER@/$kver/g" "$here/ubuntu-grub.cfg" >"$root/boot/grub/grub.cfg"
	mv "$root/boot" "$work/boot"
	mkdir "$root/boot"
	ext4 "$work/boot.img" 1869824 BOOT 2f6d3b5e-55a7-4d39-9a0b-3c1d7c0e7f16 "$work/boot"
	put "$work/boot.img" 227328
	ext4 "$work/root" 5238784 cloudimg-rootfs 3c0f1a52-77b0-4a65-8a4e-5d8a2d1b9f01 "$root"
	put "$work/root" 2097152
}

centos() {
	# The GenericCloud image of 9 and 10 for x86: an MBR with one partition, no UEFI.
	truncate -s $((4 << 30)) "$out"
	printf 'label: dos\nlabel-id: 0x30303030\nstart=2048, size=8384512, type=83, bootable\n' | sfdisk --quiet "$out"

	system_of centos 10 'ID_LIKE="rhel fedora"'
	sed -i 's/name: debian/name: cloud-user/' "$root/etc/cloud/cloud.cfg"
	uuid=3d5b1c7a-6f0e-4b57-9a56-0c3d8f2e7a10
	echo "UUID=$uuid / xfs defaults 0 0" >"$root/etc/fstab"

	cat >"$work/early.cfg" <<-GRUB
		search --no-floppy --set=root --fs-uuid $uuid
		configfile (\$root)/boot/grub/grub.cfg
	GRUB
	# Behind the MBR as grub-install does it, up to the first partition.
	grub 1 2047 "$work/early.cfg" "$work/unused.efi"
	rm -rf "$root/boot/grub" "$root/boot/efi"
	mkdir -p "$root/boot/grub"
	sed "s/@KVER@/$kver/g; s/LABEL=cloudimg-rootfs/UUID=$uuid/; s#(\$root)/#(\$root)/boot/#" "$here/ubuntu-grub.cfg" >"$root/boot/grub/grub.cfg"
	xfs "$work/root" 8384512 $uuid "$root"
	put "$work/root" 2048
}

rm -f "$out"
"$kind"
