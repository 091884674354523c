# What CI runs, and what everybody runs before a commit. Needs `just`, `cargo-hack` and `cargo-deny`; what needs nightly
# Rust, `cargo-fuzz` or `cargo-public-api` is skipped where they are missing.

set shell := ["bash", "-euc"]

export rustc := env("MSRV_RUSTC", "/usr/bin/rustc")

# All checks.
ci: fmt clippy test features docs deny msrv projects instructions timing-valgrind shuttle misuse api fuzz-check fuzz

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

# Each feature alone; all pairs of those that bring little with them, and of the databases.
features:
    cargo hack check --each-feature --lib
    cargo hack check --feature-powerset --depth 2 --lib \
        --exclude-features default,cache,cli,introspection,postgres,redis,sql,sqlite
    cargo check --lib --features sqlite,postgres
    cargo clippy --bins --features cli,sqlite -- -D warnings
    cargo clippy --bins --features cli,postgres -- -D warnings
    cargo test --lib

docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features

# Licences, sources and duplicates of dependencies. Advisories would need the network.
deny:
    cargo deny --all-features check bans licenses sources

# The oldest Rust, for no, the `axum` and all features, where Debian's 1.85 is installed (see .ci/run).
msrv: (where "Rust 1.85" "$rustc --version | grep -q '^rustc 1.85.'" "TOLLGATE_REQUIRE_MSRV" "just msrv-check")

[private]
msrv-check:
    for features in "" axum axum,body,cache,cli,introspection,metrics,mint,pepper,postgres,redis,serde,sqlite,test-util,tracing; do \
        RUSTC="$rustc" "${MSRV_CARGO:-/usr/bin/cargo}" check --locked --lib --bins \
            --no-default-features --features "$features" --target-dir target/msrv; \
    done

# Budgets under many orders in which threads can come (src/limit/interleavings.rs), for half a minute.
shuttle:
    mkdir -p target/shuttle
    RUSTFLAGS="--cfg tollgate_shuttle" cargo test --lib --all-features --target-dir target/shuttle -- interleavings \
        | tee target/shuttle/log
    grep -q '^test result: ok. [1-9]' target/shuttle/log

# What must not compile (src/misuse.rs) fails by the errors named there, which only nightly Rust compares.
misuse: (where "nightly Rust" "cargo +nightly --version" "TOLLGATE_REQUIRE_NIGHTLY" "cargo +nightly test --doc --all-features --target-dir target/nightly -- misuse")

# The public API is what `api.txt` says. After a change that is meant, `just api-renew`.
api: (where "cargo-public-api for nightly Rust" "cargo +nightly public-api --version" "TOLLGATE_REQUIRE_NIGHTLY" "just api-read && diff -u api.txt target/api.txt || { echo 'the public API is not that of api.txt: just api-renew' >&2; exit 1; }")

api-renew: api-read
    cp target/api.txt api.txt

# Without the traits of nightly Rust's own, and those that all types have.
[private]
api-read:
    mkdir -p target
    CARGO_TARGET_DIR=target/nightly cargo +nightly public-api --all-features --omit blanket-impls > target/api-all.txt
    grep -vE '^impl.* core::(marker::(Freeze|UnsafeUnpin|StructuralPartialEq)|panic::unwind_safe::[A-Za-z]+) for ' \
        target/api-all.txt > target/api.txt

# Format and lints of the benchmarks that are projects of their own, so that their dependencies are not the crate's.
projects:
    for project in compare instructions load timing; do \
        cargo fmt --manifest-path benches/$project/Cargo.toml --check -- --config-path rustfmt.toml; \
        cargo clippy --locked --manifest-path benches/$project/Cargo.toml --target-dir target/projects -- -D warnings; \
    done

# Fails if a request takes 5 % more instructions than benches/instructions/figures.txt says; `--write` updates the file.
# Skips where valgrind or the compiler that the figures belong to is missing.
instructions *options:
    cargo run --locked --release --manifest-path benches/instructions/Cargo.toml -- {{options}}

# What the gate costs beside the floor. Ends with a table of ratios.
bench:
    cargo bench --bench request --features axum

# What four policies cost beside one, and what a second thread brings.
policies:
    cargo bench --bench policies --features axum

# What stores cost beside the one in memory; what a token takes.
stores:
    cargo bench --bench stores --bench databases --features axum,cache,postgres,sqlite

# What budgets in Redis cost beside a bare call of the same script, and what leases save, in one table.
redis-bench:
    cargo bench --bench redis --features redis

# What the gate costs beside its peers, in one run; ends with ratios. `just compare --tokens 100 --rounds 3` is shorter.
compare *options:
    cargo run --release --manifest-path benches/compare/Cargo.toml -- {{options}}

# Whether the time of a look-up or a comparison tells anything of the stored digests, by dudect's test.
timing:
    cargo run --locked --release --manifest-path benches/timing/Cargo.toml

