//! The second station: a verdict on what a store found.
//!
//! # Rules
//!
//! 1. The same for every store: not-before, expiry and sender constraint are judged here, so that no store can forget
//!    them.
//! 2. Outward, unknown, revoked and not yet valid look the same. Only expiry may be said.
//! 3. Who could not find out says so: a failing store is never "unknown".

use std::time::SystemTime;

use crate::grant::GrantHead;
use crate::rejection::RejectionKind;

/// Judges a grant that a store found. The clock is asked only if the grant depends on it.
pub(crate) fn verdict(head: &GrantHead, now: impl FnOnce() -> SystemTime) -> Result<(), RejectionKind> {
    if head.is_bounded_in_time() {
        let now = now();
        // Expiry last, so that it is said only of tokens that were valid once.
        if head.is_not_yet_valid(now) {
            return Err(RejectionKind::NotYetValid);
        }
        if head.is_expired(now) {
            return Err(RejectionKind::ExpiredToken);
        }
    }
    match head.is_sender_constrained() {
        true => Err(RejectionKind::SenderConstrained),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::grant::Grant;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_grant_is_valid_from_not_before_until_just_before_expiry() {
        let grant = Grant::new("g", ()).with_not_before(at(10)).with_expiry(at(20));
        let verdict_at = |time| verdict(grant.head(), || time);
        let tick = Duration::from_nanos(1);
        assert_eq!(verdict_at(at(10) - tick), Err(RejectionKind::NotYetValid));
        assert_eq!(verdict_at(at(10)), Ok(()));
        assert_eq!(verdict_at(at(20) - tick), Ok(()));
        assert_eq!(verdict_at(at(20)), Err(RejectionKind::ExpiredToken));
        assert_eq!(grant.expires_at(), Some(at(20)));
        assert_eq!(grant.not_before(), Some(at(10)));
    }

    #[test]
    fn the_ends_of_time_do_not_wrap() {
        let ancient = Grant::new("g", ()).with_expiry(UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(verdict(ancient.head(), || at(0)), Err(RejectionKind::ExpiredToken));
        let far = Grant::new("g", ()).with_expiry(at(100_000_000_000));
        assert_eq!(verdict(far.head(), || at(99_999_999_999)), Ok(()));
    }

    #[test]
    fn the_clock_is_asked_only_if_it_matters() {
        let asked = || -> SystemTime { panic!("asked") };
        assert_eq!(verdict(Grant::new("g", ()).head(), asked), Ok(()));
        let bound = Grant::new("g", ()).with_sender_constraint();
        assert_eq!(verdict(bound.head(), asked), Err(RejectionKind::SenderConstrained));
    }
}
