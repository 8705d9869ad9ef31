#!/bin/bash
# Called by dracut.

check() { return 255; }

depends() { echo dm; }

installkernel() { instmods btrfs dm-verity overlay squashfs loop; }

# shellcheck disable=SC2154 # dracut's variables
install() {
	inst_multiple veritysetup systemd-confext mount umount chroot mkdir sleep grep sed cat ln || exit 1
	inst_simple "$moddir/usr.sh" /usr/bin/lookalike-usr
	inst_simple "$moddir/lookalike.service" /usr/lib/systemd/system/lookalike.service
	inst_simple "$moddir/oem.sh" /usr/bin/lookalike-oem
	inst_simple "$moddir/lookalike-oem.service" /usr/lib/systemd/system/lookalike-oem.service
	mkdir -p "$initdir/usr/lib/ignition" "$initdir/usr/lib/systemd/system/ignition-fetch-offline.service.requires"
	ln -s ../lookalike-oem.service "$initdir/usr/lib/systemd/system/ignition-fetch-offline.service.requires/lookalike-oem.service"
	inst_simple "$moddir/network.sh" /usr/bin/lookalike-network
	inst_simple "$moddir/lookalike-network.service" /usr/lib/systemd/system/lookalike-network.service
	mkdir -p "$initdir/usr/lib/systemd/system/ignition-fetch.service.requires"
	ln -s ../lookalike-network.service "$initdir/usr/lib/systemd/system/ignition-fetch.service.requires/lookalike-network.service"
	mkdir -p "$initdir/usr/lib/systemd/system/initrd-root-fs.target.requires"
	ln -s ../lookalike.service "$initdir/usr/lib/systemd/system/initrd-root-fs.target.requires/lookalike.service"
}
