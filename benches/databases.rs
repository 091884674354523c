//! Compares sequential lookups in a database with those in memory, including the hash of the token. Also compares the
//! memory of a million tokens with a hand-written map. Without PostgreSQL its row is skipped.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

#[allow(dead_code, reason = "the request benchmark uses the rest")]
mod floor;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tollgate::TokenDigest;

use floor::{shuffled, token};
use tollgate::store::sql::{Database, NewGrant};
use tollgate::{BearerToken, Grant, MemoryStore, TokenStore};

const SAMPLE: usize = 500;
const MEMORY: &str = "TOLLGATE_BENCH_MEMORY";

fn main() {
    if let Ok(what) = std::env::var(MEMORY) {
        return println!("{}", memory_of(&what));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let memory: MemoryStore<()> =
        (0..SAMPLE).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), ()))).collect();
    let in_memory = runtime.block_on(median(&memory));
    println!("| lookup, relative to the memory store | |\n|---|---:|");
    let folder = std::env::temp_dir().join(format!("tollgate-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let sqlite = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
    let misses = runtime.block_on(miss(&sqlite, "tollgate_")).expect("SQLite");
    println!("| SQLite | {:.0} |", misses / in_memory);
    std::fs::remove_dir_all(&folder).expect("remove the folder");
    let postgres = std::env::var("TOLLGATE_TEST_POSTGRES");
    let postgres = postgres.unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    match runtime.block_on(miss(&postgres, "tollgate_bench_")) {
        Some(misses) => println!("| PostgreSQL over loopback | {:.0} |", misses / in_memory),
        None => println!("| PostgreSQL | skipped: no PostgreSQL |"),
    }

    println!("\nMemory for each token at 1,000,000 tokens, by the growth of the process:");
    let [store, map] = ["store", "map"].map(in_a_process_of_its_own);
    println!("MemoryStore {store} bytes, HashMap<String, Arc<T>> {map} bytes: {:.2} times.", store / map);
}

/// Returns the median time of a lookup on separate tables, or `None` if the database does not respond.
async fn miss(url: &str, prefix: &str) -> Option<f64> {
    let database = Database::connect(url).await.ok()?.with_table_prefix(prefix).expect("a prefix");
    database.migrate().await.expect("tables");
    for i in 0..SAMPLE {
        // The token may exist from an earlier run.
        _ = database.import(TokenDigest::of(token(i)), &NewGrant::new(format!("user-{i}"))).await;
    }
    Some(median(&database.store::<()>()).await)
}

async fn median<T: TokenStore>(store: &T) -> f64 {
    let mut times = Vec::new();
    for round in 0..5 {
        for i in shuffled(SAMPLE) {
            let token = token(i);
            let begin = Instant::now();
            let found = store.lookup(&BearerToken::new(&token)).await;
            let time = begin.elapsed().as_nanos() as f64;
            assert!(found.is_ok_and(|found| found.is_some()), "the lookup has to find the token");
            // The first round opens connections and fills caches.
            if round > 0 {
                times.push(time);
            }
        }
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn in_a_process_of_its_own(what: &str) -> f64 {
    let program = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(program).env(MEMORY, what).output().expect("a process");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

/// Returns the bytes for each token by which the process grows with a million tokens and principals.
fn memory_of(what: &str) -> f64 {
    const COUNT: usize = 1_000_000;
    let before = resident();
    let grown = match what {
        "store" => {
            let store: MemoryStore<u32> =
                (0..COUNT).map(|i| (TokenDigest::of(token(i)), Grant::new(format!("user-{i}"), i as u32))).collect();
            let grown = resident() - before;
            assert_eq!(store.len(), COUNT);
            grown
        }
        _ => {
            // A hand-written map: the token itself, and the caller's name and number.
            let map: HashMap<String, Arc<(String, u32)>> =
                (0..COUNT).map(|i| (token(i), Arc::new((format!("user-{i}"), i as u32)))).collect();
            let grown = resident() - before;
            assert_eq!(map.len(), COUNT);
            grown
        }
    };
    grown.round() / COUNT as f64
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().expect("a number") * 1_024.0
}
