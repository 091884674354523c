//! The audit trail: each change of a grant and each reveal of its token, with the actor and the time.

use std::num::NonZeroU32;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::admin::PURGE;
use super::cursor::{Cursor, Window};
use super::database::{administer, from_unix_ms, unix_ms};
use super::new_grant::check_name;
use super::{Database, GrantRecord, SqlError};
use crate::grant::{GrantId, Subject};

/// A filter for the audit trail, and the size and the start of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a query does nothing until it is passed to `Database::audit`"]
pub struct AuditQuery {
    grant: Option<GrantId>,
    subject: Option<Subject>,
    actor: Option<String>,
    action: Option<String>,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    window: Window,
}

impl AuditQuery {
    /// Creates a query for all entries.
    pub fn new() -> Self {
        Self {
            grant: None,
            subject: None,
            actor: None,
            action: None,
            since: None,
            until: None,
            window: Window::default(),
        }
    }

    /// Selects the entries about a grant.
    pub fn with_grant(mut self, id: impl Into<GrantId>) -> Self {
        self.grant = Some(id.into());
        self
    }

    /// Selects the entries about the grants of a subject.
    pub fn with_subject(mut self, subject: impl Into<Subject>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Selects the entries of an [actor](Database::acting_as).
    pub fn with_actor(mut self, actor: impl Into<String>) -> Self {
        self.actor = Some(actor.into());
        self
    }

    /// Selects the entries with this [action](AuditEntry::action).
    pub fn with_action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    /// Selects the entries at or after this time.
    pub fn since(mut self, time: SystemTime) -> Self {
        self.since = Some(time);
        self
    }

    /// Selects the entries before this time.
    pub fn until(mut self, time: SystemTime) -> Self {
        self.until = Some(time);
        self
    }

    /// Sets the maximum number of entries in a page. Default: 100.
    pub fn with_limit(mut self, limit: NonZeroU32) -> Self {
        self.window.limit = limit;
        self
    }

    /// Continues after the page that ended with this cursor.
    pub fn after(mut self, cursor: Cursor) -> Self {
        self.window.after = Some(cursor);
        self
    }
}

impl Default for AuditQuery {
    fn default() -> Self {
        Self::new()
    }
}

/// A page of the audit trail, newest entries first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
    /// The end of this page. `None` if it is the last page.
    pub next: Option<Cursor>,
}

/// A change of a grant, or a reveal of its token. Entries never contain tokens or digests.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditEntry {
    /// The time of the change.
    pub at: SystemTime,
    /// The actor, as given to [`Database::acting_as`].
    pub actor: Option<String>,
    /// The action: `issue`, `import`, `rotate`, `reveal`, `change`, `suspend`, `resume`, `revoke` or `purge`.
    pub action: String,
    /// The id of the grant.
    pub grant: GrantId,
    /// The subject of the grant.
    pub subject: Subject,
    /// The changed fields as a JSON object, such as `{"quota": {"from": "3/s", "to": "20/s"}}`. Names that end with `_ms` are
    /// times in milliseconds since 1970.
    pub changes: Option<String>,
}

/// The statement of a page. Each filter has its own, because SQLite uses no index for `$1 IS NULL OR grant_id = $1`.
macro_rules! page {
    ($filter:literal) => {
        concat!(
            "SELECT id, at_ms, actor, action, grant_id, subject, CAST(changes AS TEXT) FROM {p}audit WHERE ",
            $filter,
            " AND id < $3 AND at_ms >= $4 AND at_ms < $5 AND ($6 IS NULL OR actor = $6) AND ($7 IS NULL OR action = $7) \
             ORDER BY id DESC LIMIT $8"
        )
    };
}

/// A row of the trail as the database returns it.
type Row = (i64, i64, Option<String>, String, String, String, Option<String>);

impl Database {
    /// Returns a handle whose changes carry the name of an actor in the audit trail. Handles share the connections.
    ///
    /// ```no_run
    /// use tollgate::store::sql::{AuditQuery, Database, SqlError};
    ///
    /// # async fn example(database: &Database) -> Result<(), SqlError> {
    /// database.acting_as("support:maria")?.suspend(&"key-17".into()).await?;
    ///
    /// for entry in database.audit(&AuditQuery::new().with_grant("key-17")).await?.entries {
    ///     println!("{} by {}", entry.action, entry.actor.as_deref().unwrap_or("unknown"));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`SqlError::Name`] if the name is empty, is longer than 255 characters, or has a control character.
    pub fn acting_as(&self, actor: &str) -> Result<Self, SqlError> {
        check_name(actor, 1)?;
        Ok(self.clone().map(|inner| inner.actor = Some(actor.into())))
    }

