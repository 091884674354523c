//! [`by_prefix`]: a store for each prefix of tokens.

use thiserror::Error;

use super::TokenStore;
use crate::pending::answer::Answer;
use crate::token::BearerToken;

/// The store of [`by_prefix`].
#[derive(Clone, Debug)]
pub struct ByPrefix<T> {
    /// The longest prefix is first.
    stores: Vec<(String, T)>,
}

/// Combines stores by the prefixes of their tokens. Each token is looked up in one store: that of the longest prefix that the
/// token has.
///
/// A token without such a prefix is unknown. The empty prefix is for all other tokens. An outage of one store does not affect the
/// tokens of the others. The prefix of a token is not secret.
///
/// ```
/// use tollgate::{AuthLayer, BoxStore, Grant, MemoryStore, TokenDigest, store};
/// use std::time::Duration;
///
/// let internal = MemoryStore::from_iter([(TokenDigest::of("internal_3f9a"), Grant::new("monitoring", ()))]);
/// let customers = store::from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
///
/// let store = store::by_prefix([("internal_", BoxStore::new(internal)), ("acme_", BoxStore::new(customers))])?;
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// # let _ = gate;
/// # Ok::<_, store::DuplicatePrefixError>(())
/// ```
///
/// Stores of one type need no [`BoxStore`](super::BoxStore).
///
/// # Errors
///
/// If a prefix occurs twice.
pub fn by_prefix<S, T>(stores: impl IntoIterator<Item = (S, T)>) -> Result<ByPrefix<T>, DuplicatePrefixError>
where
    S: Into<String>,
    T: TokenStore,
{
    let mut stores: Vec<(String, T)> = stores.into_iter().map(|(prefix, store)| (prefix.into(), store)).collect();
    // Equal prefixes become neighbours.
    stores.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    match stores.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(DuplicatePrefixError(pair[0].0.clone())),
        None => Ok(ByPrefix { stores }),
    }
}

impl<T> ByPrefix<T> {
    #[inline]
    fn store_of(&self, token: &BearerToken<'_>) -> Option<&T> {
        let mut stores = self.stores.iter();
        stores.find(|(prefix, _)| token.expose().starts_with(prefix.as_bytes())).map(|(_, store)| store)
    }
}

impl<T: TokenStore> TokenStore for ByPrefix<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    #[inline]
    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        self.store_of(token).map_or(Answer::Ready(Ok(None)), |store| store.lookup(token))
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.store_of(token).is_some_and(|store| store.is_cached(token))
    }
}

/// The error of a prefix that occurs twice.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("duplicate token prefix: {0:?}")]
pub struct DuplicatePrefixError(String);
