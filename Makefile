# The daily loop:
#
#   make            build bin/kimage (with the agent inside)
#   make test       all tests that CI runs: units, real bakes, foreign judges, virtual machines
#   make quick      units only, a minute
#   make demo       a one-machine cluster on this computer with a pod that answers over HTTP
#   make image      bake Debian 13 with Kubernetes into out/
#   make e2e        the stories that boot what was baked, of up to three machines (in CI: of one); RUN=name for one
#   make e2e-all    the stories that take hours as well: clusters of six and eight machines (12 GiB of memory), power cuts in every phase, ten minutes at Ready
#   make e2e-vagrant  three machines by the real vagrant and libvirt, from a clone: up, halt, reload, destroy (root)
#   make chaos      real etcd in network namespaces, founded, repaired and written to: agents killed after each step, 200 random schedules; SEED=n for one, chaos-short for 12
#   make integration  machines in namespaces become a cluster with the real kubeadm, etcd and control plane (root; after a bake from source)
#   make roms       firmware of every kind boots from the network, beside another DHCP server and alone
#   make bench      speed and memory, as ratios in one run
#   make bench-formats  each format beside qemu-img convert to the same
#   make bench-serve  a hundred machines fetch their image from kimage serve, beside nginx
#   make bench-boot time from the kernel's start to Ready, beside kubeadm by hand
#   make fuzz       the readers of hostile input, five minutes each (FUZZTIME=1m)
#
# Everything that is needed is installed (apt) or built.

SHELL := bash
GO := go
AGENT := cmd/kimage/agent/kimage-agent-amd64 cmd/kimage/agent/kimage-agent-arm64
SOURCES := $(shell find bootstrap cmd/kimage-agent pkg -name '*.go' -not -name '*_test.go') go.mod go.sum

.PHONY: all build deps image demo test quick integration e2e e2e-all e2e-vagrant chaos chaos-short roms bench bench-formats bench-serve bench-boot fuzz lint clean

all: build

build: bin/kimage

cmd/kimage/agent/kimage-agent-%: $(SOURCES)
	CGO_ENABLED=0 GOOS=linux GOARCH=$* $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $@ ./cmd/kimage-agent

bin/kimage: $(AGENT) $(shell find images ignition cmd/kimage -type f) $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $@ ./cmd/kimage

# What tests and bakes call; doctor names the same for people.
PACKAGES := e2fsprogs squashfs-tools mmdebstrap debian-archive-keyring dosfstools mtools gcc libc6-dev pkg-config libseccomp-dev \
	xorriso libblkid-dev policycoreutils python3-jsonschema python3-yaml openssl qemu-system-x86 qemu-utils ovmf gdisk cryptsetup-bin xz-utils zstd bzip2 util-linux shellcheck systemd-container spin iproute2 strace docker-registry tcpdump openssh-client \
	vagrant vagrant-libvirt acl btrfs-progs gpg gpg-agent fdisk xfsprogs ipxe ipxe-qemu dnsmasq-base tftp-hpa curl cpio udhcpc busybox isc-dhcp-client dhcpcd-base

deps:
	@missing=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) $(MORE) 2>&1 | grep -v '^installed ' || true); \
	if [ -n "$$missing" ]; then apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(PACKAGES) $(MORE); fi

image: deps build
	bin/kimage build --os debian-13

demo: deps build
	bash e2e/demo.sh

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./e2e
	$(GO) vet -tags chaos ./bootstrap/etcd
	$(GO) vet -tags integration ./bootstrap/kube ./pkg/squashfs
	shellcheck e2e/lookalike/make.sh e2e/lookalike/90lookalike/usr.sh e2e/lookalike/90lookalike/network.sh e2e/lookalike/90lookalike/oem.sh e2e/lookalike/90lookalike/module-setup.sh images/files/activation/activate images/files/activation/start .ci/run e2e/bench.sh e2e/demo.sh

quick: $(AGENT) lint
	$(GO) test -short $$($(GO) list ./... | grep -v cmd/kimage$$)

# The bake of the stories goes first: other tests are judged by the kubeadm it built.
test: deps build lint
	$(MAKE) e2e MACHINES=1
	$(GO) test ./bootstrap/balancer # its promises are of two seconds: nothing runs beside it
	$(GO) test -timeout 40m -skip "^TestModel$$" $$($(GO) list ./... | grep -v bootstrap/balancer$$)
	$(MAKE) integration RUN='^TestStory$$'
	$(MAKE) chaos-short # and TestModel, which prints how many states there are

