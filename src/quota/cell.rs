//! One decision, as a function of a cell, a quota, a cost and the time. governor decides.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};

use super::quota::{MAX_SPAN_NS, Quota};
use crate::sync::InMemoryState;

/// The latest time at which decisions are made, 146 years after the epoch of the clock.
pub(crate) const LATEST_NS: u64 = MAX_SPAN_NS - 1;

/// The theoretical arrival time of a cell that is closed for ever.
///
/// The latest true one is `LATEST_NS` plus a quota's span, below 2^63. From here governor can add a span and subtract
/// the tolerance (both below 2^62) without overflow, and what is left is still later than any time of a decision.
pub(crate) const FROZEN: u64 = 3 * MAX_SPAN_NS - 1;

pub(crate) enum Outcome {
    /// `tat` is the theoretical arrival time after the charge, `now` the time the decision was made at.
    Admitted { tat: u64 },
    /// Nothing was charged. The same charge fits after `wait`.
    Refused { tat: u64, wait: u64 },
    /// Nothing was charged. The charge is above the burst.
    AboveBurst,
    /// The cell is closed.
    Frozen,
}

/// Charges `cost` cells of `quota` at time `now`, in nanoseconds of a clock, at most [`LATEST_NS`].
#[inline]
pub(crate) fn decide(cell: &InMemoryState, quota: Quota, now: u64, cost: NonZeroU32) -> Outcome {
    // governor multiplies first and compares then, which overflows: a dear charge would be a cheap one.
    if cost > quota.cells() {
        return Outcome::AboveBurst;
    }
    // A quota's interval is never 0, so that governor cannot refuse it.
    let Some(gcra) = governor::Quota::with_period(Duration::from_nanos(quota.interval_ns())) else {
        return Outcome::AboveBurst;
    };
    let tat = Cell::new(0);
    let limiter: governor::RateLimiter<_, _, _, StateInformationMiddleware> = governor::RateLimiter::new(
        gcra.allow_burst(quota.cells()),
        Borrowed { cell, tat: &tat },
        Given { next: Cell::new(0), now },
    );
    match limiter.check_n(cost) {
        Ok(Ok(_)) => Outcome::Admitted { tat: tat.get() },
        Ok(Err(_)) if tat.get() >= FROZEN => Outcome::Frozen,
        Ok(Err(refusal)) => {
            // Below 2^64 nanoseconds, since both times are.
            Outcome::Refused { tat: tat.get(), wait: refusal.wait_time_from(Nanos::new(now)).as_nanos() as u64 }
        }
        Err(_) => Outcome::AboveBurst,
    }
}

/// A cell lent to a limiter that lives for one decision, and a note of what it read or wrote last.
struct Borrowed<'a> {
    cell: &'a InMemoryState,
    tat: &'a Cell<u64>,
}

impl StateStore for Borrowed<'_> {
    type Key = NotKeyed;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.cell.measure_and_replace(key, |old| {
            self.tat.set(old.map_or(0, Nanos::as_u64));
            let (outcome, new) = f(old)?;
            self.tat.set(new.as_u64());
            Ok((outcome, new))
        })
    }
}

/// A clock that is read twice: for the limiter's start, which is the epoch, and for the decision.
struct Given {
    next: Cell<u64>,
    now: u64,
}

impl Clock for Given {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::new(self.next.replace(self.now))
    }
}

/// How long until a charge of so many cells fits, in nanoseconds; 0 if it does now. Nothing is charged.
///
/// What [`decide`] says, and goes on for charges above the burst: until so much is paid off that what is left of the
/// charge is a burst.
pub(crate) fn wait_for(cell: &InMemoryState, quota: Quota, now: u64, cost: u32) -> u64 {
    let charged = u128::from(read(cell).max(now)) + u128::from(quota.interval_ns()) * u128::from(cost);
    let most = u128::from(now) + u128::from(quota.span_ns());
    u64::try_from(charged.saturating_sub(most)).unwrap_or(u64::MAX)
}

/// Charges one cell, whether it fits or not; but the cell owes a full burst at the most.
pub(crate) fn owe(cell: &InMemoryState, quota: Quota, now: u64) {
    // Below 2^64 nanoseconds: a time of arrival is below 2^63, an interval below 2^62.
    let most = now + quota.span_ns();
    let never_fails: Result<(), ()> = cell.measure_and_replace(&NotKeyed::NonKey, |old| {
        let old = old.map_or(0, Nanos::as_u64);
        let new = (old.max(now) + quota.interval_ns()).min(most).max(old);
        Ok(((), Nanos::new(new)))
    });
    _ = never_fails;
}

