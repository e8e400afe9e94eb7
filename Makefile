# Tandem's recipes, the same for people and for CI. `make` alone lists them.
#
#   ARGS=…    goes to the program or the test runner: `make run ARGS=--once`, `make live ARGS=restart`
#   TARGET=x  the fuzz target: `make fuzz TARGET=sdp`

MAKEFLAGS += --no-print-directory
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
ARGS ?=
FUZZ_SECONDS ?= 600

.DEFAULT_GOAL := help
.PHONY: help run test check bench sim live soak fuzz ci clean setup setup-test

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## build release, start everything, place a demo call, stay up (ARGS=--once: exit after the call)
	@cargo build --locked --release -p control-plane -p media-engine --bins
	@exec $(TARGET_DIR)/release/tandem up --demo $(ARGS)

test: setup-test ## every check and every test, live ones too
	@exec scripts/test.sh $(ARGS)

check: setup ## formatting, clippy, docs (and licences, where cargo-deny is installed)
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --document-private-items
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; \
	else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

bench: setup ## micro-benchmarks of the protocol crates, and the load generator against an engine of its own
	cargo bench --locked --workspace --benches $(ARGS)

sim: setup ## scenarios in virtual time (SEED=n replays one)
	TANDEM_SIM_SEED=$(SEED) cargo nextest run --locked -p tandem-tests --test scenarios $(ARGS)

live: setup-test ## live calls with real peers (ARGS=name runs those whose name has it)
	cargo build --locked --workspace --bins --tests
	cargo nextest run --locked --workspace -E 'package(tandem-tests) & binary(live)' --no-fail-fast $(ARGS)

soak: setup-test ## live calls that take minutes (about six)
	cargo build --locked --workspace --bins --tests
	cargo nextest run --locked --workspace -E 'package(tandem-tests) & test(/soak/)' --run-ignored only --no-fail-fast $(ARGS)

fuzz: setup ## ten minutes of one fuzz target (TARGET=sdp, FUZZ_SECONDS=600); needs cargo-fuzz
	@test -n "$(TARGET)" || { echo "which? make fuzz TARGET=…"; ls proto/fuzz/corpus; exit 1; }
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz"; exit 1; }
	@mkdir -p target/fuzz/$(TARGET)
	RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir proto/fuzz/libfuzzer $(TARGET) target/fuzz/$(TARGET) proto/fuzz/corpus/$(TARGET) -- -max_total_time=$(FUZZ_SECONDS)

ci: ## what CI runs
	@exec .ci/run

clean: ## remove what was built (not the state folder .tandem)
	cargo clean
	rm -rf .venv

setup:
	@scripts/setup.sh run

setup-test:
	@scripts/setup.sh test
