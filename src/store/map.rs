//! [`map`]: changes the grants that another store finds.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::sealed::NeverWaits;
use super::{Lookup, TokenStore};
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::token::BearerToken;

/// The store of [`map`].
pub struct Map<T, F> {
    store: T,
    /// Shared with pending lookups, which call it later.
    f: Arc<F>,
}

/// Changes each grant that another store finds, such as the quota of a plan. Immediate answers stay immediate.
///
/// ```
/// use tollgate::{AuthLayer, Grant, MemoryStore, Quota, TokenDigest, store};
///
/// #[derive(Clone, Copy)]
/// enum Plan {
///     Free,
///     Team,
/// }
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", Plan::Team))]);
/// let store = store::map(tokens, |grant| match *grant.principal() {
///     Plan::Free => grant,
///     Plan::Team => Grant::clone(&grant).with_quota(Quota::per_minute(6_000)).into(),
/// });
/// let gate = AuthLayer::new(store);
/// # let _ = gate;
/// ```
///
/// # Which grant to return
///
/// - Change the grant that you get, by its methods and [`Grant::with_principal`]. A grant made by [`Grant::new`] loses the expiry
///   and the other limits of validity.
/// - Keep the id and the subject. A `CachedStore` outside applies invalidations to the id and the subject of the new grant.
///
/// # Cost
///
/// The function runs at every lookup. A grant that it returns unchanged needs no allocation. A new grant needs one, or two if its quota
/// or scopes differ, and the limiter looks up its bucket again. Put a `CachedStore` around the mapped store, so that the function runs
/// for cache misses only. [`Grant::copy_of`] does not clone the principal.
#[must_use]
pub fn map<T, F, Q>(store: T, f: F) -> Map<T, F>
where
    T: TokenStore,
    F: Fn(Arc<Grant<T::Principal>>) -> Arc<Grant<Q>> + Send + Sync + 'static,
    Q: Send + Sync + 'static,
{
    Map { store, f: Arc::new(f) }
}

impl<T, F, Q> TokenStore for Map<T, F>
where
    T: TokenStore,
    F: Fn(Arc<Grant<T::Principal>>) -> Arc<Grant<Q>> + Send + Sync + 'static,
    Q: Send + Sync + 'static,
{
    type Principal = Q;
    type Error = T::Error;
    type Future = MapFuture<T::Future, F>;

    #[inline]
    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        match self.store.lookup(token) {
            Answer::Ready(found) => Answer::Ready(found.map(|grant| grant.map(&*self.f))),
            Answer::Pending(future) => Answer::Pending(MapFuture { future, f: Arc::clone(&self.f) }),
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.store.is_cached(token)
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`Map`] store.
    pub struct MapFuture<A, F> {
        #[pin]
        future: A,
        f: Arc<F>,
    }
}

impl<A, F, P, Q, E> Future for MapFuture<A, F>
where
    A: Future<Output = Lookup<P, E>>,
    F: Fn(Arc<Grant<P>>) -> Arc<Grant<Q>>,
{
    type Output = Lookup<Q, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(ready!(this.future.poll(cx)).map(|grant| grant.map(&**this.f)))
    }
}

// It contains a future that cannot exist, so it cannot exist either.
impl<A: NeverWaits, F> NeverWaits for MapFuture<A, F> {}

impl<T: Clone, F> Clone for Map<T, F> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), f: Arc::clone(&self.f) }
    }
}

// Not derived, because closures do not implement `Debug`.
impl<T: fmt::Debug, F> fmt::Debug for Map<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("store", &self.store).finish_non_exhaustive()
    }
}

impl<A, F> fmt::Debug for MapFuture<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MapFuture(..)")
    }
}
