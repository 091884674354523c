//! Database URLs. Errors contain no part of a URL, because in a mistyped URL each part may be the password.

#[cfg(feature = "sqlite")]
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
#[cfg(feature = "postgres")]
use sqlx::postgres::PgConnectOptions;
#[cfg(feature = "sqlite")]
use sqlx::sqlite::SqliteConnectOptions;

use super::SqlError;

#[cfg(all(feature = "sqlite", feature = "postgres"))]
pub(super) const SCHEMES: &str = "must begin with sqlite:, postgres:// or postgresql://";
#[cfg(all(feature = "sqlite", not(feature = "postgres")))]
pub(super) const SCHEMES: &str = "must begin with sqlite: (PostgreSQL needs the feature `postgres`)";
#[cfg(all(feature = "postgres", not(feature = "sqlite")))]
pub(super) const SCHEMES: &str = "must begin with postgres:// or postgresql:// (SQLite needs the feature `sqlite`)";

#[cfg(feature = "sqlite")]
pub(super) struct Sqlite {
    pub(super) options: SqliteConnectOptions,
    pub(super) in_memory: bool,
    /// `None` in memory, and for names that only SQLite can resolve.
    file: Option<PathBuf>,
    create: bool,
}

#[cfg(feature = "sqlite")]
const SQLITE: &str = "must have the form sqlite://PATH; supported parameters are mode, cache, immutable and vfs";

/// Parses a SQLite URL. Returns `None` for the URL of another database.
#[cfg(feature = "sqlite")]
pub(super) fn sqlite(url: &str) -> Result<Option<Sqlite>, SqlError> {
    if !url.starts_with("sqlite:") {
        return Ok(None);
    }
    let options: SqliteConnectOptions = url.parse().map_err(|_| SqlError::Url(SQLITE))?;
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let has = |parameter: &str| query.split('&').any(|pair| percent_decode_str(pair).eq(parameter.bytes()));
    let name = path["sqlite:".len()..].trim_start_matches("//");
    let in_memory = matches!(name, ":memory:" | "file::memory:") || has("mode=memory");
    // SQLite itself parses names that begin with `file:`.
    let is_uri = options.get_filename().to_str().is_some_and(|name| name.starts_with("file:"));
    let file = (!in_memory && !is_uri).then(|| options.get_filename().to_owned());
    // SQLite would create files that all users may read.
    Ok(Some(Sqlite { options: options.create_if_missing(false), in_memory, file, create: has("mode=rwc") }))
}

#[cfg(feature = "sqlite")]
impl Sqlite {
    /// Creates the file if it is missing and the URL contains `mode=rwc`.
    pub(super) fn create_if_requested(&self) -> Result<(), SqlError> {
        self.file.as_deref().filter(|_| self.create).map_or(Ok(()), create)
    }

    pub(super) fn is_missing(&self) -> bool {
        self.file.as_deref().is_some_and(|file| matches!(file.try_exists(), Ok(false)))
    }
}

/// Creates an empty file that only its owner may read. SQLite creates the `-wal` and `-shm` files with the same mode.
#[cfg(feature = "sqlite")]
fn create(file: &Path) -> Result<(), SqlError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(file) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(SqlError::NotCreated(error)),
        _ => Ok(()),
    }
}

#[cfg(feature = "postgres")]
const POSTGRES: &str =
    "must have the form postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters percent-encoded";

#[cfg(feature = "postgres")]
const SUPPORTED: &str = "unsupported parameter; supported parameters are application_name, dbname, host, hostaddr, options, \
     options[NAME], password, port, sslcert, sslkey, sslmode, sslrootcert, statement-cache-capacity and user";

/// The parameters that sqlx supports.
#[cfg(feature = "postgres")]
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Parameters of libpq that sqlx ignores. Ignoring them does not make a connection less secure.
#[cfg(feature = "postgres")]
const IGNORED: [&str; 10] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "tcp_user_timeout",
];

/// Parses a PostgreSQL URL. Returns `None` for the URL of another database.
#[cfg(feature = "postgres")]
pub(super) fn postgres(url: &str) -> Result<Option<PgConnectOptions>, SqlError> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let Some(rest) = rest else { return Ok(None) };
    let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = location.split_once('/').map_or("", |(_, path)| path);
    // The password contains `/` or `#`. Its rest would become the database name, which servers repeat in errors.
    if path.contains('@') || rest.contains('#') {
        return Err(SqlError::Url(POSTGRES));
    }
    let is_known = |pair: &str| {
        let key = percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy();
        let is_setting = key.starts_with("options[") && key.ends_with(']');
        is_setting || PARAMETERS.contains(&&*key) || IGNORED.contains(&&*key)
    };
    // A mistyped `sslmode` must not be ignored. Also, sqlx logs unknown parameters with their values.
    if !query.split('&').filter(|pair| !pair.is_empty()).all(is_known) {
        return Err(SqlError::Url(SUPPORTED));
    }
    url.parse().map(Some).map_err(|_| SqlError::Url(POSTGRES))
}

/// Converts an error of connecting. Omits the server's message if it would repeat a setting of the URL.
pub(super) fn rejected(error: sqlx::Error) -> SqlError {
    let code = error.as_database_error().and_then(|reply| reply.code()).unwrap_or_default();
    // PostgreSQL's classes 22 and 42, whose codes have five characters.
    match code.len() == 5 && (code.starts_with("22") || code.starts_with("42")) {
        true => SqlError::Database(format!("the server rejected a parameter of the URL ({code})").into()),
        false => error.into(),
    }
}
