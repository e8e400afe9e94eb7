#!/usr/bin/env bash
# Every check and every test, cheapest first, with one build of the test profile. `make test` and CI both run this.
# The last line printed is the test runner's own summary.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

step "fmt"
cargo fmt --all --check
step "clippy"
cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
step "docs"
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --document-private-items --quiet
step "build"
cargo build --locked --workspace --bins --tests
step "doc tests"
cargo test --locked --workspace --doc --quiet
step "tests"
# Live tests want the machine for themselves: .config/nextest.toml runs them one at a time, after the others.
if cargo nextest --version >/dev/null 2>&1; then
  exec cargo nextest run --locked --workspace --no-fail-fast "$@"
fi
exec cargo test --locked --workspace --bins --tests --lib "$@" -- --test-threads=1
