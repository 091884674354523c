//! Lists of grants in pages, and numbers of grants.

use std::num::NonZeroU32;

use sqlx::Row as _;

use super::cursor::{Cursor, Window};
use super::database::{administer, unix_ms};
use super::record::{columns, read};
use super::{Database, GrantRecord, GrantState, SqlError};
use crate::grant::Subject;

/// A filter for grants, and the size and the start of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a query does nothing until it is passed to `Database::page`"]
pub struct GrantQuery {
    subject: Option<Subject>,
    label: Option<String>,
    token_prefix: Option<String>,
    state: Option<GrantState>,
    window: Window,
}

impl GrantQuery {
    /// Creates a query for all grants.
    pub fn new() -> Self {
        Self { subject: None, label: None, token_prefix: None, state: None, window: Window::default() }
    }

    /// Selects the grants of a subject.
    pub fn with_subject(mut self, subject: impl Into<Subject>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Selects the grants whose label contains this text. Upper and lower case are different.
    pub fn with_label(mut self, text: impl Into<String>) -> Self {
        self.label = Some(text.into());
        self
    }

    /// Selects the grants whose newest token has this [prefix](GrantRecord::token_prefix).
    pub fn with_token_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.token_prefix = Some(prefix.into());
        self
    }

    /// Selects the grants that are in this state when the page is read.
    pub fn with_state(mut self, state: GrantState) -> Self {
        self.state = Some(state);
        self
    }

    /// Sets the maximum number of grants in a page. Default: 100.
    pub fn with_limit(mut self, limit: NonZeroU32) -> Self {
        self.window.limit = limit;
        self
    }

    /// Continues after the page that ended with this cursor.
    pub fn after(mut self, cursor: Cursor) -> Self {
        self.window.after = Some(cursor);
        self
    }

    /// Returns the time of creation and the id after which the page begins.
    fn start(&self) -> Result<(i64, &str), SqlError> {
        let Some(cursor) = &self.window.after else { return Ok((i64::MIN, "")) };
        let (created, id) = cursor.position().split_once(':').ok_or(SqlError::Cursor)?;
        Ok((created.parse().map_err(|_| SqlError::Cursor)?, id))
    }
}

impl Default for GrantQuery {
    fn default() -> Self {
        Self::new()
    }
}

/// A page of grants, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrantPage {
    /// The grants.
    pub grants: Vec<GrantRecord>,
    /// The end of this page. `None` if it is the last page.
    pub next: Option<Cursor>,
}

/// The number of grants in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrantCounts {
    /// Grants whose tokens are accepted.
    pub valid: u64,
    /// Grants whose validity has not begun.
    pub not_yet_valid: u64,
    /// Suspended grants.
    pub suspended: u64,
    /// Expired grants.
    pub expired: u64,
    /// Revoked grants.
    pub revoked: u64,
}

/// The state of a grant at the time `$5`, as [`GrantRecord::state`] returns it.
macro_rules! state {
    () => {
        "CASE WHEN g.revoked_ms IS NOT NULL THEN 'revoked' WHEN g.expires_ms <= $5 THEN 'expired' \
         WHEN g.suspended_ms IS NOT NULL THEN 'suspended' WHEN g.not_before_ms > $5 THEN 'not yet valid' ELSE 'valid' END"
    };
}

/// The filter of a query. SQLite uses no index for `$1 IS NULL OR g.subject = $1`, so the condition for the subject is separate.
macro_rules! filter {
    ($subject:literal) => {
        concat!(
            " FROM {p}grants g WHERE ",
            $subject,
            " AND ($2 IS NULL OR {position}(g.label, $2) > 0) \
             AND ($3 IS NULL OR g.token_prefix = $3) AND ($4 IS NULL OR ",
            state!(),
            " = $4)"
        )
    };
}

/// Runs a statement with the parameters of [`filter`]. The statement is planned anew each time, for the filters in use.
macro_rules! query {
    ($database:expr, $statement:expr, $query:expr) => {
        sqlx::query($database.sql($statement))
            .persistent(false)
            .bind($query.subject.as_ref().map(Subject::as_str))
            .bind($query.label.as_deref())
            .bind($query.token_prefix.as_deref())
            .bind($query.state.map(GrantState::as_str))
            .bind($database.now_ms())
    };
}

impl Database {
    /// Reads a page of grants, oldest first. Pages include revoked and expired grants until they are [purged](Self::purge).
    ///
    /// While grants are issued and purged between pages, each other grant is in exactly one page.
    ///
    /// ```no_run
    /// use std::num::NonZeroU32;
    /// use tollgate::store::sql::{Database, GrantQuery, GrantState, SqlError};
    ///
    /// const PAGE: NonZeroU32 = NonZeroU32::new(50).unwrap();
    ///
    /// # async fn example(database: &Database) -> Result<(), SqlError> {
    /// let mut query = GrantQuery::new().with_state(GrantState::Suspended).with_limit(PAGE);
    /// loop {
    ///     let page = database.page(&query).await?;
    ///     for grant in page.grants {
    ///         println!("{} {}", grant.id, grant.subject);
    ///     }
    ///     let Some(next) = page.next else { break };
    ///     query = query.after(next);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SqlError::Cursor`] if the cursor is not from a page of grants, or if the database fails.
    pub async fn page(&self, query: &GrantQuery) -> Result<GrantPage, SqlError> {
        macro_rules! page {
            ($subject:literal) => {
                concat!(
                    "SELECT ",
                    columns!(),
                    filter!($subject),
                    " AND (g.created_ms, g.id) > ($6, $7) ORDER BY g.created_ms, g.id LIMIT $8"
                )
            };
        }
        let statement = match query.subject {
            None => page!("$1 IS NULL"),
            Some(_) => page!("g.subject = $1"),
        };
        let (created, id) = query.start()?;
        let mut grants: Vec<GrantRecord> = administer!(self, Reads, transaction => {
            let page = query!(self, statement, query).bind(created).bind(id).bind(query.window.rows());
            page.fetch_all(&mut *transaction).await?.iter().map(read).collect()
        })?;
        let next = query.window.cut(&mut grants);
        let next = next.map(|last| Cursor::new(format!("{}:{}", unix_ms(last.created_at), last.id)));
        Ok(GrantPage { grants, next })
    }

    /// Counts the grants that a query selects, by state. Ignores the limit and the cursor of the query.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn count(&self, query: &GrantQuery) -> Result<GrantCounts, SqlError> {
        macro_rules! count {
            ($subject:literal) => {
                concat!("SELECT ", state!(), " AS state, COUNT(*) AS number", filter!($subject), " GROUP BY 1")
            };
        }
        let statement = match query.subject {
            None => count!("$1 IS NULL"),
            Some(_) => count!("g.subject = $1"),
        };
        administer!(self, Reads, transaction => {
            let mut counts = GrantCounts::default();
            for row in query!(self, statement, query).fetch_all(&mut *transaction).await? {
                let number: i64 = row.try_get("number")?;
                let count = match row.try_get("state")? {
                    "valid" => &mut counts.valid,
                    "not yet valid" => &mut counts.not_yet_valid,
                    "suspended" => &mut counts.suspended,
                    "expired" => &mut counts.expired,
                    _ => &mut counts.revoked,
                };
                *count = number.unsigned_abs();
            }
            Ok(counts)
        })
    }
}
