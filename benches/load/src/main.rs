//! The load test. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tollgate_load::main()
}
