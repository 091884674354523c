# Recipes for development and CI. They need `just` 1.42, `cargo-hack` and `cargo-deny`. Recipes that need nightly Rust, `cargo-fuzz`
# or `cargo-public-api` are skipped where these are missing.

set shell := ["bash", "-euc"]

export rustc := env("MSRV_RUSTC", "/usr/bin/rustc")

# Runs all checks, in three groups at the same time. CI calls this recipe.
[parallel]
ci: ci-tests ci-checks ci-tools

# Tests. Most of the time, they wait for servers and browsers.
ci-tests: test misuse

# Checks that share the builds of the tests.
ci-checks: fmt clippy features docs projects instructions timing-valgrind

# Checks with builds of their own.
ci-tools: deny shuttle msrv api fuzz-check fuzz

# It leaves out tests of servers, and tests that take many seconds.
#
# Runs format, lints for all features, unit tests and main tests, in under three minutes when warm.
quick: fmt
    cargo clippy --all-features --all-targets -- -D warnings
    cargo test --all-features --lib
    cargo test --all-features --test main -- {{ prepend('--skip=', quick-later) }}

# Tests of servers, and of what needs many seconds.
quick-later := "cli:: cli_ connections:: fleet:: follow:: leases:: outages:: redis servers:: slow_wire:: sql:: sql_ sqlite_files:: store_model::"

# Checks the format.
fmt:
    cargo fmt --all --check

# Runs the lints for no, the default and all features.
clippy:
    cargo clippy --no-default-features --all-targets -- -D warnings
    cargo clippy --all-targets -- -D warnings
    cargo clippy --all-features --all-targets -- -D warnings

# Runs all tests: unit tests, integration tests, conformance, examples, doctests.
test:
    cargo test --all-features

# Installs the clients in Python and JavaScript that tests use, into `target/python` and `target/node`.
clients:
    python3 -m pip install --quiet --upgrade --target target/python \
        grpcio mcp==2.3.0 openapi-python-client openapi-spec-validator requests urllib3
    # One command: without a package file, a second one would remove what the first one installed.
    npm install --loglevel=error --no-audit --no-fund --no-save --prefix target/node \
        @modelcontextprotocol/client@2.4.0 @modelcontextprotocol/sdk@1.32.2 @octokit/core@7 @octokit/plugin-throttling@11 \
        axios@1 axios-retry@4 got@14 ky@1 oauth4webapi@3 oidc-provider@9 undici@7

# Checks each feature alone, all pairs of features that are used in one another's code, and both databases.
features:
    cargo hack check --each-feature --lib
    cargo hack check --feature-powerset --depth 2 --lib --include-features \
        axum,body,metrics,mint,tokio,tracing,resource-metadata
    cargo check --lib --features sqlite,postgres,reveal
    cargo clippy --bins --features cli,sqlite -- -D warnings
    cargo clippy --bins --features cli,postgres -- -D warnings

# Builds the documentation and rejects warnings.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --all-features

# Checks licences and sources of dependencies. Advisories would need the network.
deny:
    cargo deny --all-features check bans licenses sources

# Checks with the oldest supported Rust, for no, the `axum` and all features but those of sqlx and `jwt`, where Debian's 1.85 is
# installed (see .ci/run).
msrv: (where "Rust 1.85" "$rustc --version | grep -q '^rustc 1.85.'" "TOLLGATE_REQUIRE_MSRV" "just msrv-check")

[private]
msrv-check:
    for features in "" axum \
        axum,body,cache,client,introspection,metrics,mint,pepper,redis,resource-metadata,serde,test-util,tokio,tonic,tracing; do \
        RUSTC="$rustc" "${MSRV_CARGO:-/usr/bin/cargo}" check --locked --lib \
            --no-default-features --features "$features" --target-dir target/msrv; \
    done

# Runs limits, leases and the cache under many interleavings of threads (src/sync.rs), for half a minute. Optimized, because the
# models then run several times as fast.
shuttle:
    mkdir -p target
    CARGO_PROFILE_DEV_OPT_LEVEL=1 cargo test --locked --manifest-path tests/interleavings/Cargo.toml --target-dir target/shuttle --lib \
        -- interleavings | tee target/shuttle.log
    grep -q '^test result: ok. [1-9]' target/shuttle.log

