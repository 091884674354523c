//! Changes of the state of grants: suspend, resume, revoke.

use super::audit::record;
use super::database::administer;
use super::record::{columns, read};
use super::{Database, GrantRecord, SqlError};
use crate::grant::{GrantId, Subject};

/// A change of the state, and the statement that makes it. The parameters are an id, a subject and the time.
///
/// Rows are locked in one order, so that two changes of a subject do not wait for each other.
macro_rules! transition {
    ($action:literal, $set:literal, $applies:literal) => {
        Transition {
            action: $action,
            statement: concat!(
                "UPDATE {p}grants SET ",
                $set,
                " WHERE id IN (SELECT id FROM {p}grants WHERE (id = $1 OR subject = $2) AND revoked_ms IS NULL AND ",
                $applies,
                " ORDER BY id {for_update}) RETURNING ",
                columns!()
            ),
        }
    };
}

struct Transition {
    action: &'static str,
    statement: &'static str,
}

const SUSPEND: Transition = transition!("suspend", "suspended_ms = $3", "suspended_ms IS NULL");
// The statement must use each parameter.
const RESUME: Transition =
    transition!("resume", "suspended_ms = NULL", "suspended_ms IS NOT NULL AND CAST($3 AS BIGINT) IS NOT NULL");
const REVOKE: Transition = transition!("revoke", "revoked_ms = $3", "TRUE");

/// Suspension and revocation. Each method is one transaction. All caches that [watch](Self::watch) the database are invalidated.
impl Database {
    /// Suspends a grant: its tokens are rejected like unknown tokens until the grant is [resumed](Self::resume). Returns `false`
    /// if the grant does not exist, is revoked, or was suspended before.
    ///
    /// ```no_run
    /// # async fn example(database: &tollgate::store::sql::Database) -> Result<(), tollgate::store::sql::SqlError> {
    /// database.suspend(&"key-17".into()).await?;
    /// // The invoice is paid.
    /// database.resume(&"key-17".into()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If the database fails. [`SqlError::InvalidRow`] if a row cannot be read: the change is made, in this row too.
    pub async fn suspend(&self, id: &GrantId) -> Result<bool, SqlError> {
        Ok(!self.set_state(&SUSPEND, Some(id), None).await?.is_empty())
    }

    /// Suspends all grants of a subject that are not revoked, including expired ones. Returns the grants that were not suspended
    /// before, ordered by id.
    ///
    /// # Errors
    ///
    /// If the database fails. [`SqlError::InvalidRow`] if a row cannot be read: the change is made, in this row too.
    pub async fn suspend_subject(&self, subject: &Subject) -> Result<Vec<GrantRecord>, SqlError> {
        self.set_state(&SUSPEND, None, Some(subject)).await
    }

    /// Resumes a suspended grant. Returns `false` if the grant does not exist, is revoked, or is not suspended.
    ///
    /// # Errors
    ///
    /// If the database fails. [`SqlError::InvalidRow`] if a row cannot be read: the change is made, in this row too.
    pub async fn resume(&self, id: &GrantId) -> Result<bool, SqlError> {
        Ok(!self.set_state(&RESUME, Some(id), None).await?.is_empty())
    }

    /// Resumes all suspended grants of a subject that are not revoked. Returns these grants, ordered by id.
    ///
    /// # Errors
    ///
    /// If the database fails. [`SqlError::InvalidRow`] if a row cannot be read: the change is made, in this row too.
    pub async fn resume_subject(&self, subject: &Subject) -> Result<Vec<GrantRecord>, SqlError> {
        self.set_state(&RESUME, None, Some(subject)).await
    }

    /// Revokes a grant with all its tokens, permanently. Returns `false` if the grant does not exist or was revoked before.
    ///
    /// # Errors
    ///
    /// If the database fails. [`SqlError::InvalidRow`] if a row cannot be read: the change is made, in this row too.
    pub async fn revoke(&self, id: &GrantId) -> Result<bool, SqlError> {
        Ok(!self.set_state(&REVOKE, Some(id), None).await?.is_empty())
    }

    /// Revokes all grants of a subject, permanently. Returns the grants that were not revoked before, ordered by id.
    ///
    /// # Errors
    ///
    /// If the database fails. [`SqlError::InvalidRow`] if a row cannot be read: the change is made, in this row too.
    pub async fn revoke_subject(&self, subject: &Subject) -> Result<Vec<GrantRecord>, SqlError> {
        self.set_state(&REVOKE, None, Some(subject)).await
    }

    async fn set_state(
        &self,
        transition: &Transition,
        id: Option<&GrantId>,
        subject: Option<&Subject>,
    ) -> Result<Vec<GrantRecord>, SqlError> {
        let statement = self.sql(transition.statement);
        let mut reports = self.reports();
        let changed: Vec<Result<GrantRecord, SqlError>> = administer!(self, Writes, transaction => {
            let update = sqlx::query(statement)
                .bind(id.map(GrantId::as_str))
                .bind(subject.map(Subject::as_str))
                .bind(self.now_ms());
            let rows = update.fetch_all(&mut *transaction).await?;
            // A row that cannot be read is no reason to leave the others as they are.
            let mut grants: Vec<_> = rows.iter().map(read).collect();
            grants.sort_unstable_by(|a, b| names(a).cmp(&names(b)));
            if transition.action == RESUME.action && !grants.is_empty() {
                // Caches may have negative entries for the tokens.
                reports.added();
            }
            for (id, _) in grants.iter().filter_map(names) {
                reports.grant(id);
            }
            let entries = grants.iter().filter_map(names).map(|(id, subject)| vec![id, subject]);
            record!(self, transaction, transition.action, entries);
            Ok(grants)
        })?;
        changed.into_iter().collect()
    }
}

/// Returns the id and the subject, also those of a row that cannot be read.
fn names(row: &Result<GrantRecord, SqlError>) -> Option<(&str, &str)> {
    match row {
        Ok(GrantRecord { id, subject, .. }) | Err(SqlError::InvalidRow { id, subject, .. }) => {
            Some((id.as_str(), subject.as_str()))
        }
        // Both columns are texts.
        Err(_) => None,
    }
}
