use std::fmt;
use std::sync::Arc;

use crate::answer::{Answer, Immediate};
use crate::caller::CurrentGrant;
use crate::decision::Decision;
use crate::limit::{Charge, Limiter, RateLimits};
use crate::store::{Lookup, TokenStore};
use crate::token::BearerToken;

mod sealed {
    pub trait Sealed {}
}

/// The stations of a gate at which a request may have to wait. Sealed: a store, or [`Limited`], or [`Metered`].
pub trait Stations: sealed::Sealed + Send + Sync + 'static {
    /// Who finds grants.
    type Store: TokenStore;
    /// Who charges budgets.
    type Limiter: Limiter;

    /// The limiter, if there is one.
    fn limiter(&self) -> Option<&Self::Limiter>;
}

/// What an [`AuthLayer`](crate::AuthLayer) asks about a caller: a store, or a store and a limiter. Sealed.
pub trait Admission: Stations {
    /// The store.
    fn store(&self) -> &Self::Store;
}

impl<T: TokenStore> sealed::Sealed for T {}

impl<T: TokenStore> Stations for T {
    type Store = T;
    type Limiter = Never;

    fn limiter(&self) -> Option<&Never> {
        None
    }
}

impl<T: TokenStore> Admission for T {
    fn store(&self) -> &T {
        self
    }
}

/// A store and a limiter, by [`AuthLayer::with_rate_limit`](crate::AuthLayer::with_rate_limit).
pub struct Limited<T, L = RateLimits> {
    pub(super) store: Arc<T>,
    pub(super) limiter: L,
}

impl<T, L> sealed::Sealed for Limited<T, L> {}

impl<T: TokenStore, L: Limiter> Stations for Limited<T, L> {
    type Store = T;
    type Limiter = L;

    fn limiter(&self) -> Option<&L> {
        Some(&self.limiter)
    }
}

impl<T: TokenStore, L: Limiter> Admission for Limited<T, L> {
    fn store(&self) -> &T {
        &self.store
    }
}

impl<T, L: fmt::Debug> fmt::Debug for Limited<T, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited").field("limiter", &self.limiter).finish_non_exhaustive()
    }
}

/// A limiter behind a gate, by [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Debug)]
pub struct Metered<L = RateLimits>(pub(super) L);

impl<L> sealed::Sealed for Metered<L> {}

impl<L: Limiter> Stations for Metered<L> {
    type Store = Never;
    type Limiter = L;

    fn limiter(&self) -> Option<&L> {
        Some(&self.0)
    }
}

/// The station that a gate does not have.
#[derive(Debug)]
pub enum Never {}

impl TokenStore for Never {
    type Principal = ();
    type Error = std::convert::Infallible;
    type Future = Immediate<Lookup<(), std::convert::Infallible>>;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        match *self {}
    }
}

impl Limiter for Never {
    type Future = Immediate<Decision>;

    fn check(&self, _: &CurrentGrant, _: Charge<'_>) -> Answer<Self::Future> {
        match *self {}
    }
}