# Stable Rust compares the errors only with `RUSTC_BOOTSTRAP`, which this recipe sets for rustdoc alone.
#
# Checks that misuse (src/misuse.rs) fails to compile with the errors named there, after a check that a wrong error is noticed.
misuse:
    mkdir -p target/misuse
    printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc "$@"\n' > target/misuse/rustdoc
    chmod +x target/misuse/rustdoc
    printf '/// ```compile_fail,E0599\n/// let number: u8 = "";\n/// ```\npub struct WrongCode;\n' > target/misuse/wrong.rs
    ! target/misuse/rustdoc --test --edition 2024 target/misuse/wrong.rs > target/misuse/wrong.log
    grep -q 'Some expected error codes were not found' target/misuse/wrong.log
    RUSTDOC="$PWD/target/misuse/rustdoc" cargo test --doc --all-features -- misuse | tee target/misuse/log
    grep -q '^test result: ok. [1-9]' target/misuse/log

# Compares the public API with `api.txt`. After an intended change run `just api-renew`.
api: (where "cargo-public-api for nightly Rust" "cargo +nightly public-api --version" "TOLLGATE_REQUIRE_NIGHTLY" "just api-read && diff -u api.txt target/api.txt || { echo 'the public API differs from api.txt: run just api-renew' >&2; exit 1; }")

# Writes the public API to `api.txt`.
api-renew: api-read
    cp target/api.txt api.txt

# Omits the unstable traits of nightly Rust, and traits that all types have.
[private]
api-read:
    mkdir -p target
    CARGO_TARGET_DIR=target/nightly cargo +nightly public-api --all-features --omit blanket-impls > target/api-all.txt
    grep -vE '^impl.* core::(marker::(Freeze|UnsafeUnpin|StructuralPartialEq)|panic::unwind_safe::[A-Za-z]+) for ' \
        target/api-all.txt > target/api.txt

# Checks format and lints of the programs with their own Cargo projects, whose dependencies stay out of the crate.
projects:
    for project in benches/{compare,instructions,load,redis,timing} tests/interleavings; do \
        cargo fmt --manifest-path $project/Cargo.toml --check -- --config-path rustfmt.toml; \
        cargo clippy --locked --ignore-rust-version --manifest-path $project/Cargo.toml --target-dir target -- -D warnings; \
    done
    cargo clippy --locked --manifest-path tests/interleavings/Cargo.toml --tests --target-dir target -- -D warnings

# Skips the check where valgrind or the compiler of the figures is missing. `--write` updates the file.
#
# Fails if a request takes 5 % more instructions than benches/instructions/figures.txt says.
instructions *options:
    cargo run --locked --release --manifest-path benches/instructions/Cargo.toml -- {{options}}

# Measures the gate against the floor (COMPARE.md). Ends with a table of ratios.
bench:
    cargo bench --bench request --features axum

# Measures four policies against one, and two threads against one.
policies:
    cargo bench --bench policies --features axum

# Measures the stores against `MemoryStore`, and the memory of a token.
stores:
    cargo bench --bench stores --bench databases --features axum,cache,postgres,sqlite

# Measures a lookup of a JWT against `jsonwebtoken` alone.
jwt:
    cargo bench --bench jwt --features jwt

# The options are those of a profiled run, see benches/redis/src/main.rs.
#
# Measures limits in Redis against a bare call of the same script and against another crate, and what leases save.
redis-bench *options:
    cargo run --locked --release --ignore-rust-version --manifest-path benches/redis/Cargo.toml -- {{options}}

# `just compare --tokens 100 --rounds 3` is shorter. `--raw FILE` writes all figures to a file: those of COMPARE.md are in
# benches/compare/figures.jsonl. tower-rate-limiter asks for Rust 1.96, and compiles with 1.95.
#
# Measures the gate against other crates in one run; ends with ratios.
compare *options:
    cargo run --ignore-rust-version --release --manifest-path benches/compare/Cargo.toml -- {{options}}

