//! One token per user: issued, replaced and revoked.

use std::time::{Duration, SystemTime};

use tollgate::Subject;
use tollgate::mint::TokenFormat;
use tollgate::store::sql::{Database, GrantRecord, GrantState, Issued, NewGrant, SqlError};

use super::error::PageError;

/// Returns the format of all tokens of the service.
pub(crate) fn format() -> Result<TokenFormat, PageError> {
    TokenFormat::new("ct").map_err(|_| PageError::Internal("the token format is invalid"))
}

/// Returns the grant of a user: the one that is not revoked or expired, or else the last one.
pub(crate) async fn grant_of(
    database: &Database,
    user: &str,
    now: SystemTime,
) -> Result<Option<GrantRecord>, SqlError> {
    let grants = database.list(Some(&Subject::from(user))).await?;
    Ok(grants.into_iter().max_by_key(|grant| (is_active(grant, now), grant.created_at)))
}

/// Returns whether a grant can still be used, now or after it is resumed.
pub(crate) fn is_active(grant: &GrantRecord, now: SystemTime) -> bool {
    !matches!(grant.state(now), GrantState::Revoked | GrantState::Expired)
}

/// Replaces the token of a grant. The old token is valid for the grace period. A grant that has ended gets a successor with
/// the same scopes and quota.
pub(crate) async fn replace(
    database: &Database,
    grant: &GrantRecord,
    grace: Duration,
    now: SystemTime,
) -> Result<Issued, PageError> {
    let format = format()?;
    if is_active(grant, now) {
        return Ok(database.rotate(&grant.id, &format, grace).await?);
    }
    let scopes = grant.scopes.iter();
    let successor = NewGrant::new(grant.subject.clone()).with_max_active(1).with_label(&*grant.label);
    let successor = successor.with_scopes(scopes).map_err(|_| PageError::Internal("the scopes are invalid"))?;
    let successor = grant.quota.into_iter().fold(successor, NewGrant::with_quota);
    Ok(database.issue(&format, &successor).await?)
}
