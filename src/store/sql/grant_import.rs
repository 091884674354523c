//! Grants to import, and the options of an import.

use std::time::SystemTime;

use super::admin::random_id;
use super::database::{from_unix_ms, unix_ms};
use super::export::{StoredGrant, StoredToken};
use super::{GrantRecord, NewGrant, SqlError};
use crate::token::TokenLocation;
use crate::token::mint::TokenFormat;

/// A grant to import, with its tokens and its history.
///
/// ```
/// use tollgate::TokenDigest;
/// use tollgate::store::sql::{GrantImport, NewGrant};
///
/// let digest = TokenDigest::from_hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")?;
/// let grant = GrantImport::new(NewGrant::new("alice").with_id("key-17")).with_token(digest);
/// # let _ = grant;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a grant is imported by `Database::import_all`"]
pub struct GrantImport {
    grant: NewGrant,
    tokens: Vec<StoredToken>,
    created_at: Option<SystemTime>,
    revoked_at: Option<SystemTime>,
    suspended_at: Option<SystemTime>,
    last_used: Option<SystemTime>,
    last_used_location: Option<TokenLocation>,
    token_prefix: Option<String>,
}

impl GrantImport {
    /// Creates a grant without tokens.
    pub fn new(grant: NewGrant) -> Self {
        Self {
            grant,
            tokens: Vec::new(),
            created_at: None,
            revoked_at: None,
            suspended_at: None,
            last_used: None,
            last_used_location: None,
            token_prefix: None,
        }
    }

    /// Adds a token, by its digest. A grant has at most one token that was not [rotated](StoredToken::with_rotation).
    pub fn with_token(mut self, token: impl Into<StoredToken>) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// Sets the time of issue. Default: the time of the import.
    pub fn with_created_at(mut self, at: SystemTime) -> Self {
        self.created_at = Some(at);
        self
    }

    /// Marks the grant as revoked.
    pub fn with_revoked_at(mut self, at: SystemTime) -> Self {
        self.revoked_at = Some(at);
        self
    }

    /// Marks the grant as suspended.
    pub fn with_suspended_at(mut self, at: SystemTime) -> Self {
        self.suspended_at = Some(at);
        self
    }

    /// Sets the last use, and the location of the token in it.
    pub fn with_last_used(mut self, at: SystemTime, location: Option<TokenLocation>) -> Self {
        (self.last_used, self.last_used_location) = (Some(at), location);
        self
    }

    /// Sets the [prefix](TokenFormat::prefix) of the newest token, without the underscore.
    pub fn with_token_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.token_prefix = Some(prefix.into());
        self
    }

    /// Checks the names, the token prefix and the tokens of the grant. [`Database::import_all`](super::Database::import_all) calls this method.
    ///
    /// # Errors
    ///
    /// [`SqlError::Name`], or [`SqlError::Corrupt`] if the prefix is invalid or more than one token was not rotated.
    pub fn check(&self) -> Result<(), SqlError> {
        self.grant.check()?;
        if self.token_prefix.as_deref().is_some_and(|prefix| TokenFormat::new(prefix).is_err()) {
            return Err(SqlError::Corrupt("token_prefix"));
        }
        match self.tokens.iter().filter(|token| token.rotated_until.is_none()).count() {
            0 | 1 => Ok(()),
            _ => Err(SqlError::Corrupt("rotated_until_ms")),
        }
    }

    /// Returns the rows, as the tables store them.
    pub(super) fn rows(self, now: SystemTime) -> Result<Rows, SqlError> {
        self.check()?;
        let has_id = self.grant.id.is_some();
        let id = match &self.grant.id {
            Some(id) => id.clone(),
            None => random_id()?,
        };
        let stored = |ms: Option<i64>| ms.and_then(from_unix_ms);
        let time = |time: Option<SystemTime>| stored(time.map(unix_ms));
        let created_at = self.created_at.unwrap_or(now);
        let (not_before, expires_at) = (stored(self.grant.not_before_ms()), stored(self.grant.expires_ms()));
        let grant = GrantRecord {
            id,
            subject: self.grant.subject,
            label: self.grant.label,
            scopes: self.grant.scopes,
            quota: self.grant.quota,
            not_before,
            expires_at,
            sender_constrained: self.grant.sender_constrained,
            principal: self.grant.principal,
            created_at,
            revoked_at: time(self.revoked_at),
            suspended_at: time(self.suspended_at),
            last_used: time(self.last_used),
            last_used_location: self.last_used_location,
            token_prefix: self.token_prefix,
        };
        Ok(Rows { grant, tokens: self.tokens, has_id, is_inserted: false, max_active: self.grant.max_active })
    }
}

impl From<StoredGrant> for GrantImport {
    /// Imports an exported grant, such as one of another database.
    fn from(StoredGrant { grant, tokens }: StoredGrant) -> Self {
        let new = NewGrant {
            id: Some(grant.id),
            subject: grant.subject,
            label: grant.label,
            scopes: grant.scopes,
            quota: grant.quota,
            not_before: grant.not_before,
            expires_at: grant.expires_at,
            sender_constrained: grant.sender_constrained,
            principal: grant.principal,
            max_active: None,
        };
        Self {
            grant: new,
            tokens,
            created_at: Some(grant.created_at),
            revoked_at: grant.revoked_at,
            suspended_at: grant.suspended_at,
            last_used: grant.last_used,
            last_used_location: grant.last_used_location,
            token_prefix: grant.token_prefix,
        }
    }
}

/// The options of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until they are passed to `Database::import_all`"]
pub struct ImportOptions {
    pub(super) skip_existing: bool,
    pub(super) dry_run: bool,
}

impl ImportOptions {
    /// Creates options: each grant must be new, and is imported.
    pub fn new() -> Self {
        Self::default()
    }

    /// Skips grants whose id exists, and grants without an id whose token exists. So an import can be repeated. An existing grant
    /// is not changed: a token that was rotated since is not added again. A token of another grant is still an error.
    pub fn with_skip_existing(mut self) -> Self {
        self.skip_existing = true;
        self
    }

    /// Checks everything, conflicts included, and imports nothing.
    pub fn with_dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// The result of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportCounts {
    /// The number of imported grants.
    pub imported: u64,
    /// The number of skipped grants.
    pub skipped: u64,
}

/// The rows of a grant.
pub(super) struct Rows {
    pub(super) grant: GrantRecord,
    pub(super) tokens: Vec<StoredToken>,
    /// Whether the import names the id. Otherwise it is random.
    pub(super) has_id: bool,
    pub(super) is_inserted: bool,
    pub(super) max_active: Option<u32>,
}