    /// Reads a page of the audit trail, newest entries first. All changes of grants by the methods of this type are in the trail. Changes by
    /// other programs are not.
    ///
    /// Transactions that run at the same time may end in another order than their entries have. On PostgreSQL, an entry can
    /// therefore appear behind newer entries.
    ///
    /// The entries of purged grants remain until they are [purged](Self::purge_audit) themselves.
    ///
    /// # Errors
    ///
    /// [`SqlError::Cursor`] if the cursor is not from a page of the trail, or if the database fails.
    pub async fn audit(&self, query: &AuditQuery) -> Result<AuditPage, SqlError> {
        let statement = match (&query.grant, &query.subject) {
            (None, None) => page!("$1 IS NULL AND $2 IS NULL"),
            (Some(_), None) => page!("grant_id = $1 AND $2 IS NULL"),
            (None, Some(_)) => page!("$1 IS NULL AND subject = $2"),
            (Some(_), Some(_)) => page!("grant_id = $1 AND subject = $2"),
        };
        let before: i64 = match &query.window.after {
            None => i64::MAX,
            Some(cursor) => cursor.position().parse().map_err(|_| SqlError::Cursor)?,
        };
        let mut rows: Vec<Row> = administer!(self, Reads, transaction => {
            let page = sqlx::query_as(self.sql(statement))
                .bind(query.grant.as_ref().map(GrantId::as_str))
                .bind(query.subject.as_ref().map(Subject::as_str))
                .bind(before)
                .bind(query.since.map_or(i64::MIN, unix_ms))
                .bind(query.until.map_or(i64::MAX, unix_ms))
                .bind(query.actor.as_deref())
                .bind(query.action.as_deref())
                .bind(query.window.rows());
            Ok(page.fetch_all(&mut *transaction).await?)
        })?;
        let next = query.window.cut(&mut rows).map(|(id, ..)| Cursor::new(id.to_string()));
        Ok(AuditPage { entries: rows.into_iter().map(entry).collect::<Result<_, _>>()?, next })
    }

    /// Deletes the entries of the audit trail before this time. Returns their number. Works in parts, as [`purge`](Self::purge)
    /// does.
    ///
    /// # Errors
    ///
    /// If the database fails, or if its role may not delete entries.
    pub async fn purge_audit(&self, before: SystemTime) -> Result<u64, SqlError> {
        let entries = self
            .sql("DELETE FROM {p}audit WHERE id IN (SELECT id FROM {p}audit WHERE at_ms < $1 ORDER BY id LIMIT $2)");
        let mut purged = 0;
        loop {
            let deleted = administer!(self, Writes, transaction => {
                let delete = sqlx::query(entries.clone()).bind(unix_ms(before)).bind(PURGE);
                Ok(delete.execute(&mut *transaction).await?.rows_affected())
            })?;
            purged += deleted;
            if deleted < PURGE.unsigned_abs() {
                return Ok(purged);
            }
        }
    }
}

fn entry((_, at, actor, action, grant, subject, changes): Row) -> Result<AuditEntry, SqlError> {
    let at = from_unix_ms(at).ok_or(SqlError::Corrupt("at_ms"))?;
    Ok(AuditEntry { at, actor, action, grant: grant.into(), subject: subject.into(), changes })
}

/// The statement that writes entries: the time, the actor, the action, and a JSON list of grants.
pub(super) const INSERT: &str = "INSERT INTO {p}audit (at_ms, actor, action, grant_id, subject, changes) \
     SELECT $1, $2, $3, item.value ->> 0, item.value ->> 1, CAST(item.value ->> 2 AS {json}) \
     FROM {json_elements}(CAST($4 AS {json})) AS item";

/// Writes entries about grants, each with its id, subject and changed fields, in the transaction of the change.
macro_rules! record {
    ($database:expr, $transaction:ident, $action:expr, $grants:expr) => {
        sqlx::query($database.sql($crate::store::sql::audit::INSERT))
            .bind($database.now_ms())
            .bind($database.0.actor.as_deref())
            .bind($action)
            .bind(serde_json::Value::from_iter($grants).to_string())
            .execute(&mut *$transaction)
            .await?
    };
}
pub(super) use record;

/// Returns the part of an entry about one grant.
pub(super) fn about(grant: &GrantRecord, changes: Map<String, Value>) -> Value {
    json!([grant.id.as_str(), grant.subject.as_str(), changes])
}

/// Returns the fields in which two versions of a grant differ. A grant that does not exist has no values.
pub(super) fn changes(before: Option<&GrantRecord>, after: &GrantRecord) -> Map<String, Value> {
    let from = before.map_or([const { Value::Null }; NAMES.len()], values);
    let pairs = NAMES.into_iter().zip(from.into_iter().zip(values(after)));
    pairs.filter(|(_, (from, to))| from != to).map(|(name, (from, to))| (name.to_owned(), change(from, to))).collect()
}

pub(super) fn change(from: impl Into<Value>, to: impl Into<Value>) -> Value {
    json!({ "from": from.into(), "to": to.into() })
}

const NAMES: [&str; 10] = [
    "label",
    "scopes",
    "quota",
    "not_before_ms",
    "expires_ms",
    "sender_constrained",
    "principal",
    "token_prefix",
    // Not in the entries of suspensions and revocations, whose time is that of the entry.
    "suspended_ms",
    "revoked_ms",
];

/// Returns the values of the fields with these [`NAMES`]. Empty values are null.
fn values(grant: &GrantRecord) -> [Value; NAMES.len()] {
    let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let principal: Option<Value> = grant.principal.as_deref().map(|json| json.parse().unwrap_or_else(|_| json.into()));
    [
        text(&grant.label),
        text(&grant.scopes.to_string()),
        grant.quota.map(|quota| quota.to_string()).into(),
        grant.not_before.map(unix_ms).into(),
        grant.expires_at.map(unix_ms).into(),
        grant.sender_constrained.then_some(true).into(),
        principal.into(),
        grant.token_prefix.clone().into(),
        grant.suspended_at.map(unix_ms).into(),
        grant.revoked_at.map(unix_ms).into(),
    ]
}
