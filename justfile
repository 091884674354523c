# What CI runs, and what everybody runs before a commit. Needs `just`, `cargo-hack` and `cargo-deny`; what needs
# nightly Rust or `cargo-public-api` is skipped where they are missing.

set shell := ["bash", "-euc"]

# All checks.
ci: fmt clippy test features docs deny msrv shuttle misuse api

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

# Budgets under many orders in which threads can come (src/limit/interleavings.rs), for half a minute.
shuttle:
    mkdir -p target/shuttle
    RUSTFLAGS="--cfg tollgate_shuttle" cargo test --lib --all-features --target-dir target/shuttle -- interleavings \
        | tee target/shuttle/log
    grep -q '^test result: ok. [1-9]' target/shuttle/log

# What must not compile (src/misuse.rs) fails by the errors named there, which only nightly Rust compares.
misuse: (nightly "rustdoc" "cargo +nightly test --doc --all-features --target-dir target/nightly -- misuse")

# The public API is what `api.txt` says. After a change that is meant, `just api-renew`.
api: (nightly "cargo-public-api" "just api-read && diff -u api.txt target/api.txt || { echo 'the public API is not that of api.txt: just api-renew' >&2; exit 1; }")

api-renew: api-read
    cp target/api.txt api.txt

# Without the traits of nightly Rust's own, and those that all types have.
[private]
api-read:
    mkdir -p target
    CARGO_TARGET_DIR=target/nightly cargo +nightly public-api --all-features --omit blanket-impls > target/api-all.txt
    grep -vE '^impl.* core::(marker::(Freeze|UnsafeUnpin|StructuralPartialEq)|panic::unwind_safe::[A-Za-z]+) for ' \
        target/api-all.txt > target/api.txt

[private]
nightly tool command:
    if cargo +nightly --version >/dev/null 2>&1 && command -v {{tool}} >/dev/null; then \
        {{command}}; \
    elif [ -n "${TOLLGATE_REQUIRE_NIGHTLY:-}" ]; then \
        echo "nightly Rust or {{tool}} is missing" >&2; exit 1; \
    else \
        echo "skipped: nightly Rust or {{tool}} is not installed"; \
    fi

# What the gate costs beside the floor. Ends with a table of ratios.
bench:
    cargo bench --bench road --features axum
