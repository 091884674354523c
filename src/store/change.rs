//! [`Invalidation`]: a change that caches must apply.

use crate::grant::{GrantId, Subject};
use crate::token::TokenDigest;

/// A change of stored grants, for caches.
///
/// Pass it to `CachedStore::invalidate`. If the tokens are JWTs, pass it to `JwtStore::revoke` first. `sql::Database::watch` reports
/// the changes of a database. For other stores, send changes to all processes by your own messaging.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invalidation {
    /// A token was changed or revoked. The digest is the one that the store uses.
    Token(TokenDigest),
    /// All tokens of a grant were changed or revoked.
    Grant(GrantId),
    /// All tokens of a subject were changed or revoked.
    Subject(Subject),
    /// A token was added, or a suspended grant was resumed: tokens that were unknown may be known now.
    Added,
    /// Anything may have changed, for example while a connection was lost. A cache keeps its entries, but looks each of them up
    /// in the store before it serves them again. It serves an old entry only while the store fails.
    Everything,
}