# Writes the instructions and cache misses of an admitted request by function to benches/compare/profile.txt. Needs valgrind.
profile:
    cargo run --ignore-rust-version --locked --release --manifest-path benches/compare/Cargo.toml --bin profile

# Tests by dudect's method that the time of a lookup or a comparison does not depend on the stored digests.
timing:
    cargo run --locked --release --manifest-path benches/timing/Cargo.toml

# Tests by memcheck that the comparison of digests does not branch on them.
timing-valgrind: (where "valgrind with its headers" "command -v valgrind && test -e ${VALGRIND_INCLUDE:-/usr/include}/valgrind/memcheck.h" "TOLLGATE_REQUIRE_VALGRIND" "cargo run --locked --release --manifest-path benches/timing/Cargo.toml --features valgrind --bin timing-valgrind")

# `wrk` drives them over loopback, for four to five minutes.
#
# Measures the reference service and a plain hyper server against baselines without gates.
load:
    cargo build --locked --release --manifest-path benches/load/Cargo.toml --features metrics --bin tollgate-load-metrics
    cargo run --locked --release --manifest-path benches/load/Cargo.toml

# Runs the tests of the fuzz oracles on stable Rust, then builds all fuzz targets. The tests share the builds of dependencies, so
# fuzz/Cargo.lock has the versions of Cargo.lock where it can.
fuzz-check: && (where "cargo-fuzz for nightly Rust" "cargo +nightly fuzz --version" "TOLLGATE_REQUIRE_NIGHTLY" "cd fuzz && cargo +nightly fuzz build --fuzz-dir . --sanitizer none")
    cd fuzz && cargo fmt --check && cargo clippy --all-targets --target-dir ../target -- -D warnings && \
        cargo test --target-dir ../target

# Tests that take longer than 50 ms or are about other folders.
mutants-later := "store_model:: levels:: readiness:: body_sockets::a_silent_client \
    body_json::the_generator body_masking::with_credentials body_json::json_extraction body_replay::the_handler \
    challenge_properties::the_gate_accepts challenge_properties::accepted challenge_properties::scopes_follow \
    limits::buckets_of_idle limits::two_ policies::concurrent_charges quotas::a_rate \
    quotas::another_burst quotas::constructors quotas::every_decision quotas::no_ quotas::changes_between \
    quotas::large_costs \
    anonymous_limits::a_million changing_quotas::concurrent client_libraries:: head_requests::node keep_alive:: language:: \
    resets::waiting resource_metadata::clients:: rpc:: usage::reset_during"

# Code in these files that is compiled with the feature `redis` only.
mutants-of-redis := 'L>::(authenticated|capacity|key_bytes|limit|with_new_table) |for Bytes>|Bytes::of|with_nodes|decide_counted|' \
    + 'ts(<L>)?::follow|LimitState::(policy|quota)_of|::with_time( |$)|impl Clock for Time'

# Checks that a test fails for each mutation of three steps. Needs `cargo-mutants`. The recipes below check other folders.
mutants FILES='src/{extract/*,limit/*,limit/memory/*,quota/bucket,quota/cell,respond/*}.rs':
    just mutants-of '{{ FILES }}' "--exclude-re '{{ mutants-of-redis }}'" "{{ prepend('--skip=', mutants-later) }}"

# Checks mutations of the gate.
mutants-gate FILES='src/gate/{*,body/*,metadata/*}.rs':
    just mutants-of '{{ FILES }}' '--features resource-metadata' "{{ prepend('--skip=', mutants-later) }}" ',utoipa'

# Checks mutations of the cache and of minted tokens.
mutants-cache FILES='src/{store/cached/*,token/mint}.rs':
    just mutants-of '{{ FILES }}' '--features cache,mint,test-util' 'cached:: mint:: secrets:: redaction::'

# The tests of limits in Redis that take longer than a second.
mutants-redis-later := "no_window set_of_buckets refunds_are usage_in the_script memory_is flood_of fleet:: \
    redis_addresses redis_cluster redis_contention redis_outages redis_servers"

