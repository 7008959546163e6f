# Weft's everyday commands; `make` alone lists them.
#
# Needed beforehand: Debian or Ubuntu, make, Rust 1.95 or newer, and root for everything that makes network
# namespaces (demo, test, bench). `make setup` installs the rest.
#
# There is no rust-toolchain.toml, on purpose. rustup matches its channel by name: a machine that has 1.95 as
# `stable` would download it again as `1.95.0`, and the other way round. `rust-version` in Cargo.toml already
# makes cargo refuse anything older.

TARGET     := x86_64-unknown-linux-musl
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Where `make build` puts the programs; the tests take them from here (weftd too: it is copied beside the plugins).
BIN_DIR    := $(abspath $(TARGET_DIR)/$(TARGET)/release)
export WEFT_BIN_DIR := $(BIN_DIR)

.PHONY: help setup build demo test bench fmt lint clean
.NOTPARALLEL:

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what this machine lacks (as root), and say what
	@.ci/setup $(TARGET)

# Static programs: what is tested is what would be shipped. podtool is the only program in the test images.
# The plugins run at a fixed address: each of their starts would otherwise begin by writing a thousand pointers, a
# twentieth of an ADD or DEL (ARCHITECTURE.md, "Decisions"). The daemon, which lives on, stays position independent.
FIXED      := -C relocation-model=static
build: ## Build weft, weft-ipam, weftd, weft-wg and the tests' podtool: static, optimised
	cargo rustc --release --target $(TARGET) -p weft --bin weft -- $(FIXED)
	cargo rustc --release --target $(TARGET) -p weft-ipam --bin weft-ipam -- $(FIXED)
	cargo build --release --target $(TARGET) -p podtool
	cargo build --profile daemon --target $(TARGET) -p weftd -p weft-wg
	@install -m 755 $(addprefix $(TARGET_DIR)/$(TARGET)/daemon/,weftd weft-wg) $(BIN_DIR)
	@ls -l $(addprefix $(BIN_DIR)/,weft weft-ipam weftd weft-wg podtool)

demo: setup build ## Run a cluster of three nodes with pods, stop etcd and weftd under it, remove it all (ARGS=--one-node: one node)
	cargo run -p netns-tests --bin demo -- --bin-dir $(BIN_DIR) $(ARGS)

# Without root most of the netns tests skip themselves, loudly; NETNS_TESTS=require makes that a failure.
test: setup build ## Run all tests
	@if cargo nextest --version >/dev/null 2>&1; then \
	    set -x; cargo nextest run --workspace --no-fail-fast; \
	else \
	    set -x; cargo test --workspace --lib --bins --tests --no-fail-fast; \
	fi
	cargo test --workspace --doc

# A profile of its own: the release profile aborts on panic, and then nothing would clean up the namespaces.
# Static, as its processes are the floor that the plugin is compared with.
bench: setup build ## Measure ADD and DEL beside the reference plugins (ARGS=…), then clusters of up to 5,000 nodes (SCALE=…)
	cargo run --profile bench-tools --target $(TARGET) -p netns-tests --bin bench -- $(ARGS)
	cargo run --profile bench-tools --target $(TARGET) -p netns-tests --bin scale -- $(SCALE)

fmt: ## Format the code
	cargo fmt --all

lint: ## Run clippy as CI does
	cargo clippy --workspace --all-targets -- -D warnings

clean: ## Remove what cargo built
	cargo clean
