# The daily loop:
#
#   make            build bin/kimage (with the agent inside)
#   make test       all tests that CI runs: units, real bakes, foreign judges, virtual machines
#   make quick      units only, a minute
#   make image      bake Debian 13 with Kubernetes into out/
#   make e2e        the stories of CI that boot what was baked; RUN=name for one
#   make bench      speed and memory, as ratios in one run
#   make fuzz       the readers of hostile input, five minutes each
#
# Everything that is needed is installed (apt) or built.

SHELL := bash
GO := go
AGENT := cmd/kimage/agent/kimage-agent-amd64
SOURCES := $(shell find bootstrap cmd/kimage-agent pkg -name '*.go' -not -name '*_test.go') go.mod go.sum

.PHONY: all build deps image test quick e2e e2e-all chaos bench fuzz lint clean

all: build

build: bin/kimage

$(AGENT): $(SOURCES)
	CGO_ENABLED=0 GOOS=linux GOARCH=amd64 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $@ ./cmd/kimage-agent

bin/kimage: $(AGENT) $(shell find images cmd/kimage -type f) $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $@ ./cmd/kimage
