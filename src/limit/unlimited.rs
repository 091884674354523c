//! [`Unlimited`]: the limiter that limits nothing.

use super::{Charge, Limiter};
use crate::caller::CurrentGrant;
use crate::pending::answer::{Answer, Immediate};
use crate::quota::decision::Decision;

/// The limiter of a gate without a rate limit. It admits every request, and the gate writes no `RateLimit` headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl Limiter for Unlimited {
    type Future = Immediate<Decision>;

    fn charge(&self, _: &CurrentGrant, _: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(Decision::unlimited())
    }
}
