//! Tokens in a database. They survive a restart, and other programs can issue and revoke them:
//! `tollgate token issue --database URL --subject alice --scope trade`.

use std::error::Error;
use std::time::Duration;

use tollgate::mint::TokenFormat;
use tollgate::store::sql::{Database, GrantRecord, LastUsed, Sealer};
use tollgate::store::{CachedStore, CheckedStore, CircuitBreaker, Invalidation};
use tollgate::{BoxStore, StoreError};

use crate::app::User;
use crate::sealing;
use crate::tokens::Tokens;

/// The maximum age of cache entries whose changes are not reported, because the database cannot be reached.
const TTL: Duration = Duration::from_secs(60);
/// The interval at which SQLite is polled for changes, and the connection to PostgreSQL is checked. A revocation takes effect
/// within it in SQLite, and immediately in PostgreSQL.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// The interval at which last uses are written. The account page is that late.
const LAST_USED_INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the URL of a file beside the program, which is created if it is missing.
pub(crate) fn default_url() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "crosstrade".into());
    format!("sqlite://{}?mode=rwc", program.with_extension("db").display())
}

/// Opens the database, and creates its tables if they are missing. New tokens are sealed, for the account page.
pub(crate) async fn open(url: &str) -> Result<Database, Box<dyn Error>> {
    if is_in_memory(url) {
        return Err("the database must be a file: the website has connections of its own".into());
    }
    // First the URL, then the file with the key.
    let database = Database::connect(url).await?;
    open_with(database, sealing::sealer(url)?).await
}

/// Creates the tables of a database if they are missing, and seals new tokens with these keys.
pub(crate) async fn open_with(database: Database, sealer: Sealer) -> Result<Database, Box<dyn Error>> {
    let database = database.with_timeout(TIMEOUT).with_sealer(sealer);
    database.migrate().await?;
    Ok(database)
}

/// Returns whether a SQLite database is in memory, where each connection has its own.
fn is_in_memory(url: &str) -> bool {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    matches!(path, "sqlite::memory:" | "sqlite://:memory:")
        || (path.starts_with("sqlite:") && query.split('&').any(|pair| pair == "mode=memory"))
}

/// Stacks the stores in front of the database. Malformed tokens are rejected by their format, cached grants are returned
/// immediately, and a database that is down is not asked. Changes by any process invalidate the cache and refresh the open
/// sockets.
pub(crate) fn tokens(database: &Database) -> Result<Tokens, Box<dyn Error>> {
    let store = database
        .store_with(|grant: GrantRecord| async move { Ok::<_, StoreError>(User { name: grant.subject.to_string() }) });
    let breaker = CircuitBreaker::with_timeout(store.clone(), TIMEOUT);
    let cache = CachedStore::new(breaker.clone(), TTL)?;
    let last_used = LastUsed::new(database);
    // Tokens with another prefix, or imported from elsewhere, are looked up without the check.
    let checked = CheckedStore::new(last_used.wrap(cache.clone()), TokenFormat::new("ct")?).with_imported_tokens();

    // Sockets ask the database and not the cache: they need the current state.
    let tokens = Tokens::new(BoxStore::new(checked), move |token| store.get(token));
    let (followed, live) = (database.clone(), tokens.live().clone());
    let on_change = move |change: Invalidation| {
        cache.invalidate(&change);
        live.refresh(&change);
        if change == Invalidation::Everything {
            // The database may be back.
            breaker.probe_now();
        }
    };
    tokio::spawn(async move { followed.watch(WATCH_INTERVAL, on_change).await });
    tokio::spawn(async move { last_used.run(LAST_USED_INTERVAL).await });
    Ok(tokens)
}
