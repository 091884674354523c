//! The users of the website and their passwords.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;

use super::error::PageError;
use super::pool::{Pool, is_storable};

/// The maximum number of passwords that are hashed at the same time. Each takes 19 MiB and some 20 ms of a core.
pub(crate) const MAX_HASHES: usize = 2;
/// The longest password in bytes.
pub(crate) const MAX_PASSWORD: usize = 256;

/// A user of the website. The name is also the subject of the user's grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    /// Whether the user works for support.
    pub(crate) is_support: bool,
}

/// The users in the database.
#[derive(Clone)]
pub(crate) struct Users {
    pool: Pool,
    hashes: Arc<Semaphore>,
    /// Checked for names that do not exist, so that the time of an answer does not depend on the name.
    decoy: Arc<str>,
}

impl Users {
    pub(crate) async fn new(pool: Pool) -> Result<Self, PageError> {
        let mut users = Self { pool, hashes: Arc::new(Semaphore::new(MAX_HASHES)), decoy: "".into() };
        users.decoy = users.hash("decoy".to_owned()).await?.into();
        Ok(users)
    }

    /// Adds a user, or changes the password of an existing one. The user's sessions stay open: a page for new passwords has to end
    /// them.
    pub(crate) async fn set(&self, user: &User, password: &str) -> Result<(), PageError> {
        let hash = self.hash(password.to_owned()).await?;
        let set = "INSERT INTO crosstrade_users (name, password, is_support) VALUES ($1, $2, $3)
            ON CONFLICT (name) DO UPDATE SET password = $2, is_support = $3";
        let set = sqlx::query(set).bind(&user.name).bind(hash).bind(i64::from(user.is_support));
        self.pool.execute(set).await?;
        Ok(())
    }

    /// Returns the user with this name and password.
    pub(crate) async fn authenticate(&self, name: &str, password: String) -> Result<Option<User>, PageError> {
        let find = sqlx::query_as("SELECT password, is_support FROM crosstrade_users WHERE name = $1").bind(name);
        let found: Option<(String, i64)> = self.pool.fetch_optional(find).await?;
        let (hash, is_support) = match found {
            Some((hash, is_support)) => (hash, Some(is_support != 0)),
            None => (self.decoy.to_string(), None),
        };
        let verify = move || {
            let hash = PasswordHash::new(&hash).ok()?;
            Argon2::default().verify_password(password.as_bytes(), &hash).ok()
        };
        let is_correct = self.in_turn(verify).await?.is_some();
        let user = |is_support| User { name: name.to_owned(), is_support };
        Ok(is_support.filter(|_| is_correct).map(user))
    }

    pub(crate) async fn find(&self, name: &str) -> Result<Option<User>, PageError> {
        if !is_storable(name) {
            return Ok(None);
        }
        let find = sqlx::query_as("SELECT is_support FROM crosstrade_users WHERE name = $1").bind(name);
        let found: Option<(i64,)> = self.pool.fetch_optional(find).await?;
        Ok(found.map(|(is_support,)| User { name: name.to_owned(), is_support: is_support != 0 }))
    }

    /// Returns at most 50 users whose name contains this text, in order of their names.
    pub(crate) async fn search(&self, text: &str) -> Result<Vec<User>, PageError> {
        if !is_storable(text) {
            return Ok(Vec::new());
        }
        // `position` and `instr` have no common name, and `LIKE` would interpret `%` and `_`.
        let all =
            "SELECT name, is_support FROM crosstrade_users WHERE REPLACE(LOWER(name), LOWER($1), '') <> LOWER(name)
            OR $1 = '' ORDER BY name LIMIT 50";
        let all = sqlx::query_as(all).bind(text);
        let found: Vec<(String, i64)> = self.pool.fetch_all(all).await?;
        Ok(found.into_iter().map(|(name, is_support)| User { name, is_support: is_support != 0 }).collect())
    }

    async fn hash(&self, password: String) -> Result<String, PageError> {
        let hash = move || Argon2::default().hash_password(password.as_bytes()).map(|hash| hash.to_string());
        self.in_turn(hash).await?.map_err(|_| PageError::Internal("a password cannot be hashed"))
    }

    /// Runs this outside of the threads that serve requests, and only a few at the same time.
    pub(crate) async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PageError> {
        let turn = Arc::clone(&self.hashes).acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            // Until the work is done, also if the client disconnects.
            let _turn = turn;
            work()
        });
        done.await.map_err(|_| PageError::Internal("a password cannot be checked"))
    }
}

/// Returns whether a name and a password can be those of a user. Others are not hashed.
pub(crate) fn is_plausible(name: &str, password: &str) -> bool {
    (1..=255).contains(&name.len()) && is_storable(name) && (1..=MAX_PASSWORD).contains(&password.len())
}
