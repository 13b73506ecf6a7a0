# ingot: build, test, demonstrate. `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory

# The toolchain that go.mod asks for: the one on the PATH, or the one that
# `make setup` put into the user's cache.
GO := $(shell scripts/go-path)

export CGO_ENABLED  := 0
export GOTOOLCHAIN  := local
export PATH         := $(if $(GO),$(dir $(GO)):)$(PATH)

# `make SKIP_SETUP=1 ...` trusts that everything is installed.
SETUP := $(if $(SKIP_SETUP),true,scripts/setup)

VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
BUILD   := go build -tags urfave_cli_no_docs -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"
AGENTS  := bin/ingot-agent-amd64 bin/ingot-agent-arm64

.PHONY: help setup build test test-quick campaign fuzz boot-time bench demo lint clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages and the Go toolchain that are needed
	@scripts/setup

build: ## leave bin/ingot, one static binary with the agents inside
	@$(SETUP) build
	@$(MAKE) bin/ingot SKIP_SETUP=1

.PHONY: bin/ingot $(AGENTS)
$(AGENTS): bin/ingot-agent-%:
	@mkdir -p bin
	@GOARCH=$* GOOS=linux $(BUILD) -o $@ ./cmd/ingot-agent
	@scripts/pack-agent $@ cmd/ingot/agents

bin/ingot: $(AGENTS)
	@$(BUILD) -o bin/ingot ./cmd/ingot
	@echo "built bin/ingot ($$(stat -c %s bin/ingot | numfmt --to=iec), $(VERSION))"

test: ## run all tests, with real boots of one BIOS and one UEFI machine
	@$(SETUP) test
	@$(MAKE) bin/ingot SKIP_SETUP=1
	@scripts/test

test-quick: ## run the tests that need no virtual machine
	@$(SETUP) test
	@$(MAKE) bin/ingot SKIP_SETUP=1
	@scripts/test -short

campaign: ## break captures, prunes and rollbacks at every step, flip 200 bytes, cut the power at every flush, break machines with two sides; nine hours; PART=rollback for a part
	@$(SETUP) test
	@$(MAKE) bin/ingot SKIP_SETUP=1
	@scripts/campaign $(PART)

fuzz: ## run every fuzzer for FUZZTIME=60s each
	@scripts/fuzz

boot-time: ## measure power-on to login, BIOS and UEFI, one machine alone
	@$(SETUP) test
	@$(MAKE) bin/ingot SKIP_SETUP=1
	@INGOT_BOOT_TIME=1 INGOT_NO_SKIP=1 go test -count=1 -v -run TestBootTime ./e2e/rack

bench: ## measure beside rsync, tar, casync, desync, restic and borg; WORK=capture for a part
	@$(SETUP) bench
	@$(SETUP) test
	@$(MAKE) bin/ingot SKIP_SETUP=1
	@go build -o bin/bench ./bench
	@bin/bench $(if $(WORK),-work "$(WORK)") $(if $(TOOLS),-tools "$(TOOLS)") $(if $(RUNS),-runs $(RUNS)) $(if $(STRICT),-strict)

demo: ## two empty machines, from power-on to a rolled-back release
	@$(SETUP) demo
	@$(MAKE) bin/ingot SKIP_SETUP=1
	@bin/ingot lab demo

lint: ## gofmt and go vet
	@test -z "$$(gofmt -l cmd fleet pxe imager classes templates rollback inventory installer lab web site internal e2e bench *.go | tee /dev/stderr)"
	@go vet ./...

clean: ## remove what was built; caches of images stay
	@rm -rf bin cmd/ingot/agents/ingot-agent-*