/// Writes a theoretical arrival time and returns the one before.
pub(crate) fn swap(cell: &InMemoryState, tat: u64) -> u64 {
    let never_fails: Result<u64, ()> =
        cell.measure_and_replace(&NotKeyed::NonKey, |old| Ok((old.map_or(0, Nanos::as_u64), Nanos::new(tat))));
    never_fails.unwrap_or(0)
}

/// Takes a charge of so many nanoseconds back; says whether the cell was not closed.
pub(crate) fn give_back(cell: &InMemoryState, ns: u64) -> bool {
    let given: Result<(), ()> = cell.measure_and_replace(&NotKeyed::NonKey, |old| match old.map_or(0, Nanos::as_u64) {
        closed if closed >= FROZEN => Err(()),
        tat => Ok(((), Nanos::new(tat.saturating_sub(ns)))),
    });
    given.is_ok()
}

/// The theoretical arrival time; 0 if nothing was ever charged.
pub(crate) fn read(cell: &InMemoryState) -> u64 {
    // governor lets a state be read only by a decision; one that refuses changes nothing.
    let always_fails: Result<(), u64> =
        cell.measure_and_replace(&NotKeyed::NonKey, |old| Err(old.map_or(0, Nanos::as_u64)));
    always_fails.err().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owing(tat: u64) -> InMemoryState {
        let cell = InMemoryState::default();
        swap(&cell, tat);
        cell
    }

    proptest! {
        #[test]
        fn waits_and_debts_are_those_of_a_decision(
            interval in 1..1_000_u64,
            burst in 1..20_u32,
            now in 0..20_000_u64,
            owed in 0..20_000_u64,
            cost in 1..20_u32,
        ) {
            let quota = Quota::one_per(Duration::from_nanos(interval)).with_burst(burst);
            // No cell owes more.
            let cell = || owing(owed.min(now + interval * u64::from(burst)));
            let (decided, other) = (cell(), cell());
            let wait = wait_for(&other, quota, now, cost);
            prop_assert_eq!(read(&other), read(&cell()), "nothing was charged");
            match decide(&decided, quota, now, NonZeroU32::new(cost).unwrap()) {
                Outcome::Admitted { tat } => {
                    prop_assert_eq!(wait, 0);
                    (0..cost).for_each(|_| owe(&other, quota, now));
                    prop_assert_eq!(read(&other), tat);
                }
                Outcome::Refused { wait: decided, .. } => prop_assert_eq!(wait, decided),
                Outcome::AboveBurst => {
                    prop_assert!(cost > burst);
                    prop_assert_eq!(wait, wait_for(&other, quota, now, burst) + interval * u64::from(cost - burst));
                }
                Outcome::Frozen => prop_assert!(false, "nobody froze it"),
            }
        }

        #[test]
        fn a_full_cell_owes_a_burst_and_never_less_than_before(
            burst in 1..20_u32,
            times in prop::collection::vec(0..40_u64, 1..40),
        ) {
            let quota = Quota::one_per(Duration::from_nanos(1)).with_burst(burst);
            let cell = InMemoryState::default();
            for now in times {
                let before = read(&cell);
                owe(&cell, quota, now);
                // A clock that steps back forgives nothing.
                prop_assert!(read(&cell) >= before);
                prop_assert!(read(&cell) <= before.max(now + u64::from(burst)));
                prop_assert!(read(&cell) > now);
            }
        }
    }

    #[test]
    fn the_longest_quotas_do_not_overflow() {
        let quota = Quota::one_per(Duration::from_nanos(MAX_SPAN_NS - 1));
        let cell = InMemoryState::default();
        owe(&cell, quota, LATEST_NS);
        assert_eq!(read(&cell), LATEST_NS + MAX_SPAN_NS - 1);
        owe(&cell, quota, LATEST_NS);
        assert_eq!(read(&cell), LATEST_NS + MAX_SPAN_NS - 1);
        assert_eq!(wait_for(&cell, quota, LATEST_NS, 1), MAX_SPAN_NS - 1);
        assert_eq!(wait_for(&cell, quota, LATEST_NS, u32::MAX), u64::MAX);
    }
}
