//! [`BoxStore`]: a store with its type erased.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use super::{Lookup, TokenStore};
use crate::pending::answer::Answer;
use crate::rejection::store_error::StoreError;
use crate::token::BearerToken;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type DynStore<P> = dyn TokenStore<Principal = P, Error = StoreError, Future = BoxFuture<Lookup<P, StoreError>>>;

/// A store with its type erased, to choose a store at run time. Clones share the store.
///
/// An immediate answer of the inner store stays immediate and needs no allocation.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{AuthLayer, BoxStore, Grant, MemoryStore, store, TokenDigest};
///
/// let from_file = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let from_database = store::from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
///
/// let store = if cfg!(debug_assertions) { BoxStore::new(from_file) } else { BoxStore::new(from_database) };
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// # let _ = gate;
/// ```
pub struct BoxStore<P>(Arc<DynStore<P>>);

impl<P: Send + Sync + 'static> BoxStore<P> {
    /// Erases the type of a store.
    pub fn new<T: TokenStore<Principal = P>>(store: T) -> Self {
        Self(Arc::new(Erase(store)))
    }
}

impl<P: Send + Sync + 'static> TokenStore for BoxStore<P> {
    type Principal = P;
    type Error = StoreError;
    type Future = BoxFuture<Lookup<P, StoreError>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        self.0.lookup(token)
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.0.is_cached(token)
    }
}

impl<P> Clone for BoxStore<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> fmt::Debug for BoxStore<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxStore(..)")
    }
}

struct Erase<T>(T);

impl<T: TokenStore> TokenStore for Erase<T> {
    type Principal = T::Principal;
    type Error = StoreError;
    type Future = BoxFuture<Lookup<T::Principal, StoreError>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        match self.0.lookup(token) {
            Answer::Ready(found) => Answer::Ready(found.map_err(StoreError::new)),
            Answer::Pending(future) => Answer::Pending(Box::pin(async move { future.await.map_err(StoreError::new) })),
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.0.is_cached(token)
    }
}
