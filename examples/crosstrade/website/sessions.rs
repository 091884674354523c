//! Sessions in the database, and the state of a session.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tower_sessions::cookie::SameSite;
use tower_sessions::cookie::time::{self, OffsetDateTime};
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store::{Error, Result};
use tower_sessions::{Expiry, Session, SessionManagerLayer, SessionStore};

use super::error::PageError;
use super::pool::{Pool, from_unix_ms, is_storable, unix_ms};

/// The name of the cookie. Browsers accept this prefix only with `Secure`, `Path=/` and without `Domain`.
pub(crate) const COOKIE: &str = "__Host-crosstrade";
/// A session ends after this time without a page.
pub(crate) const IDLE: Duration = Duration::from_secs(30 * 60);
/// A session ends after this time in any case.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(12 * 3_600);
/// The maximum number of sessions in the list of a user.
const MAX_LISTED: i64 = 50;
/// The key under which a session has its [`State`].
const STATE: &str = "state";

/// The state of a session. Times are milliseconds since 1970.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct State {
    pub(crate) user: String,
    pub(crate) signed_in_ms: i64,
    /// When the password was last given.
    pub(crate) password_ms: i64,
    pub(crate) seen_ms: i64,
    /// The browser and the address at sign-in, for the list of sessions.
    pub(crate) browser: String,
    pub(crate) address: String,
}

/// A session in the list of its user.
pub(crate) struct Listed {
    /// Identifies the session in forms. It opens no session.
    pub(crate) id: String,
    pub(crate) state: State,
}

