#!/bin/sh
# Between the root's mount and first boot: /usr from USR-A, verified; /etc is an overlay of
# the root's over what /usr brings, or, with lookalike.etc=confext, a configuration extension
# with the root's on top; system extensions are merged here then.
set -eu
etc=overlay
read -r words </proc/cmdline
for word in $words; do
	case $word in
	verity.usrhash=*) hash=${word#*=} ;;
	lookalike.offset=*) offset=${word#*=} ;;
	lookalike.etc=*) etc=${word#*=} ;;
	esac
done
device=/dev/disk/by-partuuid/7130c94a-213a-4e5a-8e26-6cce9662f132
tries=0
while ! [ -b "$device" ] && [ "$tries" -lt 30 ]; do
	tries=$((tries + 1))
	sleep 1
done
veritysetup open --hash-offset="$offset" "$device" usr "$device" "$hash"
mount -t btrfs -o ro /dev/mapper/usr /sysroot/usr
if [ "$etc" = overlay ]; then
	mount -t overlay -o lowerdir=/sysroot/usr/share/flatcar/etc,upperdir=/sysroot/etc,workdir=/sysroot/.etc-work,redirect_dir=on overlay /sysroot/etc
	ln -sf /dev/null /sysroot/etc/systemd/system/systemd-confext.service # what has this overlay has no such extension
	exit
fi
mkdir -p /sysroot/var/lib/extensions.mutable
[ -e /sysroot/var/lib/extensions.mutable/etc ] || ln -s ../../../etc /sysroot/var/lib/extensions.mutable/etc
# Extensions for the system, not for the initramfs.
export SYSTEMD_IN_INITRD=0
systemd-confext --root=/sysroot --mutable=yes merge
grep -q ' /sysroot/etc overlay ' /proc/mounts
# What /etc/extensions has are links into the system.
for extension in /sysroot/etc/extensions/*; do
	if [ -e "$extension" ] || [ -h "$extension" ]; then
		for dir in dev proc sys run; do
			mount --rbind "/$dir" "/sysroot/$dir"
			mount --make-rslave "/sysroot/$dir" # else what is under it goes with it
		done
		chroot /sysroot systemd-sysext merge
		for dir in run sys proc dev; do
			umount -l "/sysroot/$dir"
		done
		break
	fi
done
