//! Unique names for servers that tests share, and the line that a test prints where a server is missing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Says that a test is skipped for lack of something; fails if `TOLLGATE_REQUIRE_SERVERS` is set.
pub fn skip(missing: &str, test: &str) {
    assert!(
        std::env::var_os("TOLLGATE_REQUIRE_SERVERS").is_none(),
        "{test}: no {missing}, and TOLLGATE_REQUIRE_SERVERS is set"
    );
    say(format_args!("skipped: no {missing}: {test}"));
}

/// Past the capture of the test harness, so that it is seen.
pub fn say(what: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    _ = writeln!(std::io::stderr(), "{what}");
}

pub fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut random = [0; 6];
    getrandom::fill(&mut random).unwrap();
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{random}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
