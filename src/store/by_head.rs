//! [`by_head`]: a store that is chosen by the head of the request.

use std::fmt;

use super::{GateStore, TokenStore};
use crate::pending::answer::Answer;
use crate::request_head::RequestHead;
use crate::token::BearerToken;

/// The store of [`by_head`].
#[derive(Clone, Copy)]
pub struct ByHead<F>(F);

/// Chooses the store of each request by the request's head, such as the store of the tenant to which host or path belong.
///
/// If the function returns `None`, the token is unknown. The function must not block. A gate with a
/// [`FailureThrottle`](crate::limit::FailureThrottle) may call it twice for a request.
///
/// ```
/// use std::collections::HashMap;
/// use tollgate::{AuthLayer, Grant, MemoryStore, RequestHead, TokenDigest, store};
///
/// let acme = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("acme/alice", ()))]);
/// let tenants = HashMap::from([("acme.example.com", acme)]);
///
/// // Clients may write the host in upper case.
/// let tenant = move |head: &RequestHead<'_>| tenants.get(&*head.host()?.to_ascii_lowercase()).cloned();
/// let gate = AuthLayer::new(store::by_head(tenant));
/// # let _ = gate;
/// ```
///
/// # Rules for tenants
///
/// - Give subjects and ids that are unique among all tenants, such as `acme/alice`. The limiter charges equal subjects of different
///   tenants together.
/// - Put the tenant into the principal. Handlers then do not have to read it from the request again.
/// - Put a cache around the store of each tenant, and return clones of the cache. Caches do not accept a `ByHead` store: they would
///   return the grants of one tenant to another.
///
/// The clones that the function returns should be cheap, as those of [`MemoryStore`](crate::MemoryStore),
/// [`BoxStore`](crate::BoxStore) and `CachedStore` are. Use an [`Arc`](std::sync::Arc) for others.
///
/// To choose by the path, use `head.uri.path()`. A gate inside of a nested axum router sees the rest of the path.
#[must_use]
pub fn by_head<F, T>(choose: F) -> ByHead<F>
where
    F: Fn(&RequestHead<'_>) -> Option<T> + Send + Sync + 'static,
    T: TokenStore,
{
    ByHead(choose)
}

impl<F, T> GateStore for ByHead<F>
where
    F: Fn(&RequestHead<'_>) -> Option<T> + Send + Sync + 'static,
    T: TokenStore,
{
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    #[inline]
    fn lookup_for(&self, token: &BearerToken<'_>, head: &RequestHead<'_>) -> Answer<Self::Future> {
        (self.0)(head).map_or(Answer::Ready(Ok(None)), |store| store.lookup(token))
    }

    fn is_cached_for(&self, token: &BearerToken<'_>, head: &RequestHead<'_>) -> bool {
        (self.0)(head).is_some_and(|store| store.is_cached(token))
    }
}

impl<F> fmt::Debug for ByHead<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByHead(..)")
    }
}
