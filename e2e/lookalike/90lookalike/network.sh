#!/bin/sh
# Ignition cannot go on without a network: systemd-networkd makes one, and says whom to ask
# for names.
set -eu
systemctl start systemd-networkd.service
/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=300
sed -n 's/^DNS=/nameserver /p' /run/systemd/netif/state >/etc/resolv.conf
