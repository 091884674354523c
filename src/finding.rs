//! [`Finding`]: the result of one check of a server. `tollgate doctor` prints findings.

use std::error::Error;
#[cfg(any(feature = "postgres", feature = "redis"))]
use std::time::{Duration, SystemTime};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the check, such as `clock`.
    pub check: &'static str,
    /// The result.
    pub severity: Severity,
    /// The finding, and the way to mend it. Never contains a URL or a password.
    pub detail: String,
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is to be done.
    Ok,
    /// The service works, with a risk.
    Warning,
    /// A part of the service does not work.
    Error,
}

impl Severity {
    /// Returns the name of the severity, such as `warning`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Finding {
    /// Creates a finding of a check that succeeded.
    #[must_use]
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, detail: detail.into() }
    }

    /// Creates a warning.
    #[must_use]
    pub fn warning(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, detail: detail.into() }
    }

    /// Creates an error.
    #[must_use]
    pub fn error(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, severity: Severity::Error, detail: detail.into() }
    }

    /// Compares the clock of a server with this clock before and after the request.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn clock(check: &'static str, server: SystemTime, [before, after]: [SystemTime; 2]) -> Self {
        const WARNING: Duration = Duration::from_secs(1);
        // Tokens with short lifetimes begin or end at the wrong time.
        const ERROR: Duration = Duration::from_secs(30);

        // The server read its clock between both times. A difference within them is no certain difference.
        let skew = match (before.duration_since(server), server.duration_since(after)) {
            (Ok(behind), _) => behind,
            (_, Ok(ahead)) => ahead,
            _ => Duration::ZERO,
        };
        let detail = || {
            format!(
                "the clocks of the server and of this machine differ by {:.1} s: set them by NTP",
                skew.as_secs_f64()
            )
        };
        match skew {
            skew if skew >= ERROR => Self::error(check, detail()),
            skew if skew >= WARNING => Self::warning(check, detail()),
            _ => Self::ok(check, "the clocks of the server and of this machine differ by less than 1 s"),
        }
    }
}

/// Returns the text of an error and of its sources.
#[must_use]
pub fn with_sources(error: &(dyn Error + 'static)) -> String {
    let mut text = without_line(error.to_string());
    let mut source = error.source();
    while let Some(error) = source {
        let cause = without_line(error.to_string());
        // Some errors already contain the text of their source.
        if !text.contains(&cause) {
            text = text + ": " + &cause;
        }
        source = error.source();
    }
    text
}

/// Removes the line in the source of PostgreSQL, which sqlx adds to errors of the server.
fn without_line(text: String) -> String {
    match text.rsplit_once(" at line ") {
        Some((start, line)) if line.bytes().all(|byte| byte.is_ascii_digit()) => start.to_owned(),
        _ => text,
    }
}

#[cfg(all(test, any(feature = "postgres", feature = "redis")))]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_by_more_than_the_request_took_are_reported() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let severity = |server| Finding::clock("clock", at(server), [at(100_000), at(102_000)]).severity;
        assert_eq!([99_001, 100_000, 101_000, 102_999].map(severity), [Severity::Ok; 4]);
        assert_eq!([70_001, 99_000, 103_000, 131_999].map(severity), [Severity::Warning; 4]);
        assert_eq!([0, 70_000, 132_000, 900_000].map(severity), [Severity::Error; 4]);
    }
}
