//! `tollgate`: the command line that manages tokens in a database.
//!
//! ```text
//! $ export TOLLGATE_DATABASE=sqlite://tokens.db
//! $ tollgate migrate
//! $ tollgate token issue --subject alice --scope trade --quota 180/min --burst 20 --expires 90d
//! $ tollgate token list
//! $ tollgate token rotate ID --grace 1h
//! $ tollgate token revoke ID
//! ```
//!
//! `issue` and `rotate` write the new token to standard output, so that it can be piped, and everything else to standard
//! error. Exit codes: 0 for success; 1 if there is no such grant, the grant does not allow it, or the database fails; 2 for a
//! wrong command line.
//!
//! Only `migrate` creates files and tables. No error repeats an argument: a mistyped URL may contain a password.
#![forbid(unsafe_code)]

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!("the command line needs a database: choose the feature `sqlite`, `postgres`, or both");

#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod args;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod run;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod show;

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
fn main() {}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let command = match args::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(usage) => return usage.tell(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            show::say(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            show::say(&format!("error: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}
