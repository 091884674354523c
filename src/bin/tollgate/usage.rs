//! Parsing of the command line, and errors that do not repeat it.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::args::Cli;
use crate::failure::Failure;
use crate::show;

/// A text that is printed instead of running a command: an error of the command line, or help.
#[derive(Debug)]
pub(crate) struct Usage {
    /// The text, with colors.
    text: String,
    is_error: bool,
}

impl Usage {
    /// Prints the text. Returns the exit code.
    pub(crate) fn print(self) -> ExitCode {
        if self.is_error {
            show::eprint(&self.text);
            return ExitCode::from(2);
        }
        match show::print(&self.text).map_err(Failure::from) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => ExitCode::from(failure.code()),
        }
    }
}

/// Parses the command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Usage> {
    Cli::try_parse_from(args).map_err(|mut error| {
        hide_arguments(&mut error);
        Usage { text: error.render().ansi().to_string(), is_error: error.use_stderr() }
    })
}

/// Removes the user's input from an error, because it may be a URL with a password, or a token. Names from this file remain.
fn hide_arguments(error: &mut clap::Error) {
    let typed: &[ContextKind] = match error.kind() {
        ErrorKind::UnknownArgument if has_option_name(error) => &[],
        ErrorKind::UnknownArgument => &[ContextKind::InvalidArg],
        ErrorKind::InvalidSubcommand => &[ContextKind::InvalidSubcommand],
        _ => &[ContextKind::InvalidValue],
    };
    for kind in typed {
        // An empty value means a missing value.
        if matches!(error.get(*kind), Some(ContextValue::String(typed)) if !typed.is_empty()) {
            error.insert(*kind, ContextValue::String("(not shown)".to_owned()));
        }
    }
    // Suggestions repeat the input, such as "to pass 'X' as a value, use '-- X'".
    error.remove(ContextKind::Suggested);
}

/// Returns whether the unknown argument is the name of an option. Names are not secret. Tokens that begin with `--` have an
/// underscore. The parser has removed `=` and a value.
fn has_option_name(error: &clap::Error) -> bool {
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidArg) else { return false };
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    typed.strip_prefix("--").is_some_and(|name| !name.is_empty() && is_name(name))
}
