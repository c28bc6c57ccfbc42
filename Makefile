# Everything that is done to this tree from a shell. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

NEED := deploy/dev/need
TARGET := $(or $(CARGO_TARGET_DIR),target)

# Tools that `verify` uses, at the versions that it was last seen to pass with.
DENY_VERSION := 0.20.2
MACHETE_VERSION := 0.9.2
CARGO_DEB_VERSION := 3.8.0

.PHONY: help demo test fuzz soak soak-real reliability verify fix bench bench-load bench-formation package tarball boot-test need-build need-server

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: need-build need-server ## Form a mesh on this machine, write into it, report; options in DEMO_ARGS
	cargo build --locked --release -p redmesh-agent -p redmeshctl
	$(TARGET)/release/redmeshctl demo $(DEMO_ARGS)

test: need-build need-server ## Run all tests, with real redis-servers
	$(NEED) unpacked prometheus || true
	cargo build --locked --workspace --bins
	cargo test --locked --workspace --no-fail-fast --lib --bins --tests

verify: need-build ## Check form, lints, licences, dependencies and docs; changes nothing in the tree
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --workspace
	deploy/dev/check-code-map
	$(NEED) unpacked prometheus || true
	$(NEED) cloud-init || true
	deploy/dev/check-deploy
	$(NEED) cargo-tool cargo-machete $(MACHETE_VERSION)
	cargo machete
	$(NEED) cargo-tool cargo-deny $(DENY_VERSION)
	cargo deny --locked check bans licenses sources
	deploy/dev/check-advisories

# Seeds of `make soak`, and how many agents its large mesh has.
SEEDS ?= 3000
FIRST ?= 1
AGENTS ?= 300

# Seconds of `make soak-real`.
SOAK_S ?= 1200

soak: need-build ## Simulate thousands of faulty meshes, and a large one; SEEDS=3000 FIRST=1 AGENTS=300
	REDMESH_SIM_SEEDS=$(SEEDS) REDMESH_SIM_FIRST=$(FIRST) cargo test --locked -p redmesh-tests --test simulation -- --nocapture many_seeds
	REDMESH_SIM_AGENTS=$(AGENTS) cargo test --locked -p redmesh-tests --test large -- --nocapture

soak-real: need-build need-server ## Watch real agents' memory and open files under load; SOAK_S=1200
	cargo build --locked --workspace --bins
	SOAK_SECONDS=$(SOAK_S) cargo test --locked -p redmesh-tests --test soak -- --ignored --nocapture

fix: need-build ## Format, and apply what clippy can by itself
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

bench: need-build need-server ## Run the benchmarks
	cargo bench --locked --workspace

# Options of bench-load: make bench-load INSTANCES=100 SECONDS=10; SECONDS is fuzz's too.
INSTANCES ?= 30
SECONDS ?= 5
ROUNDS ?= 3

fuzz: need-build need-server ## Feed changed bytes to every parser of outside bytes; SECONDS=5 a target
	cargo build --locked --workspace --bins
	FUZZ_SECONDS=$(SECONDS) cargo test --locked --workspace --lib --bins --tests fuzz

bench-load: need-build need-server ## Compare the load with redis-benchmark; INSTANCES=30|100 SECONDS=5 ROUNDS=3
	cargo build --locked --release -p redmesh-agent -p redmeshctl -p redmesh-benches --bins
	$(TARGET)/release/redmesh-bench-load --instances $(INSTANCES) --seconds $(SECONDS) --rounds $(ROUNDS) $(BENCH_ARGS)

# Options of bench-formation: make bench-formation SIZES=100,200 FORMATION_ROUNDS=1 LARGEST=500.
SIZES ?= 100,200,300
FORMATION_ROUNDS ?= 3

bench-formation: need-build need-server ## Compare forming a cluster with redis-cli; SIZES=100,200,300 FORMATION_ROUNDS=3 LARGEST=N
	cargo build --locked --release -p redmesh-agent -p redmeshctl -p redmesh-benches --bins
	$(TARGET)/release/redmesh-bench-formation --instances $(SIZES) --rounds $(FORMATION_ROUNDS) \
	  $(if $(LARGEST),--largest $(LARGEST)) $(BENCH_ARGS)

# Options of reliability: make reliability FAULT=host-killed TRIALS=3; FAULT= alone lists all.
FAULT ?= all
TRIALS ?= 1
# debug or release.
PROFILE ?= debug

reliability: need-build need-server ## Try real faults, and print the rows of docs/reliability.md; FAULT=all TRIALS=1 PROFILE=debug
	$(NEED) unpacked libfaketime || true
	cargo build --locked --workspace --bins $(if $(filter release,$(PROFILE)),--release)
	$(TARGET)/$(PROFILE)/redmesh-reliability $(if $(FAULT),$(FAULT) $(TRIALS))

package: need-build ## Build the Debian packages into target/debian
	$(NEED) cargo-tool cargo-deb $(CARGO_DEB_VERSION)
	cargo build --locked --release -p redmesh-agent -p redmeshctl
	deploy/dev/package
	@if command -v lintian >/dev/null; then lintian --fail-on error $(TARGET)/debian/*.deb; \
	else echo "lintian: skipped, because it isn't installed" >&2; fi

STATIC = $(shell uname -m)-unknown-linux-musl

tarball: need-build ## Build static binaries for any Linux, as target/tarball/*.tar.gz
	$(NEED) static $(STATIC)
	cargo build --locked --release --target $(STATIC) -p redmesh-agent -p redmeshctl
	deploy/dev/tarball $(STATIC)

boot-test: ## Boot three hosts with the packages (systemd-nspawn, root): make package first
	deploy/dev/boot-test

need-build:
	@$(NEED) build

need-server:
	@$(NEED) server
