//! The errors of commands.

use std::fmt;
use std::io;

use tollgate::finding::with_sources;
use tollgate::store::sql::SqlError;
use tollgate::{QuotaError, ScopeError};

use crate::show;

/// The exit code of a token that could not be checked.
pub(crate) const NOT_CHECKED: u8 = 3;

/// The error of a command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is invalid in a way that its parser cannot detect.
    Usage(String),
    Failed(String),
    Database(SqlError),
    /// The token could not be checked, so nothing is known about it.
    NotChecked(String),
    /// The result is not a success, and is already printed. The command exits with this code.
    Printed(u8),
    /// The reader of standard output, such as `head`, has ended.
    NoReader,
}

impl Failure {
    /// Prints the error, unless the result is already printed.
    pub(crate) fn print(&self) {
        if !matches!(self, Self::Printed(_) | Self::NoReader) {
            show::print_error(&self.to_string());
        }
    }

    /// Returns the exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Database(SqlError::Url(_) | SqlError::Prefix | SqlError::Name | SqlError::Cursor) => 2,
            Self::Failed(_) | Self::Database(_) => 1,
            Self::NotChecked(_) => NOT_CHECKED,
            Self::Printed(code) => *code,
            // As shells report a program that was ended by SIGPIPE.
            Self::NoReader => 141,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) | Self::NotChecked(text) => f.write_str(text),
            Self::Printed(_) | Self::NoReader => Ok(()),
            Self::Database(error) => {
                // Rows and servers wrote parts of some errors.
                f.write_str(&show::plain(&with_sources(error)))?;
                f.write_str(match error {
                    SqlError::NoFile => "; check `--database`, or create the file with `tollgate migrate`",
                    SqlError::NoTables => {
                        "; check `--database` and `--table-prefix`, or create the tables with `tollgate migrate`"
                    }
                    #[cfg(feature = "reveal")]
                    SqlError::UnknownSealingKey { .. } => "; add it to the sealing keys",
                    SqlError::Older { .. } => "; upgrade the tables with `tollgate migrate`",
                    _ => "",
                })
            }
        }
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Database(error)
    }
}

impl From<ScopeError> for Failure {
    /// Replaces the text, because `ScopeError` contains the scope.
    fn from(_: ScopeError) -> Self {
        Self::Usage("invalid scope: must be printable ASCII without quotes and backslashes".to_owned())
    }
}

impl From<QuotaError> for Failure {
    fn from(error: QuotaError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NoReader,
            _ => Self::Failed(format!("cannot write to standard output: {error}")),
        }
    }
}