RUN ?= .
integration: deps
	$(GO) test -tags integration -count=1 -v -timeout 30m -run '$(RUN)' ./bootstrap/kube ./pkg/squashfs

# Printed at the end when a story fails: what all of them said, without the long consoles of
# their machines.
TOLD := echo; echo "What the stories said:"; grep -E -A 3 '^ +[a-z0-9_]+_test\.go:[0-9]+: |^--- FAIL' .e2e.log | grep -v 'console of' | cut -c 1-300 | tail -n 100

# How many machines one story may boot. Stories of one machine go two by two, each paced, which
# is one thread: all processors of a machine that is not wait for each other's locks.
MACHINES ?= $(if $(CI),1,3)
e2e: deps build
	set -o pipefail; KIMAGE_E2E_MACHINES=$(MACHINES) $(GO) test -tags e2e -count=1 -v -timeout $$((20 + 60 * $(MACHINES)))m -parallel 2 -run '$(RUN)' ./e2e 2>&1 | tee .e2e.log || { $(TOLD); exit 1; }

SEED ?= 0
CHAOS := $(GO) test -tags chaos -count=1 -v -run "TestModel$$|TestChaos$$|TestChaosRepair|TestChaosNoQuorum|TestHistory|TestTheseus|TestGrow|TestNewerEtcd|TestEtcd" -parallel 4 -timeout 4h ./bootstrap/etcd -seed $(SEED)
# Most of their time these wait for etcd.
STEPS := $(GO) test -tags chaos -count=1 -v -run TestChaosSteps -parallel 8 -timeout 20m ./bootstrap/etcd
chaos: deps
	$(STEPS) -chaos 200
	$(CHAOS) -chaos 200

# What led to a failure comes last: of the many schedules it is one.
chaos-short: deps
	$(STEPS) -chaos 12
	rm -f .chaos.log
	KIMAGE_CHAOS_LOG=$(CURDIR)/.chaos.log $(CHAOS) -chaos 12 || { cut -c1-300 .chaos.log; exit 1; }

e2e-all: deps build
	KIMAGE_E2E_ALL=1 KIMAGE_E2E_MACHINES=8 KIMAGE_E2E_WINDOW=10m $(GO) test -tags e2e -count=1 -v -timeout 12h -parallel 2 -run '$(RUN)' ./e2e

# libvirtd is the story's own, in a network of its own.
e2e-vagrant: MORE := libvirt-daemon-system libvirt-clients dnsmasq-base
e2e-vagrant: deps build
	KIMAGE_E2E_VAGRANT=1 $(GO) test -tags e2e -count=1 -v -timeout 120m -run '^TestVagrant' ./e2e

roms: deps
	KIMAGE_ROMS=1 $(GO) test -count=1 -v -timeout 30m -run TestROMs ./pkg/netboot

bench: deps build
	bash e2e/bench.sh

# A hundred machines fetch their image at once: bytes per second, as a ratio to nginx' (goal
# 0.9), and memory.
bench-serve: MORE := nginx-light
bench-serve: deps build
	KIMAGE_BENCH_SERVE=1 $(GO) test -tags e2e -count=1 -v -timeout 60m -run '^TestServeRatio$$' ./e2e

bench-formats: deps build
	bin/kimage build --os debian-13 --quiet --lock .bench.lock -o .bench
	KIMAGE_BENCH_IMAGE=$$(ls $(CURDIR)/.bench/*.raw) $(GO) test -run - -bench Formats -benchtime 1x -timeout 30m ./images; status=$$?; rm -rf .bench .bench.lock; exit $$status

bench-boot: deps build
	KIMAGE_E2E_BOOT=1 $(GO) test -tags e2e -count=1 -v -timeout 60m -run '^(TestBootRatio|TestBootPath)$$' ./e2e

FUZZTIME ?= 5m
fuzz:
	$(GO) test ./pkg/parttable -run '^$$' -fuzz FuzzRead -fuzztime $(FUZZTIME) -fuzzminimizetime 10x
	for fuzz in FuzzDHCP FuzzTFTP FuzzOffer; do $(GO) test ./pkg/netboot -run '^$$' -fuzz "^$$fuzz$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x || exit 1; done
	$(GO) test ./pkg/qcow2 -run '^$$' -fuzz FuzzRead -fuzztime $(FUZZTIME) -fuzzminimizetime 10x

clean:
	[ ! -d demo -o ! -x bin/kimage ] || (cd demo && ../bin/kimage down)
	rm -rf bin out demo kimage.lock $(AGENT)
