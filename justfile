# What CI runs, and what everybody runs before a commit. Needs `just`, `cargo-hack` and `cargo-deny`; the parts for
# fuzzing need `cargo-fuzz` and nightly Rust, and are skipped where these are missing.

set shell := ["bash", "-euc"]

# All checks.
ci: fmt clippy test features docs deny msrv fuzz-check fuzz

fmt:
    cargo fmt --all --check

# Lints for no, the default and all features.
clippy:
    cargo clippy --no-default-features --all-targets -- -D warnings
    cargo clippy --all-targets -- -D warnings
    cargo clippy --all-features --all-targets -- -D warnings

# The README's test command: unit tests, integration tests, conformance, examples, doctests.
test:
    cargo test --all-features

# Each feature alone, and all pairs, since none of them is heavy.
features:
    cargo hack check --feature-powerset --depth 2 --lib
    cargo test --lib

docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features

# Licences, sources and duplicates of dependencies. Advisories would need the network.
deny:
    cargo deny --all-features check bans licenses sources

# The oldest Rust, for no, the `axum` and all features, where Debian's 1.85 is installed (see .ci/run).
msrv:
    if [ -x "${MSRV_RUSTC:-/usr/bin/rustc}" ] && "${MSRV_RUSTC:-/usr/bin/rustc}" --version | grep -q '^rustc 1\.85\.'; then \
        for features in "" axum axum,body,serde,test-util; do \
            RUSTC="${MSRV_RUSTC:-/usr/bin/rustc}" "${MSRV_CARGO:-/usr/bin/cargo}" check --locked --lib \
                --no-default-features --features "$features" --target-dir target/msrv; \
        done; \
    elif [ -n "${TOLLGATE_REQUIRE_MSRV:-}" ]; then \
        echo "Rust 1.85 is missing" >&2; exit 1; \
    else \
        echo "skipped: Rust 1.85 is not installed"; \
    fi

# What the gate costs beside the floor. Ends with a table of ratios.
bench:
    cargo bench --bench road --features axum

# What the gate costs a whole service: the reference service beside a twin without gates, driven by `wrk` over loopback.
load:
    cargo run --locked --release --manifest-path benches/load/Cargo.toml

# The oracles' own tests, for which stable will do; then all fuzz targets are built.
fuzz-check:
    cd fuzz && cargo fmt --check && cargo clippy --all-targets -- -D warnings && cargo test
    if {{ has_fuzz }}; then cargo +nightly fuzz build --sanitizer none; {{ otherwise_skip_fuzz }}

# Each fuzz target for so many seconds, from the seeds that the vectors give. Fails on a finding. Without a sanitizer: the
# crate has no unsafe code, and a check is several times as fast.
fuzz SECONDS='20':
    if {{ has_fuzz }}; then \
        cd fuzz; \
        cargo run --quiet --example seeds; \
        for target in $(cargo +nightly fuzz list --fuzz-dir .); do \
            mkdir -p "corpus/$target"; \
            cargo +nightly fuzz run --sanitizer none --fuzz-dir . "$target" "corpus/$target" "seeds/$target" -- \
                -dict=tollgate.dict -max_total_time={{ SECONDS }} -max_len=4096 -timeout=10 -print_final_stats=1; \
        done; \
    {{ otherwise_skip_fuzz }}

has_fuzz := "cargo +nightly fuzz --version >/dev/null 2>&1"
otherwise_skip_fuzz := '''
    elif [ -n "${TOLLGATE_REQUIRE_NIGHTLY:-}" ]; then
        echo "nightly Rust or cargo-fuzz is missing" >&2; exit 1;
    else
        echo "skipped: nightly Rust or cargo-fuzz is not installed";
    fi'''
