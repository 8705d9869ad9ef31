#!/bin/sh
# Before Ignition: the OEM partition's config goes before what the platform says.
set -eu
umask 077
device=/dev/disk/by-label/OEM
tries=0
while ! [ -b "$device" ] && [ "$tries" -lt 60 ]; do
	tries=$((tries + 1))
	sleep 1
done
mkdir -p /run/oem
mount -t btrfs -o ro "$device" /run/oem
if [ -e /run/oem/config.ign ]; then
	mount -t tmpfs -o mode=0755 tmpfs /usr/lib/ignition # systemd has made /usr read-only
	cat /run/oem/config.ign >/usr/lib/ignition/user.ign
fi
umount /run/oem
