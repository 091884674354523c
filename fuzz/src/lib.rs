//! Fuzz targets of tollgate: its parsers and the whole pipeline, each compared with an oracle.
//!
//! The [`oracle`] is written from the reference parser of the project's rules, in another way than the crate. Bytes
//! become text of one character per byte, which is split, collected and compared. The oracle is slow and can be checked
//! by reading. It shares no code with the crate, and passes the conformance vectors by itself.
//!
//! A target takes raw bytes. Under cargo-fuzz it is a libFuzzer target. Otherwise it is a program that runs the check
//! on the given files, so that a finding can be examined on stable.

pub mod check;
pub mod jwt;
pub mod mint;
pub mod oracle;
pub mod pipeline;
pub mod request;
pub mod self_limit;
pub mod vectors;

use std::{env, fs};

/// A check of raw bytes. Panics on a finding.
pub type Check = fn(&[u8]);

/// All targets with their names.
pub const TARGETS: [(&str, Check); 12] = [
    ("header", check::header),
    ("api_key", check::api_key),
    ("query", check::query),
    ("form", check::form),
    ("json", check::json),
    ("text", check::text),
    ("websocket", check::websocket),
    ("client_ip", check::client_ip),
    ("self_limit", self_limit::check),
    ("mint", mint::check),
    ("jwt", jwt::check),
    ("pipeline", pipeline::check),
];

/// Creates a program from a check.
#[macro_export]
macro_rules! target {
    ($check:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $check(data));

        #[cfg(not(fuzzing))]
        fn main() {
            $crate::replay($check);
        }
    };
}

/// Runs a check on the files named on the command line.
pub fn replay(check: Check) {
    for file in env::args_os().skip(1) {
        let data = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        println!("{}: {} bytes", file.display(), data.len());
        check(&data);
    }
}
