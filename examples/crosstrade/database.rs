//! Tokens in a database, so that they survive a restart, and other programs can issue and revoke them:
//! `tollgate token issue --database URL --subject demo --scope trade`.

use std::error::Error;
use std::time::{Duration, SystemTime};

use tollgate::mint::{Secret, TokenFormat};
use tollgate::store::sql::{Database, GrantRecord, LastUsed, NewGrant};
use tollgate::store::{CachedStore, CheckedStore, CircuitBreaker, Invalidation};
use tollgate::{BoxStore, StoreError};

use crate::app::{TRADE, User};
use crate::tokens::Tokens;

/// How old what the cache says may be, where it was not told of a change: then the database cannot be reached.
const TTL: Duration = Duration::from_secs(60);
/// How often a file is asked whether it has changed, and a server whether it lives: a revocation works after so long, at the
/// latest, in SQLite, and at once in PostgreSQL.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
const NOTE_EVERY: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(2);
/// The tokens of one run of the program.
const DAY: Duration = Duration::from_secs(86_400);

/// A file beside the program, which is created if it is missing.
pub(crate) fn default_url() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "crosstrade".into());
    format!("sqlite://{}?mode=rwc", program.with_extension("db").display())
}

/// Opens the database, and creates its tables if they are missing.
pub(crate) async fn open(url: &str) -> Result<Database, Box<dyn Error>> {
    let database = Database::connect(url).await?.with_deadline(DEADLINE);
    database.migrate().await?;
    Ok(database)
}

/// Two tokens of the user `demo`, one of which may trade. They work for a day, over restarts too.
pub(crate) async fn demo_tokens(database: &Database) -> Result<(Secret, Secret), Box<dyn Error>> {
    // Those of earlier days.
    database.purge(SystemTime::now()).await?;
    let grant = NewGrant::new("demo").with_expiry(SystemTime::now() + DAY);
    let trader = grant.clone().with_label("may trade").with_scopes([TRADE])?;
    let reader = grant.with_label("may only read");
    let format = TokenFormat::new("ct")?;
    Ok((database.issue(&format, &trader).await?.secret, database.issue(&format, &reader).await?.secret))
}

/// Stacks the stores in front of the database: junk is rejected by its form, cached grants are returned immediately, and a database
/// that is down is not asked. Changes by any process are told to the cache and to the open sockets.
pub(crate) fn tokens(database: &Database) -> Result<Tokens, Box<dyn Error>> {
    let store = database
        .store_with(|grant: GrantRecord| async move { Ok::<_, StoreError>(User { name: grant.subject.to_string() }) });
    let breaker = CircuitBreaker::with_timeout(store.clone(), DEADLINE);
    let cache = CachedStore::new(breaker.clone(), TTL)?;
    let last_used = LastUsed::new(database);
    // Tokens that were issued under another prefix, or come from elsewhere, are asked for as they are.
    let checked = CheckedStore::new(last_used.note(cache.clone()), TokenFormat::new("ct")?).with_imported_tokens();

    // Sockets ask the database itself: they have to know what is true now.
    let tokens = Tokens::new(BoxStore::new(checked), move |token| store.get(token));
    let (followed, live) = (database.clone(), tokens.live().clone());
    let on_change = move |change: Invalidation| {
        cache.invalidate(&change);
        live.tell(&change);
        if change == Invalidation::Everything {
            // Perhaps the database is back.
            breaker.probe_now();
        }
    };
    tokio::spawn(async move { followed.watch(FOLLOW_EVERY, on_change).await });
    tokio::spawn(async move { last_used.run(NOTE_EVERY).await });
    Ok(tokens)
}
