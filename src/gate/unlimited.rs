//! [`Unlimited`], the limiter of a gate without a rate limit, and [`NoStore`], the store of layers behind a gate.

use std::any::TypeId;
use std::convert::Infallible;

use crate::caller::CurrentGrant;
use crate::limit::{Charge, Limiter};
use crate::pending::answer::{Answer, Immediate};
use crate::quota::decision::Decision;
use crate::store::{Lookup, TokenStore};
use crate::token::BearerToken;

/// The limiter of a gate without a rate limit. It admits every request, and the gate writes no `RateLimit` headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl Limiter for Unlimited {
    type Future = Immediate<Decision>;

    fn charge(&self, _: &CurrentGrant, _: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(Decision::unlimited())
    }
}

/// Returns whether `L` is [`Unlimited`]. The compiler evaluates the comparison.
pub(super) fn is_unlimited<L: 'static>() -> bool {
    TypeId::of::<L>() == TypeId::of::<Unlimited>()
}

/// The store of a layer behind a gate. It is never used.
pub(super) struct NoStore;

impl TokenStore for NoStore {
    type Principal = ();
    type Error = Infallible;
    type Future = Immediate<Lookup<(), Infallible>>;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Ready(Ok(None))
    }
}
