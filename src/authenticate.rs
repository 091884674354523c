//! The second step of the pipeline: checks the validity of a grant that a store returned.
//!
//! # Rules
//!
//! 1. The checks of not-before, expiry and sender constraint are the same for all stores. No store can omit them.
//! 2. Clients get the same response for unknown, revoked and not yet valid tokens. Only expiry may be reported.
//! 3. A failing store is reported as unavailable, never as an unknown token.

use std::time::SystemTime;

use crate::grant::GrantHead;
use crate::rejection::RejectionKind;

/// Checks whether a grant is valid. The clock is read only if the validity depends on the time.
#[inline]
pub(crate) fn verdict(head: &GrantHead, now: impl FnOnce() -> SystemTime) -> Result<(), RejectionKind> {
    if head.is_bounded_in_time() {
        let now = now();
        // Expiry comes last, so that only tokens that were valid are reported as expired.
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
    fn grants_are_valid_from_not_before_until_just_before_expiry() {
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
    fn dates_out_of_range_do_not_wrap() {
        let ancient = Grant::new("g", ()).with_expiry(UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(verdict(ancient.head(), || at(0)), Err(RejectionKind::ExpiredToken));
        let far = Grant::new("g", ()).with_expiry(at(100_000_000_000));
        assert_eq!(verdict(far.head(), || at(99_999_999_999)), Ok(()));
    }

    #[test]
    fn grants_without_dates_do_not_read_the_clock() {
        let clock = || -> SystemTime { panic!("the clock was read") };
        assert_eq!(verdict(Grant::new("g", ()).head(), clock), Ok(()));
        let bound = Grant::new("g", ()).with_sender_constraint();
        assert_eq!(verdict(bound.head(), clock), Err(RejectionKind::SenderConstrained));
    }
}
