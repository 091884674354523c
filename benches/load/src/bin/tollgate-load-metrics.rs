//! The servers with the feature `metrics` and a recorder. The load test starts this program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tollgate_load::main()
}
