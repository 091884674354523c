use crate::grant::{GrantId, Subject};
use crate::token::TokenDigest;

/// What has changed where grants are kept, told to whoever remembers them.
///
/// `CachedStore::invalidate` takes it; a database tells it by `sql::Database::watch`, and an administration of one's
/// own by whatever brings messages to its processes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invalidation {
    /// A token, by the digest that the store knows it by.
    Token(TokenDigest),
    /// All tokens of a grant.
    Grant(GrantId),
    /// All tokens of a subject.
    Subject(Subject),
    /// A token was added, so that one which was unknown may be known now.
    Added,
    /// Anything may have changed, for example while a connection was lost. A cache does not remove its entries, but asks the
    /// store before it uses them again, and uses them without an answer only while the store fails.
    Everything,
}