# Whether the comparison of digests branches on them, by memcheck.
timing-valgrind: (where "valgrind with its headers" "command -v valgrind && test -e ${VALGRIND_INCLUDE:-/usr/include}/valgrind/memcheck.h" "TOLLGATE_REQUIRE_VALGRIND" "cargo run --locked --release --manifest-path benches/timing/Cargo.toml --features valgrind --bin timing-valgrind")

# What the gate costs a whole service: the reference service compared with a baseline without gates, driven by `wrk` over loopback.
load:
    cargo run --locked --release --manifest-path benches/load/Cargo.toml

# The oracles' own tests, for which stable will do; then all fuzz targets are built.
fuzz-check: && (where "cargo-fuzz for nightly Rust" "cargo +nightly fuzz --version" "TOLLGATE_REQUIRE_NIGHTLY" "cd fuzz && cargo +nightly fuzz build --fuzz-dir . --sanitizer none")
    cd fuzz && cargo fmt --check && cargo clippy --all-targets -- -D warnings && cargo test

# Tests that take more than a twentieth of a second or are about other folders.
mutants-later := "store_model:: levels:: readiness:: body_sockets::a_silent_client \
    body_json::the_generator body_masking::with_credentials body_json::json_extraction body_replay::the_handler \
    challenge_properties::the_gate_accepts challenge_properties::accepted challenge_properties::scopes_follow \
    failures::tests::the_table_has limits::buckets_of_idle limits::two_ policies::concurrent_charges quotas::a_rate \
    quotas::another_burst quotas::constructors quotas::every_decision quotas::no_ quotas::changes_between \
    quotas::large_costs"

# What of these files is compiled with the feature `redis` only.
mutants-of-redis := 'RateLimits::rules|divided_by|decide_counted|impl Clock for Time'

# Whether a test notices each small change to three stations, within an hour on two cores. Needs `cargo-mutants`.
mutants FILES='src/{extract,limit,respond}/*.rs':
    just mutants-of '{{ FILES }}' "--exclude-re '{{ mutants-of-redis }}'" "{{ prepend('--skip=', mutants-later) }}"

# The same of budgets in Redis, which must be there. Nobody has gone yet through all that survives it.
mutants-redis FILES='src/limit/{redis/*,clock,memory,rule}.rs':
    just mutants-of '{{ FILES }}' "--features redis --re 'limit/redis|{{ mutants-of-redis }}'" 'redis:: leases:: --skip=no_window'

# Unit tests first, which are built soonest; then what is quick of the others; then all. What survives all of them is
# explained in `mutants.txt`, or the recipe fails.
[private]
mutants-of files features quick:
    rm -rf mutants.out
    just mutants-run '{{ files }}' {{ features }} --cargo-arg=--lib -- -- {{ quick }}
    just mutants-run '{{ files }}' {{ features }} --cargo-arg=--test=main -- -- {{ quick }}
    just mutants-run '{{ files }}' {{ features }} --features mint,pepper,test-util \
        --cargo-arg=--lib --cargo-arg=--test=main
    comm -23 <(sed -E 's/:[0-9]+:[0-9]+:/:/' mutants.out/missed.txt | sort) <(grep '^src/' mutants.txt | sort) \
        | (! grep .) || { echo 'no test notices these changes' >&2; exit 1; }

# What was not noticed before. Exits with 2 if mutants survived, and with 3 if tests hung, which is noticed as well.
[private]
[positional-arguments]
mutants-run files *options:
    TOLLGATE_REQUIRE_SERVERS=1 PROPTEST_CASES=32 \
        cargo mutants --jobs 2 --iterate --file "$1" "${@:2}" || case $? in 2 | 3) ;; *) exit 1 ;; esac
    cat mutants.out/timeout.txt >> mutants.out/caught.txt

# Each fuzz target for so many seconds, two at a time, from the seeds that the vectors give. Fails on a finding.
fuzz SECONDS='20': (where "cargo-fuzz for nightly Rust" "cargo +nightly fuzz --version" "TOLLGATE_REQUIRE_NIGHTLY" "just fuzz-run " + SECONDS)

# Without a sanitizer: the crate has no unsafe code, and a check is several times as fast.
[private]
[working-directory: 'fuzz']
fuzz-run seconds:
    cargo run --quiet --example seeds
    mkdir -p $(cargo +nightly fuzz list --fuzz-dir . | sed 's|^|corpus/|')
    cargo +nightly fuzz list --fuzz-dir . | xargs -P 2 -I '{}' \
        cargo +nightly fuzz run --sanitizer none --fuzz-dir . '{}' 'corpus/{}' 'seeds/{}' -- \
            -dict=tollgate.dict -max_total_time={{ seconds }} -max_len=4096 -timeout=10 -print_final_stats=1

# Runs what needs something that not everybody has. Where that is missing it is skipped, or fails if the variable says that
# it must be there.
[private]
where what available required command:
    if ( {{ available }} ) >/dev/null 2>&1; then \
        {{ command }}; \
    elif [ -n "${{ '{' }}{{ required }}:-}" ]; then \
        echo "missing: {{ what }}" >&2; exit 1; \
    else \
        echo "skipped: {{ what }} is not installed"; \
    fi
