//! [`NoStore`], the store of gates without tokens, and the check for the limiter [`Unlimited`].

use std::any::TypeId;
use std::convert::Infallible;

use crate::limit::Unlimited;
use crate::pending::answer::{Answer, Immediate};
use crate::store::{Lookup, TokenStore};
use crate::token::BearerToken;

/// Returns whether `L` is [`Unlimited`]. The compiler evaluates the comparison.
pub(super) fn is_unlimited<L: 'static>() -> bool {
    TypeId::of::<L>() == TypeId::of::<Unlimited>()
}

/// The store of a gate without tokens, and of layers behind a gate. It is never used.
#[derive(Clone, Copy, Debug)]
pub struct NoStore;

impl TokenStore for NoStore {
    type Principal = ();
    type Error = Infallible;
    type Future = Immediate<Lookup<(), Infallible>>;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Ready(Ok(None))
    }
}
