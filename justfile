# What CI runs, and what everybody runs before a commit. Needs `just`, `cargo-hack` and `cargo-deny`.

set shell := ["bash", "-euc"]

# All checks.
ci: fmt clippy test features docs deny msrv projects instructions timing-valgrind

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

# Format and lints of the benchmarks that are projects of their own, so that their dependencies are not the crate's.
projects:
    for project in compare instructions timing; do \
        cargo fmt --manifest-path benches/$project/Cargo.toml --check -- --config-path rustfmt.toml; \
        cargo clippy --locked --manifest-path benches/$project/Cargo.toml -- -D warnings; \
    done

# Fails if the road takes 5 % more instructions than benches/instructions/figures.txt says; `--write` writes them anew.
# Skips where valgrind or the compiler that the figures belong to is missing.
instructions *options:
    cargo run --locked --release --manifest-path benches/instructions/Cargo.toml -- {{options}}

# What the gate costs beside the floor. Ends with a table of ratios.
bench:
    cargo bench --bench road --features axum

# What the gate costs beside its peers, in one run; ends with ratios. `just compare --tokens 100 --rounds 3` is shorter.
compare *options:
    cargo run --release --manifest-path benches/compare/Cargo.toml -- {{options}}

# Whether the time of a look-up or a comparison tells anything of the stored digests, by dudect's test.
timing:
    cargo run --locked --release --manifest-path benches/timing/Cargo.toml

# Whether the comparison of digests branches on them, by memcheck. Skips where valgrind or its headers are missing.
timing-valgrind:
    if command -v valgrind >/dev/null && [ -e "${VALGRIND_INCLUDE:-/usr/include}/valgrind/memcheck.h" ]; then \
        cargo run --locked --release --manifest-path benches/timing/Cargo.toml --features valgrind --bin timing-valgrind; \
    elif [ -n "${TOLLGATE_REQUIRE_VALGRIND:-}" ]; then \
        echo "valgrind or its headers are missing" >&2; exit 1; \
    else \
        echo "skipped: valgrind or its headers are not installed"; \
    fi
