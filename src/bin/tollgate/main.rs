//! `tollgate`: the command line to manage tokens in a database.
//!
//! ```text
//! $ export TOLLGATE_DATABASE=sqlite://tokens.db
//! $ tollgate migrate
//! $ tollgate token issue --subject alice --scope trade --quota '180/min burst 20' --expires 90d
//! $ tollgate token list
//! $ tollgate token change ID --quota '5/s burst 20'
//! $ tollgate token suspend ID
//! $ tollgate token rotate ID --grace 1h
//! $ tollgate token reveal ID --sealing-keys FILE
//! $ tollgate token revoke ID
//! $ tollgate token export --with-digests --output tokens.jsonl
//! $ tollgate token import tokens.jsonl --format jsonl
//! $ tollgate audit list --grant ID
//! $ tollgate limit show alice --limit 'default=180/min burst 20'
//! $ tollgate check < token.txt
//! $ tollgate doctor
//! ```
//!
//! `issue`, `rotate` and `reveal` write the token to standard output, so that it can be piped. They write everything else to standard
//! error. `export` writes digests into a new file only. With `--json`, every command writes one JSON document to standard output. Errors are text on standard error.
//!
//! Exit codes: 0 for success, 1 if the command failed, 2 for an invalid command line. `check` exits with 1 if the token is
//! rejected, and with 3 if it could not be checked. `doctor` exits with 1 if a check found an error. A command whose reader has
//! ended, such as `head`, exits with 141.
//!
//! Only `migrate` creates files and tables. Errors contain no arguments, because a mistyped URL may contain a password.
#![forbid(unsafe_code)]

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!("the feature `cli` needs a database: enable the feature `sqlite`, `postgres`, or both");

#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod args;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod audit;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod check;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod csv_lines;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod doctor;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod export;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod failure;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod fields;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod generate;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod import;
#[cfg(all(feature = "redis", any(feature = "sqlite", feature = "postgres")))]
mod limit;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod output;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod parse;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod run;
#[cfg(all(feature = "reveal", any(feature = "sqlite", feature = "postgres")))]
mod sealing;
#[cfg(all(any(feature = "redis", feature = "reveal"), any(feature = "sqlite", feature = "postgres")))]
mod secret_file;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod show;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod state;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod usage;

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
fn main() {}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let command = match usage::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(usage) => return usage.print(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            show::print_error(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code())
        }
    }
}
