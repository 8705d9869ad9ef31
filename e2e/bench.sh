#!/usr/bin/env bash
# Speed and memory of a bake, as ratios in one run: medians of N iterations.
# Each changes one byte of the agent, so no cached payload or image can answer.
#
#   time    kimage (raw)  /  cp --sparse=always of the output + sync + mksquashfs of the same tree;
#           as it is, with the other programs compressed by an earlier bake, and with nothing compressed
#   store   its image store over a tar of the same bytes, as a part of the bake
#   memory  of kimage and its children in a cgroup, page cache included, which is limited to
#           256 MiB: the run fails if that is not enough
set -euo pipefail
N=${N:-5}
cd "$(dirname "$0")/.."
work=$(mktemp -d "${TMPDIR:-/tmp}/kimage-bench.XXXXXX")
cgroup=/sys/fs/cgroup/memory/kimage-bench.$$ limit=memory.limit_in_bytes peak=memory.max_usage_in_bytes
[ -d /sys/fs/cgroup/memory ] || cgroup=/sys/fs/cgroup/kimage-bench.$$ limit=memory.max peak=memory.peak
trap 'rm -rf "$work"; [ ! -d "$cgroup" ] || rmdir "$cgroup"' EXIT
bake() { bin/kimage build --lock "$work/kimage.lock" --os debian-13 --agent "$work/agent" --name bench -o "$work/out" --quiet; }
median() { sort -n | sed -n "$(((N + 1) / 2))p"; }
seconds() { local t0=$EPOCHREALTIME; "$@" >/dev/null; echo "$t0 $EPOCHREALTIME" | awk '{printf "%.2f\n", $2 - $1}'; }

cp cmd/kimage/agent/kimage-agent-amd64 "$work/agent"
bake # fills the cache
offset=$(bin/kimage inspect "$work/out/bench.raw" --json | sed -n '/"KIMAGE"/,/offsetBytes/s/.*"offsetBytes": \([0-9]*\).*/\1/p')
name=$(debugfs -R "ls -p /extensions" "$work/out/bench.raw?offset=$offset" 2>/dev/null | grep -o '[0-9a-f]\{64\}\.raw' | head -n 1)
debugfs -R "dump /extensions/$name $work/payload.raw" "$work/out/bench.raw?offset=$offset" 2>/dev/null
# The level whose result is as small as kimage's own: 146 MiB and 145.
level=3
unsquashfs -q -n -o 1048576 -d "$work/tree" "$work/payload.raw" >/dev/null

reference() {
	rm -f "$work/copy" "$work/squashfs"
	cp --sparse=always "$work/out/bench.raw" "$work/copy"
	sync "$work/copy"
	mksquashfs "$work/tree" "$work/squashfs" -noappend -quiet -no-progress -comp zstd -Xcompression-level "$level" -b 1048576 -mem 96M
}

for i in $(seq "$N"); do
	printf '%s' "$i" >>"$work/agent"
	seconds bake >>"$work/kimage"
	seconds reference >>"$work/reference"
	printf '%s' "$i" >>"$work/agent"
	bin/kimage cache clean packed >/dev/null
	seconds bake >>"$work/nothing"
done
kimage=$(median <"$work/kimage")
reference=$(median <"$work/reference")
awk -v k="$kimage" -v n="$(median <"$work/nothing")" -v r="$reference" 'BEGIN {
	printf "time: kimage %.2f s, reference %.2f s, ratio %.2f (goal 1.20)\n", k, r, k / r
	printf "      with nothing compressed before: %.2f s, ratio %.2f\n", n, n / r}'

# What the image store costs a bake, over a tar of the same bytes.
go test -run '^$' -bench Store -benchtime "${N}x" ./images >"$work/store"
awk -v k="$kimage" '/Store\/store/ {s = $3 / 1e9} /Store\/tar/ {t = $3 / 1e9} END {printf "image store: %.2f s, the same bytes as a tar %.2f s: %+.0f %% of a bake (goal 10)\n", s, t, 100 * (s - t) / (k - s + t)}' "$work/store"

mkdir "$cgroup"
echo $((256 << 20)) >"$cgroup/$limit"
limited() { bash -c 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"' sh "$cgroup" "$@"; }
printf x >>"$work/agent"
limited bin/kimage build --lock "$work/kimage.lock" --os debian-13 --agent "$work/agent" --name bench -o "$work/out" --quiet
awk '{printf "memory: peak %d MiB, page cache included, within 256 MiB\n", $1 / 1048576}' "$cgroup/$peak"

# 1,000 machines: kimage config from nothing, secrets included, each time in a new
# directory: a disk that discards what was just removed has other things to do.
rmdir "$cgroup"
mkdir "$cgroup"
echo $((256 << 20)) >"$cgroup/$limit"
for os in coreos-stable debian-13; do
	awk -v os="$os" 'BEGIN {
		print "apiVersion: kimage.dev/v1alpha1\nkind: Cluster\nmetadata: {name: bench}\nspec:\n  os: " os "\n  network: {pods: [10.128.0.0/10], services: [10.96.0.0/16]}\n  machine: {labels: {a: b}}\n  nodes:"
		for (i = 0; i < 1000; i++)
			printf "  - {name: n%d, roles: [%s], address: 172.20.%d.%d, match: {mac: \"52:54:00:00:%02x:%02x\"}}\n", i, i < 3 ? "etcd, master" : "worker", i / 250, i % 250 + 1, i / 256, i % 256
	}' >"$work/$os.yaml"
	config() { # DIRECTORY [PREFIX]: configs in a directory of their own
		mkdir "$work/$os-$1"
		cp "$work/$os.yaml" "$work/$os-$1/cluster.yaml"
		"${@:2}" bin/kimage config -f "$work/$os-$1/cluster.yaml" -o "$work/$os-$1/config" 2>/dev/null
	}
	sync
	for i in $(seq "$N"); do
		seconds config "$i" env >>"$work/config-$os"
	done
	config limited limited >/dev/null
	median <"$work/config-$os" | awk -v os="$os" '{printf "config of 1,000 machines, %s: %.2f s (goal 2), within 256 MiB\n", os, $1}'
done
