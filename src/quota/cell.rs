//! The GCRA decision of one charge, by `governor`, and the other operations on a GCRA cell.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};

use super::quota::{MAX_SPAN_NS, Quota};
use crate::sync::InMemoryState;

/// The latest time of a decision, 146 years after the epoch of the clock.
pub(crate) const LATEST_NS: u64 = MAX_SPAN_NS - 1;

/// The theoretical arrival time of a cell that is permanently frozen.
///
/// Regular arrival times are at most `LATEST_NS` plus the span of a quota, which is below 2^63. For a frozen cell, governor adds
/// a span and subtracts the tolerance, both below 2^62. This neither overflows nor yields a time before any decision.
pub(crate) const FROZEN: u64 = 3 * MAX_SPAN_NS - 1;

/// The result of a charge.
pub(crate) enum Outcome {
    /// The units were charged. `tat` is the theoretical arrival time after the charge.
    Admitted { tat: u64 },
    /// Nothing was charged. The same charge fits after `wait` nanoseconds.
    Rejected { tat: u64, wait: u64 },
    /// Nothing was charged. The cost is above the burst.
    AboveBurst,
    /// Nothing was charged. The cell is frozen.
    Frozen,
}

/// Charges `cost` units of `quota` at the time `now`, in nanoseconds of a clock, at most [`LATEST_NS`].
#[inline]
pub(crate) fn decide(cell: &InMemoryState, quota: Quota, now: u64, cost: NonZeroU32) -> Outcome {
    // governor multiplies before it compares. The overflow would turn a large cost into a small one.
    if cost > quota.burst_nonzero() {
        return Outcome::AboveBurst;
    }
    // The interval of a quota is never 0, so governor always accepts it.
    let Some(gcra) = governor::Quota::with_period(Duration::from_nanos(quota.interval_ns())) else {
        return Outcome::AboveBurst;
    };
    let tat = Cell::new(0);
    let limiter: governor::RateLimiter<_, _, _, StateInformationMiddleware> = governor::RateLimiter::new(
        gcra.allow_burst(quota.burst_nonzero()),
        BorrowedCell { cell, tat: &tat },
        FixedClock { next: Cell::new(0), now },
    );
    match limiter.check_n(cost) {
        Ok(Ok(_)) => Outcome::Admitted { tat: tat.get() },
        Ok(Err(_)) if tat.get() >= FROZEN => Outcome::Frozen,
        Ok(Err(rejection)) => {
            // Below 2^64 nanoseconds, because both times are.
            Outcome::Rejected { tat: tat.get(), wait: rejection.wait_time_from(Nanos::new(now)).as_nanos() as u64 }
        }
        Err(_) => Outcome::AboveBurst,
    }
}

/// A state store for one decision: a borrowed cell, and the last value that was read or written.
struct BorrowedCell<'a> {
    cell: &'a InMemoryState,
    tat: &'a Cell<u64>,
}

impl StateStore for BorrowedCell<'_> {
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

/// A clock for one decision. The first reading is the start of the limiter, which is the epoch; the second is `now`.
struct FixedClock {
    next: Cell<u64>,
    now: u64,
}

impl Clock for FixedClock {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::new(self.next.replace(self.now))
    }
}

/// Returns the nanoseconds until a charge of `cost` units fits, or 0 if the charge fits now. Nothing is charged.
///
/// The result equals that of [`decide`] up to the burst. Above the burst, the result is linear: one interval per further
/// unit.
pub(crate) fn wait_for(cell: &InMemoryState, quota: Quota, now: u64, cost: u32) -> u64 {
    let charged = u128::from(read(cell).max(now)) + u128::from(quota.interval_ns()) * u128::from(cost);
    let most = u128::from(now) + u128::from(quota.span_ns());
    u64::try_from(charged.saturating_sub(most)).unwrap_or(u64::MAX)
}

/// Returns the time in which the same number of used units is regained at another interval, rounded up.
pub(crate) fn carry_over(used_ns: u64, from_interval_ns: u64, to: Quota) -> u64 {
    let carried_ns = (u128::from(used_ns) * u128::from(to.interval_ns())).div_ceil(u128::from(from_interval_ns.max(1)));
    // Times of more than a hundred years are reduced to the range of a cell.
    u64::try_from(carried_ns).unwrap_or(u64::MAX).min(FROZEN - 1)
}

/// Charges one unit, even if the unit does not fit. The cell never holds more than a burst of used units.
pub(crate) fn force_charge(cell: &InMemoryState, quota: Quota, now: u64) {
    // Below 2^64 nanoseconds: an arrival time is below 2^63, and an interval is below 2^62.
    let most = now + quota.span_ns();
    let never_fails: Result<(), ()> = cell.measure_and_replace(&NotKeyed::NonKey, |old| {
        let old = old.map_or(0, Nanos::as_u64);
        let new = (old.max(now) + quota.interval_ns()).min(most).max(old);
        Ok(((), Nanos::new(new)))
    });
    _ = never_fails;
}

