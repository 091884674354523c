//! Token stores: the trait [`TokenStore`], and stores that implement it.
//!
//! | store | for |
//! |---|---|
//! | [`MemoryStore`] | tokens in this process, changed while requests are served |
//! | [`from_fn`], [`from_fn_with`] | a closure that looks grants up |
//! | [`map`], [`try_map`] | any store: a function changes the grants, such as a query for the user |
//! | [`first_of`] | two stores, asked in turn |
//! | [`by_prefix`] | several stores, one for each prefix of tokens |
//! | [`by_head`] | several stores, one for each tenant: a function chooses by the request's head |
//! | [`BoxStore`] | any store, with its type erased |
//! | [`CircuitBreaker`] | any store: lookups fail immediately while it is down |
//! | `CachedStore` | any store: a cache with immediate invalidation (feature `cache`) |
//! | `CheckedStore` | any store: only tokens in the service's format are looked up (feature `mint`) |
//! | `PepperedStore` | any store that keeps HMACs of digests instead of digests (feature `pepper`) |
//! | `sql::SqlStore` | SQLite and PostgreSQL, with administration (features `sqlite`, `postgres`) |
//! | `IntrospectionStore` | tokens of an authorization server (RFC 7662, feature `introspection`) |
//! | `JwtStore` | JWT access tokens of an authorization server (RFC 9068, feature `jwt`) |
//! | `contract` | checks of the store contract, for tests of any store (feature `test-util`) |

use std::error::Error;
use std::sync::Arc;

mod boxed;
mod breaker;
mod by_head;
mod by_prefix;
#[cfg(feature = "cache")]
mod cached;
#[cfg(any(feature = "cache", feature = "jwt", feature = "sqlite", feature = "postgres"))]
mod change;
#[cfg(feature = "mint")]
mod checked;
#[cfg(any(feature = "introspection", feature = "jwt"))]
mod claims;
#[cfg(any(feature = "introspection", feature = "jwt"))]
mod client;
#[cfg(feature = "test-util")]
pub mod contract;
mod first_of;
mod from_fn;
#[cfg(feature = "introspection")]
mod introspection;
#[cfg(feature = "jwt")]
mod jwt;
mod map;
mod memory;
#[cfg(feature = "pepper")]
mod peppered;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod sql;
mod try_map;

pub use boxed::BoxStore;
pub use breaker::{BackoffError, BreakerState, CircuitBreaker, CircuitBreakerError, CircuitBreakerFuture};
pub use by_head::{ByHead, by_head};
pub use by_prefix::{ByPrefix, DuplicatePrefixError, by_prefix};
#[cfg(feature = "cache")]
pub use cached::{CacheSettingsError, CachedFuture, CachedStore, CachedStoreBuilder};
#[cfg(any(feature = "cache", feature = "jwt", feature = "sqlite", feature = "postgres"))]
pub use change::Invalidation;
#[cfg(feature = "mint")]
pub use checked::CheckedStore;
#[cfg(any(feature = "introspection", feature = "jwt"))]
pub use claims::Claims;
pub use first_of::{FirstOf, FirstOfFuture, first_of};
pub use from_fn::{FromFn, FromFnFuture, from_fn, from_fn_with};
#[cfg(feature = "introspection")]
pub use introspection::{
    ClientAuth, IntrospectionBuilder, IntrospectionConfigError, IntrospectionError, IntrospectionFuture,
    IntrospectionStore,
};
#[cfg(feature = "jwt")]
pub use jwt::{JwtAlgorithm, JwtBuilder, JwtConfigError, JwtError, JwtFuture, JwtKeys, JwtStore};
pub use map::{Map, MapFuture, map};
pub use memory::{MemoryStore, OccupiedError, RotateError};
#[cfg(feature = "pepper")]
pub use peppered::{Pepper, PepperLengthError, PepperedStore, PepperedStoreFuture};
pub use try_map::{TryMap, TryMapFuture, try_map};

use crate::grant::Grant;
use crate::pending::answer::{Answer, Immediate};
use crate::request_head::RequestHead;
use crate::token::BearerToken;

/// The result of a lookup: a grant, no grant, or an error if the store could not answer.
pub type Lookup<P, E> = Result<Option<Arc<Grant<P>>>, E>;