# Checks mutations of the limits in Redis, which must run. The unit tests run first: they catch most of the mutants. The checks of
# `tollgate doctor` are not included.
mutants-redis FILES='src/{limit/redis/*,limit/*,limit/memory/*,quota/clock}.rs':
    just mutants-of '{{ FILES }}' \
        "--exclude src/limit/redis/diagnose.rs --features redis --re 'limit/redis|{{ mutants-of-redis }}'" \
        "redis leases:: {{ prepend('--skip=', mutants-redis-later) }}" '' \
        "redis:: {{ prepend('--skip=', mutants-redis-later) }}" \
        'redis_addresses:: redis_anonymous:: redis_cluster:: redis_outages::'

# Runs the quick tests first, then the slow ones, then all with more features. Fails if a surviving mutant is not explained in
# `mutants.txt`. Mutants of a file that two modules include are listed twice.
[private]
mutants-of files features quick more='' units='' slow='':
    rm -rf mutants.out
    {{ if units == '' { '' } else { "just mutants-run '" + files + "' " + features + ' --cargo-arg=--lib -- -- ' + units } }}
    just mutants-run '{{ files }}' {{ features }} --cargo-arg=--test=main -- -- {{ quick }}
    {{ if slow == '' { '' } else { "just mutants-run '" + files + "' " + features + ' --cargo-arg=--test=main -- -- ' + slow } }}
    just mutants-run '{{ files }}' {{ features }} --features cache,metrics,mint,pepper,test-util{{ more }} \
        --cargo-arg=--lib --cargo-arg=--test=main
    comm -23 <(sort -u mutants.out/missed.txt | sed -E 's/:[0-9]+:[0-9]+:/:/' | sort) <(grep '^src/' mutants.txt | sort) \
        | (! grep .) || { echo 'no test fails for these mutants' >&2; exit 1; }

# Runs the mutants that survived before. `cargo mutants` exits with 2 if mutants survived, and with 3 if tests hung, which counts
# as caught.
[private]
[positional-arguments]
mutants-run files *options:
    TOLLGATE_REQUIRE_SERVERS=1 PROPTEST_CASES=32 \
        cargo mutants --jobs 2 --iterate --file "$1" "${@:2}" || case $? in 2 | 3) ;; *) exit 1 ;; esac
    cat mutants.out/timeout.txt >> mutants.out/caught.txt

# Runs each fuzz target for SECONDS, two at a time, from the seeds of the test vectors. Fails on a finding.
fuzz SECONDS='10': (where "cargo-fuzz for nightly Rust" "cargo +nightly fuzz --version" "TOLLGATE_REQUIRE_NIGHTLY" "just fuzz-run " + SECONDS)

# Uses no sanitizer: the crate has no unsafe code, and a run is several times as fast. The longest seed of a target limits the
# length of its inputs, which is 64 KiB for bodies. `keep_seed` mutates long seeds although shorter inputs reach the same code.
[private]
[working-directory: 'fuzz']
fuzz-run seconds:
    cargo run --quiet --target-dir ../target --example seeds
    mkdir -p $(cargo +nightly fuzz list --fuzz-dir . | sed 's|^|corpus/|')
    cargo +nightly fuzz list --fuzz-dir . | xargs -P 2 -I '{}' \
        cargo +nightly fuzz run --sanitizer none --fuzz-dir . '{}' 'corpus/{}' 'seeds/{}' -- \
            -dict=tollgate.dict -max_total_time={{ seconds }} -keep_seed=1 -timeout=10 -print_final_stats=1

# Runs a command that needs an optional tool. Without the tool the command is skipped, or fails if the variable `required` is
# set.
[private]
where what available required command:
    if ( {{ available }} ) >/dev/null 2>&1; then \
        {{ command }}; \
    elif [ -n "${{ '{' }}{{ required }}:-}" ]; then \
        echo "missing: {{ what }}" >&2; exit 1; \
    else \
        echo "skipped: {{ what }} is not installed"; \
    fi