/// Writes a theoretical arrival time and returns the previous one.
pub(crate) fn swap(cell: &InMemoryState, tat: u64) -> u64 {
    let never_fails: Result<u64, ()> =
        cell.measure_and_replace(&NotKeyed::NonKey, |old| Ok((old.map_or(0, Nanos::as_u64), Nanos::new(tat))));
    never_fails.unwrap_or(0)
}

/// Refunds a charge of this many nanoseconds. Returns `false` if the cell is frozen.
pub(crate) fn refund(cell: &InMemoryState, ns: u64) -> bool {
    let refunded: Result<(), ()> =
        cell.measure_and_replace(&NotKeyed::NonKey, |old| match old.map_or(0, Nanos::as_u64) {
            frozen if frozen >= FROZEN => Err(()),
            tat => Ok(((), Nanos::new(tat.saturating_sub(ns)))),
        });
    refunded.is_ok()
}

/// Returns the theoretical arrival time, or 0 if nothing was ever charged.
pub(crate) fn read(cell: &InMemoryState) -> u64 {
    // governor exposes the state to decisions only. A decision that fails changes nothing.
    let always_fails: Result<(), u64> =
        cell.measure_and_replace(&NotKeyed::NonKey, |old| Err(old.map_or(0, Nanos::as_u64)));
    always_fails.err().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cell_with_tat(tat: u64) -> InMemoryState {
        let cell = InMemoryState::default();
        swap(&cell, tat);
        cell
    }

    proptest! {
        #[test]
        fn wait_for_and_force_charge_agree_with_decide(
            interval in 1..1_000_u64,
            burst in 1..20_u32,
            now in 0..20_000_u64,
            tat in 0..20_000_u64,
            cost in 1..20_u32,
        ) {
            let quota = Quota::one_per(Duration::from_nanos(interval)).with_burst(burst);
            // No cell has a later arrival time.
            let cell = || cell_with_tat(tat.min(now + interval * u64::from(burst)));
            let (decided, other) = (cell(), cell());
            let wait = wait_for(&other, quota, now, cost);
            prop_assert_eq!(read(&other), read(&cell()), "nothing was charged");
            match decide(&decided, quota, now, NonZeroU32::new(cost).unwrap()) {
                Outcome::Admitted { tat } => {
                    prop_assert_eq!(wait, 0);
                    (0..cost).for_each(|_| force_charge(&other, quota, now));
                    prop_assert_eq!(read(&other), tat);
                }
                Outcome::Rejected { wait: decided, .. } => prop_assert_eq!(wait, decided),
                Outcome::AboveBurst => {
                    prop_assert!(cost > burst);
                    prop_assert_eq!(wait, wait_for(&other, quota, now, burst) + interval * u64::from(cost - burst));
                }
                Outcome::Frozen => prop_assert!(false, "no test freezes the cell"),
            }
        }

        #[test]
        fn force_charge_uses_at_most_a_burst_and_never_lowers_the_arrival_time(
            burst in 1..20_u32,
            times in prop::collection::vec(0..40_u64, 1..40),
        ) {
            let quota = Quota::one_per(Duration::from_nanos(1)).with_burst(burst);
            let cell = InMemoryState::default();
            for now in times {
                let before = read(&cell);
                force_charge(&cell, quota, now);
                // Also after a backward step of the clock.
                prop_assert!(read(&cell) >= before);
                prop_assert!(read(&cell) <= before.max(now + u64::from(burst)));
                prop_assert!(read(&cell) > now);
            }
        }
    }

    #[test]
    fn carried_times_are_below_that_of_a_frozen_cell() {
        let longest = Quota::one_per(Duration::from_nanos(MAX_SPAN_NS - 1));
        assert_eq!(carry_over(u64::from(u32::MAX), 1, longest), FROZEN - 1);
    }

    #[test]
    fn quotas_of_the_longest_interval_do_not_overflow() {
        let quota = Quota::one_per(Duration::from_nanos(MAX_SPAN_NS - 1));
        let cell = InMemoryState::default();
        force_charge(&cell, quota, LATEST_NS);
        assert_eq!(read(&cell), LATEST_NS + MAX_SPAN_NS - 1);
        force_charge(&cell, quota, LATEST_NS);
        assert_eq!(read(&cell), LATEST_NS + MAX_SPAN_NS - 1);
        assert_eq!(wait_for(&cell, quota, LATEST_NS, 1), MAX_SPAN_NS - 1);
        assert_eq!(wait_for(&cell, quota, LATEST_NS, u32::MAX), u64::MAX);
    }
}