/// Looks up the grant of a token.
///
/// # Contract
///
/// - `Ok(None)`: no grant belongs to the token. Do not distinguish unknown tokens from revoked ones.
/// - `Err`: the store could not answer. The gate responds with 503, never with 401: an outage must not look like a revocation.
///   If the store works and only this token could not be checked, return [`StoreError::for_token`](crate::StoreError::for_token).
///   Otherwise the token of one client could open a [`CircuitBreaker`] for all clients. Any other error concerns the store.
/// - Expiry, not-before and the sender constraint: return the grant. The gate checks them.
/// - [`Answer::Ready`]: an immediate answer. The store must not block the thread.
/// - [`Answer::Pending`]: the future is lazy, owns all its data, and may be dropped at any time. A gate drops it after the
///   timeout. A gate drops it unpolled if the peer fails too often ([`FailureThrottle`](crate::limit::FailureThrottle)). Do
///   expensive work in the future, not in the call that returns it.
///
/// # Security
///
/// - Look up by [`BearerToken::digest`], and compare digests with `==`, which takes constant time. Never compare tokens.
/// - Do the same work for unknown tokens and for known ones.
/// - Store digests, not tokens. Put neither into errors or logs.
/// - A false `Some` admits an unauthorized client. A false `None` locks out a caller, and clients discard tokens that are
///   rejected as invalid. When in doubt, return `Err`.
///
/// # Example
///
/// ```
/// use std::collections::HashMap;
/// use std::convert::Infallible;
/// use std::sync::Arc;
/// use tollgate::{Answer, BearerToken, Grant, Immediate, TokenDigest, store::{Lookup, TokenStore}};
///
/// struct Fixed(HashMap<TokenDigest, Arc<Grant<&'static str>>>);
///
/// impl TokenStore for Fixed {
///     type Principal = &'static str;
///     type Error = Infallible;
///     type Future = Immediate<Lookup<&'static str, Infallible>>;
///
///     fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
///         Answer::Ready(Ok(self.0.get(token.digest()).cloned()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a token store",
    note = "use `MemoryStore`, `store::from_fn(|digest| async move {{ .. }})` or implement `TokenStore`"
)]
pub trait TokenStore: Send + Sync + 'static {
    /// The service's own type for callers.
    type Principal: Send + Sync + 'static;
    /// The error of a lookup, for example `Box<dyn Error + Send + Sync>`.
    type Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static;
    /// The future of a pending answer. Use [`Immediate`] if all answers are immediate.
    type Future: Future<Output = Lookup<Self::Principal, Self::Error>> + Send + 'static;

    /// Looks up the grant of a token.
    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future>;

    /// Returns true if the store has a cached grant for this token, which it serves if [`lookup`](Self::lookup) fails to get a
    /// newer one. Default: false.
    ///
    /// Such a token is no guess. A [`FailureThrottle`](crate::limit::FailureThrottle) does not throttle its lookup, and counts it
    /// only if the token turns out to be invalid. A store that wraps another store must call this method of that store.
    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        _ = token;
        false
    }
}

impl<T: TokenStore + ?Sized> TokenStore for Arc<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        (**self).lookup(token)
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        (**self).is_cached(token)
    }
}

/// A store that a gate accepts: any [`TokenStore`], or one whose answer depends on the request's head, such as [`ByHead`].
///
/// Caches and other wrappers accept only a `TokenStore`, whose answers depend on nothing but the token. Therefore no cache can
/// return the grant of one tenant to another.
///
/// The contract is that of [`TokenStore`]. Implement `TokenStore`, unless the store needs the head.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a token store",
    note = "use `MemoryStore`, `store::from_fn(|digest| async move {{ .. }})` or implement `TokenStore`"
)]
pub trait GateStore: Send + Sync + 'static {
    /// The service's own type for callers.
    type Principal: Send + Sync + 'static;
    /// The error of a lookup.
    type Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static;
    /// The future of a pending answer.
    type Future: Future<Output = Lookup<Self::Principal, Self::Error>> + Send + 'static;

    /// Looks up the grant of a token of this request. See [`TokenStore::lookup`].
    fn lookup_for(&self, token: &BearerToken<'_>, head: &RequestHead<'_>) -> Answer<Self::Future>;

    /// Returns true if the store has a cached grant for this token. See [`TokenStore::is_cached`].
    fn is_cached_for(&self, token: &BearerToken<'_>, head: &RequestHead<'_>) -> bool;

    /// Returns false if the store ignores the head. A gate then passes another head, because it changes the request meanwhile.
    #[doc(hidden)]
    fn reads_head(&self) -> bool {
        true
    }
}

impl<T: TokenStore + ?Sized> GateStore for T {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    #[inline(always)]
    fn lookup_for(&self, token: &BearerToken<'_>, _: &RequestHead<'_>) -> Answer<Self::Future> {
        self.lookup(token)
    }

    fn is_cached_for(&self, token: &BearerToken<'_>, _: &RequestHead<'_>) -> bool {
        self.is_cached(token)
    }

    #[inline]
    fn reads_head(&self) -> bool {
        false
    }
}

/// A store whose answers are all immediate, enforced by the type of its future. Such a store needs no timeout.
///
/// Stores whose future is [`Immediate`] implement this trait, and combinations of such stores, for example by [`first_of`]. A
/// store that may wait cannot implement it, because a pending lookup needs a timeout.
pub trait ImmediateStore: GateStore<Future: sealed::NeverWaits> {}

impl<T: GateStore<Future: sealed::NeverWaits> + ?Sized> ImmediateStore for T {}

mod sealed {
    #[diagnostic::on_unimplemented(
        message = "a store with the future `{Self}` may return pending answers",
        note = "use `AuthLayer::with_timeout(store, timeout)` (feature `tokio`) or `AuthLayer::with_timer(store, timeout, sleep)`"
    )]
    pub trait NeverWaits {}

    impl<T> NeverWaits for super::Immediate<T> {}
}
