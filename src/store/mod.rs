//! Where grants are kept: [`TokenStore`], and stores to begin with.
//!
//! | store | for |
//! |---|---|
//! | [`MemoryStore`] | tokens in this process, changed while requests are served |
//! | [`from_fn`], [`from_fn_with`] | a closure that asks whoever knows |
//! | [`BoxStore`] | any store, without its type |
//! | [`CircuitBreaker`] | any store, not asked while it is down |
//! | `CachedStore` | any store, remembered for a while and forgotten at once (feature `cache`) |
//! | `CheckedStore` | any store, asked only for tokens that have the form of the service's (feature `mint`) |
//! | `PepperedStore` | any store, which keeps HMACs of digests instead of digests (feature `pepper`) |
//! | `sql::SqlStore` | SQLite and PostgreSQL, with administration (features `sqlite`, `postgres`) |
//! | `IntrospectionStore` | tokens that an authorization server knows (RFC 7662, feature `introspection`) |
//! | `contract` | checks that every store can run on itself (feature `test-util`) |

use std::error::Error;
use std::sync::Arc;

mod boxed;
mod breaker;
#[cfg(feature = "cache")]
mod cached;
#[cfg(any(feature = "cache", feature = "sqlite", feature = "postgres"))]
mod change;
#[cfg(feature = "mint")]
mod checked;
#[cfg(feature = "test-util")]
pub mod contract;
mod from_fn;
#[cfg(feature = "introspection")]
mod introspection;
mod memory;
#[cfg(feature = "pepper")]
mod peppered;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod sql;

pub use boxed::BoxStore;
pub use breaker::{BreakerState, CircuitBreaker, CircuitBreakerError, CircuitBreakerFuture};
#[cfg(feature = "cache")]
pub use cached::{CacheSettingsError, CachedFuture, CachedStore};
#[cfg(any(feature = "cache", feature = "sqlite", feature = "postgres"))]
pub use change::Invalidation;
#[cfg(feature = "mint")]
pub use checked::CheckedStore;
pub use from_fn::{FromFn, FromFnFuture, from_fn, from_fn_with};
#[cfg(feature = "introspection")]
pub use introspection::{
    Claims, ClientAuth, IntrospectionBuilder, IntrospectionConfigError, IntrospectionError, IntrospectionFuture,
    IntrospectionStore,
};
pub use memory::{MemoryStore, OccupiedError, RotateError};
#[cfg(feature = "pepper")]
pub use peppered::{Pepper, PepperLengthError, PepperedStore, PepperedStoreFuture};

use crate::grant::Grant;
use crate::pending::answer::{Answer, Immediate};
use crate::token::BearerToken;

/// What a store replies: a grant, nothing, or that it could not find out.
pub type Lookup<P, E> = Result<Option<Arc<Grant<P>>>, E>;

/// Finds the grant that belongs to a token.
///
/// # Contract
///
/// - `Ok(None)`: no grant belongs to the token. Unknown and revoked are the same.
/// - `Err`: the store could not find out. It answers 503, never 401; an outage must not look like a revocation.
///   If the store works and only this token could not be checked, return [`StoreError::for_token`](crate::StoreError::for_token),
///   so that the token of one client cannot open a [`CircuitBreaker`] for everybody. Any other error concerns the store.
/// - Expiry, not-before and the sender constraint are not the store's business: it hands on the grant, and the gate
///   judges it.
/// - [`Answer::Ready`] if the answer is at hand. The store must not block the thread.
/// - The future of [`Answer::Pending`] is lazy, owns all it needs, and may be dropped at any time: a gate refuses
///   without polling it on behalf of a peer that fails too often ([`FailureThrottle`](crate::limit::FailureThrottle)), and
///   drops it at the deadline. What it costs is to be in the future, and not in the look-up that returns it.
///
/// # Security
///
/// - Look up by [`BearerToken::digest`], and compare digests by `==`, whose time does not depend on where they differ.
///   Never compare tokens.
/// - Do the same work for tokens that are unknown and known.
/// - Keep digests, not tokens. Put neither into errors or logs.
/// - A false `Some` lets a stranger in; a false `None` locks a caller out, and clients throw away tokens that they are
///   told are invalid. When in doubt, `Err`.
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
    /// Who callers are, in the service's own words.
    type Principal: Send + Sync + 'static;
    /// Why it could not be found out. `Box<dyn Error + Send + Sync>` will do.
    type Error: Into<Box<dyn Error + Send + Sync>> + Send + 'static;
    /// The future of an answer that has to be waited for; [`Immediate`] if there is none.
    type Future: Future<Output = Lookup<Self::Principal, Self::Error>> + Send + 'static;

    /// Looks a token up.
    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future>;

    /// Returns true if the store has a grant for this token at hand, which it serves if [`lookup`](Self::lookup) cannot find out
    /// anything newer, as a cache does. Default: false.
    ///
    /// Such a token is no guess. So a [`FailureThrottle`](crate::limit::FailureThrottle) does not keep its lookup from waiting,
    /// and counts it only if the token turns out to be invalid. A store that wraps another one calls this method of that store.
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

/// A store that never waits, by its type: its future cannot exist, as [`Immediate`] cannot. Such stores need no deadline.
///
/// Every such store has this trait, and no other can: what may wait has to be given a deadline.
pub trait ImmediateStore: TokenStore<Future: sealed::NeverWaits> {}

impl<T: TokenStore<Future: sealed::NeverWaits> + ?Sized> ImmediateStore for T {}

mod sealed {
    #[diagnostic::on_unimplemented(
        message = "a store with the future `{Self}` may have to wait for an answer",
        note = "use `AuthLayer::with_timeout(store, deadline)`, so that every wait has an end"
    )]
    pub trait NeverWaits {}

    impl<T> NeverWaits for super::Immediate<T> {}
}