/// The sessions in the database.
#[derive(Clone)]
pub(crate) struct Sessions {
    pool: Pool,
    wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Sessions {
    pub(crate) fn new(pool: Pool, wall: Arc<dyn Fn() -> SystemTime + Send + Sync>) -> Self {
        Self { pool, wall }
    }

    /// Returns the layer that reads and sets the cookie.
    pub(crate) fn layer(&self) -> SessionManagerLayer<Self> {
        let idle = time::Duration::try_from(IDLE).unwrap_or(time::Duration::MINUTE);
        SessionManagerLayer::new(self.clone())
            .with_name(COOKIE)
            .with_secure(true)
            .with_http_only(true)
            .with_same_site(SameSite::Lax)
            .with_expiry(Expiry::OnInactivity(idle))
    }

    fn now_ms(&self) -> i64 {
        unix_ms((self.wall)())
    }

    /// Returns the columns `user_name`, `data` and `expires_ms` of a session that is extended now.
    fn columns(&self, record: &Record) -> Result<(String, String, i64)> {
        let data = serde_json::to_string(&record.data).map_err(|error| Error::Encode(error.to_string()))?;
        let state = record.data.get(STATE);
        let user = state.and_then(|state| state["user"].as_str()).unwrap_or_default();
        let since = state.and_then(|state| state["signed_in_ms"].as_i64()).unwrap_or_default();
        // Not the date of the record, which is not that of this clock, and may be after the end of a session.
        let expires_ms = (self.now_ms() + IDLE.as_millis() as i64).min(since + MAX_AGE.as_millis() as i64);
        Ok((user.to_owned(), data, expires_ms))
    }

    /// Returns the state of a session, unless it has ended.
    pub(crate) async fn state(&self, session: &Session) -> std::result::Result<Option<State>, PageError> {
        let state = session.get_value(STATE).await?;
        // Another version of the service may have written it.
        let state: Option<State> = state.and_then(|state| serde_json::from_value(state).ok());
        let oldest = self.now_ms() - MAX_AGE.as_millis() as i64;
        Ok(state.filter(|state| state.signed_in_ms > oldest))
    }

    /// Begins the session of a user under a new id, so that the id is unknown before.
    pub(crate) async fn sign_in(
        &self,
        session: &Session,
        (user, browser, address): (String, String, String),
    ) -> std::result::Result<(), PageError> {
        let now = self.now_ms();
        session.cycle_id().await?;
        let state = State { user, signed_in_ms: now, password_ms: now, seen_ms: now, browser, address };
        session.insert(STATE, state).await?;
        Ok(())
    }

    /// Extends a session by a visit.
    pub(crate) async fn touch(&self, session: &Session, state: &mut State) -> std::result::Result<(), PageError> {
        state.seen_ms = self.now_ms();
        session.insert(STATE, &state).await?;
        Ok(())
    }

    /// Remembers that the user has given the password.
    pub(crate) async fn password_given(
        &self,
        session: &Session,
        state: &mut State,
    ) -> std::result::Result<(), PageError> {
        state.password_ms = self.now_ms();
        session.insert(STATE, &state).await?;
        Ok(())
    }

    /// Returns the last [`MAX_LISTED`] sessions of a user that have not ended, the last one first.
    pub(crate) async fn of_user(&self, user: &str) -> std::result::Result<Vec<Listed>, PageError> {
        let (now, user) = (self.now_ms(), user.to_owned());
        let list = "SELECT id, data FROM crosstrade_sessions WHERE user_name = $1 AND expires_ms > $2
            ORDER BY expires_ms DESC LIMIT $3";
        let list = sqlx::query_as(list).bind(user).bind(now).bind(MAX_LISTED);
        let rows: Vec<(String, String)> = self.pool.fetch_all(list).await?;
        let listed = |(id, data): (String, String)| Some(Listed { id, state: state_of(&data)? });
        let mut sessions: Vec<Listed> = rows.into_iter().filter_map(listed).collect();
        sessions.sort_by_key(|session| std::cmp::Reverse(session.state.seen_ms));
        Ok(sessions)
    }

    /// Ends a session of this user by its id in the list.
    pub(crate) async fn end(&self, user: &str, id: &str) -> std::result::Result<(), PageError> {
        if !is_storable(id) {
            return Ok(());
        }
        let end = sqlx::query("DELETE FROM crosstrade_sessions WHERE user_name = $1 AND id = $2").bind(user).bind(id);
        self.pool.execute(end).await?;
        Ok(())
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions(..)")
    }
}

fn state_of(data: &str) -> Option<State> {
    let mut data: serde_json::Map<String, serde_json::Value> = serde_json::from_str(data).ok()?;
    serde_json::from_value(data.remove(STATE)?).ok()
}

/// Returns the digest of a session's id, in hexadecimal digits.
pub(crate) fn digest(id: &Id) -> String {
    Sha256::digest(id.0.to_be_bytes()).iter().fold(String::new(), |mut digits, byte| {
        _ = write!(digits, "{byte:02x}");
        digits
    })
}

fn backend(error: sqlx::Error) -> Error {
    Error::Backend(error.to_string())
}

#[async_trait]
impl SessionStore for Sessions {
    async fn create(&self, record: &mut Record) -> Result<()> {
        let (user, data, expires_ms) = self.columns(record)?;
        // Ids have 128 random bits: one that exists already is an error.
        let create =
            sqlx::query("INSERT INTO crosstrade_sessions (id, user_name, data, expires_ms) VALUES ($1, $2, $3, $4)")
                .bind(digest(&record.id))
                .bind(user)
                .bind(data)
                .bind(expires_ms);
        self.pool.execute(create).await.map_err(backend)
    }

    /// Saves a session that exists. A request that ends after a sign-out must not bring the session back.
    async fn save(&self, record: &Record) -> Result<()> {
        let (user, data, expires_ms) = self.columns(record)?;
        let save =
            sqlx::query("UPDATE crosstrade_sessions SET user_name = $2, data = $3, expires_ms = $4 WHERE id = $1")
                .bind(digest(&record.id))
                .bind(user)
                .bind(data)
                .bind(expires_ms);
        self.pool.execute(save).await.map_err(backend)
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let load = sqlx::query_as("SELECT data, expires_ms FROM crosstrade_sessions WHERE id = $1 AND expires_ms > $2")
            .bind(digest(id))
            .bind(self.now_ms());
        let row: Option<(String, i64)> = self.pool.fetch_optional(load).await.map_err(backend)?;
        let Some((data, expires_ms)) = row else { return Ok(None) };
        let data = serde_json::from_str(&data).map_err(|error| Error::Decode(error.to_string()))?;
        Ok(Some(Record { id: *id, data, expiry_date: OffsetDateTime::from(from_unix_ms(expires_ms)) }))
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let delete = sqlx::query("DELETE FROM crosstrade_sessions WHERE id = $1").bind(digest(id));
        self.pool.execute(delete).await.map_err(backend)
    }
}
